"""Which attention is best at equal parameters: multi-head, grouped-query, multi-query or latent?

V2 (arXiv:2405.04434, tables 8 and 9): MHA over GQA-8 over MQA, and MLA no worse than MHA with 4 to 14% of its cache.
Head widths are chosen so that an attention has 38,400 to 39,936 parameters.
"""

from deepseek_jax.studies.measures import cache_bytes, decode_speed
from experiments import Claim, Study, Variant


def grouped(heads: int, width: int) -> dict:
    return {"model.layer_types": ("gqa",), "model.num_key_value_heads": heads, "model.head_dim": width}


study = Study(
    base="configs/study_tiny.py",
    budget=163_840,
    seeds=5,
    metric="final/loss",
    margin=0.02,
    variants=[
        Variant("MLA"),
        Variant("MHA", grouped(4, 26)),
        Variant("GQA", grouped(2, 34)),
        Variant("MQA", grouped(1, 40)),
    ],
    claim="MLA <= MHA; MHA <= GQA; GQA <= MQA",
    further=[Claim("cache_bytes", "1%", "MLA < MHA; MLA < MQA")],
    measures=[cache_bytes, decode_speed],
    larger="32 layers of hidden 4,096 with 32 heads of 128, dense, 100B tokens, as in appendix D of V2.",
)
