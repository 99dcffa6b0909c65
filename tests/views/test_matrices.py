"""`matrix_of` tells from a parameter's path which of its dimensions are inputs and outputs, for every model."""

import dataclasses
import math

import jax
import pytest
from flax import nnx

from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.models.tree import flatten
from deepseek_jax.views.matrices import CONTROL, LINEAR, TABLE, chosen, matrix_of
from tests.models.hybrids import IMAGE, SERIES, TEXT
from tests.parallel.curves import MODELS

GQA = dataclasses.replace(MODELS["v3"], layer_types=("gqa",), num_key_value_heads=2, head_dim=4, attention_bias=True)
DECODERS = MODELS | {"gqa": GQA}


def shapes(config) -> dict:
    if hasattr(config, "readout"):
        return flatten(jax.eval_shape(lambda: tree.split(Hybrid(config, rngs=nnx.Rngs(params=0)))[1]))
    return flatten(jax.eval_shape(lambda: initialise(config, jax.random.key(0))[1]))


@pytest.mark.parametrize("name", DECODERS)
def test_parameters_of_decoders_are_classified_by_path(name):
    config, kinds = DECODERS[name], {}
    for path, leaf in shapes(config).items():
        matrix = matrix_of(path, leaf.ndim)
        kinds.setdefault(matrix and matrix.kind, []).append(path)
        if matrix and path.endswith(("/gate", "/up", "/q_down", "/kv_down", "/k", "/v", "/q", "/kv")):
            assert matrix.inputs_of(leaf.shape) == config.hidden_size, path
        if matrix and path.endswith(("/down", "/out", "/out_up", "project")):
            assert matrix.fold(leaf_of(leaf)).shape[2] == config.hidden_size, path
    assert kinds[TABLE] == ["embedding", "head"]
    assert all("router" in path or "_residual/" in path or "stream_head/" in path for path in kinds[CONTROL])
    assert all(path.endswith(("scale", "bias", "sinks")) for path in kinds[None])
    assert all("norm" not in path for path in kinds[LINEAR])


@pytest.mark.parametrize("config", [IMAGE, SERIES, TEXT], ids=["image", "series", "text"])
def test_parameters_of_hybrid_networks_are_classified_by_path(config):
    window = config.convolution.kernel_size ** (2 if config.input == "image" else 1)
    for path, leaf in shapes(config).items():
        matrix = matrix_of(path, leaf.ndim)
        assert (matrix is None) == path.endswith(("bias", "scale")), path
        if "/convolutions/" in path and matrix:
            assert matrix.inputs_of(leaf.shape) == window * leaf.shape[-2]
        if path.startswith("recurrent/") and matrix:
            assert matrix.inputs_of(leaf.shape) == leaf.shape[0]
        assert (matrix is not None and matrix.kind == TABLE) == (path in ("embedding", "head/kernel")), path
        if matrix and path == "attention/out":
            assert matrix.inputs_of(leaf.shape) == math.prod(leaf.shape[:2])


def leaf_of(shape):
    return jax.numpy.zeros(shape.shape)


def test_a_pattern_that_matches_no_path_is_refused_with_examples():
    params = shapes(MODELS["v3"])
    assert set(chosen(params, "experts/up", "prune.paths", (LINEAR,))) == {
        "layers/1-6/feed_forward/experts/up",
        "mtp/0/block/feed_forward/experts/up",
    }
    with pytest.raises(UserError, match="is 'expert/', which matches no matrix's path; there are embed"):
        chosen(params, "expert/", "prune.paths", (LINEAR,))
