"""Small hybrid networks: one for a time series, one for texts and one for pictures."""

from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig

STAGES = {"recurrent": RecurrentConfig("lstm", 6), "attention": AttentionConfig(2, 4)}
SERIES = HybridConfig(input="series", channels=3, length=12, convolution=ConvolutionConfig((8,)), outputs=2, **STAGES)
TEXT = HybridConfig(
    input="text",
    vocab_size=20,
    embed_dim=6,
    length=12,
    convolution=ConvolutionConfig((8, 8), convs_per_block=2, norm="group", residual=True, pool="average"),
    recurrent=RecurrentConfig("gru", 6, layers=2, bidirectional=True),
    attention=AttentionConfig(2, 4, residual=True, norm=True),
    readout="mean",
)
IMAGE = HybridConfig(height=9, width=7, channels=2, convolution=ConvolutionConfig((4,)), **STAGES)
