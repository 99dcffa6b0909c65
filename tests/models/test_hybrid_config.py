"""HybridConfig: impossible settings are refused with the key to change, and sizes that follow from the settings."""

import dataclasses

import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig


def table(filters: int, norm: str) -> HybridConfig:
    return HybridConfig(input="table", convolution=ConvolutionConfig((32, filters), norm=norm))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HybridConfig(input="sound"), "model.input is 'sound'; choose one of image, series, text, table"),
        (lambda: HybridConfig(input="series"), "model.length is 0; it must be at least 1"),
        (lambda: HybridConfig(input="text", length=9), "model.vocab_size is 0; it must be at least 1"),
        (lambda: HybridConfig(outputs=0), "model.outputs is 0"),
        (lambda: HybridConfig(dropout=1.0), "model.dropout is 1.0, which leaves nothing"),
        (lambda: HybridConfig(dropout=-0.1), "model.dropout is -0.1; it must lie between 0 and 1"),
        (lambda: HybridConfig(drop_path=0.1), "model.drop_path is 0.1, but no branch is residual"),
        (
            lambda: HybridConfig(
                drop_path=0.1, convolution=ConvolutionConfig(kind="efficientnet_lite0", residual=True)
            ),
            "no branch is residual",
        ),
        (lambda: HybridConfig(drop_path=0.1, attention=AttentionConfig(0, residual=True)), "no branch is residual"),
        (lambda: ConvolutionConfig(filters=(8, 0)), "model.convolution.filters is .* at least 1"),
        (lambda: ConvolutionConfig(norm="rms"), "model.convolution.norm is 'rms'; choose one of batch"),
        (lambda: RecurrentConfig("rnn"), "model.recurrent.kind is 'rnn'; choose one of lstm, gru, none"),
        (lambda: RecurrentConfig(hidden_size=0), "model.recurrent.hidden_size is 0"),
        (lambda: AttentionConfig(num_heads=-1), "model.attention.num_heads is -1"),
        (lambda: table(33, "group"), "filters has 33: group norm would take the mean of each number of a table by"),
        (
            lambda: table(1, "layer"),
            "filters has 1: layer norm would take the mean of each number .* make it a multiple of 16",
        ),
        (lambda: HybridConfig(head="boxes", input="table"), "'boxes', which needs images; model.input is 'table'"),
        (lambda: HybridConfig(head="boxes"), "set model.sequence to 'cells', or leave out recurrence"),
        (lambda: HybridConfig(head="boxes", sequence="cells", width=27), "model.width is 27; make it a multiple of 2"),
        (
            lambda: HybridConfig(
                head="boxes", sequence="cells", height=31, convolution=ConvolutionConfig((8,), enlarge=2)
            ),
            "model.height is 31; make it a multiple of 2",
        ),
    ],
)
def test_impossible_hybrid_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(("filters", "norm"), [(24, "group"), (2, "layer"), (33, "batch"), (1, "none")])
def test_norms_that_keep_a_tables_information_are_accepted(filters, norm):
    table(filters, norm)


def test_map_size_is_halved_by_every_pool_and_rounded_up():
    config = HybridConfig(height=28, width=30, convolution=ConvolutionConfig((8, 8, 8)))
    assert config.map_size == (4, 4)
    unpooled = dataclasses.replace(config, convolution=ConvolutionConfig((8, 8), pool="none"))
    assert unpooled.map_size == (28, 30)


@pytest.mark.parametrize(
    ("convolution", "size"),
    [
        (ConvolutionConfig((8,), enlarge=2), (14, 15)),  # plain blocks ignore `enlarge`
        (ConvolutionConfig((), kind="efficientnet_lite0", enlarge=2), (28, 30)),  # no filters: no convolution
        (ConvolutionConfig(kind="efficientnet_lite0", stages=2, enlarge=2), (14, 15)),
    ],
)
def test_map_size_ignores_settings_of_other_extractors(convolution, size):
    assert HybridConfig(height=28, width=30, convolution=convolution).map_size == size


NEITHER = {"recurrent": RecurrentConfig("none"), "attention": AttentionConfig(0)}


@pytest.mark.parametrize(
    ("config", "blind"),
    [
        (HybridConfig(**NEITHER), True),
        (HybridConfig(input="series", length=9, **NEITHER), True),
        (HybridConfig(input="text", length=9, vocab_size=9, **NEITHER), True),
        (HybridConfig(readout="mean", **NEITHER), False),
        (HybridConfig(recurrent=RecurrentConfig("none")), False),
        (HybridConfig(attention=AttentionConfig(0)), False),
        (HybridConfig(input="table", **NEITHER), False),
        (HybridConfig(head="boxes", **NEITHER), False),
        (HybridConfig(height=2, **NEITHER), False),  # pooling leaves a single row
        (HybridConfig(height=2, sequence="cells", **NEITHER), True),
    ],
)
def test_networks_whose_head_sees_one_step_of_many_are_recognised(config, blind):
    assert config.reads_one_step_of_many is blind
