"""The hybrid network's parts compute what flax.linen's modules compute with the same parameters."""

import functools

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models import tree
from deepseek_jax.models.hybrid.config import AttentionConfig
from deepseek_jax.models.hybrid.convolution import Convolution
from deepseek_jax.models.hybrid.recurrent import GRU, LSTM, run
from deepseek_jax.models.hybrid.self_attention import SelfAttention

B, S, I, H = 3, 6, 5, 8


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def same(ours, theirs, x):
    """Checks that `ours(x)` and `theirs(x)` agree, and so do their gradients with respect to x."""

    def both(call):
        y, back = jax.vjp(call, x)
        return y, back(jnp.cos(y))[0]

    for found, expected in zip(jax.jit(lambda: both(ours))(), jax.jit(lambda: both(theirs))(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@functools.cache
def theirs(module):
    """Random variables for a linen module, none of them zero."""
    variables = module.init(jax.random.key(0), normal(B, S, I))
    return jax.tree.map(lambda leaf: normal(*leaf.shape, seed=leaf.size) / 3, variables)


@pytest.mark.parametrize(("cell", "linen_cell", "gates"), [(LSTM, linen.LSTMCell, "ifgo"), (GRU, linen.GRUCell, "rzn")])
def test_recurrent_cells_equal_linens(cell, linen_cell, gates):
    """linen's LSTM has its biases on the state's side; its GRU on the input's side, and for the candidate on both."""
    layer = linen.RNN(linen_cell(H))
    variables = theirs(layer)
    (given,) = variables["params"].values()

    def stacked(side):
        return jnp.stack([given[f"{side}{gate}"]["kernel"] for gate in gates], axis=1)

    biased = "h" if cell is LSTM else "i"
    params = {"input": stacked("i"), "state": stacked("h")}
    params["bias"] = jnp.stack([given[f"{biased}{gate}"]["bias"] for gate in gates])
    if cell is GRU:
        params["state_bias"] = given["hn"]["bias"]
    graphdef, _, _ = tree.split(cell(I, H, raw=True, rngs=nnx.Rngs(params=0)))

    def ours(x):
        return run(tree.merge(graphdef, params, {}), x, None)

    same(ours, lambda x: layer.apply(variables, x), normal(B, S, I, seed=1))


@pytest.mark.parametrize("rank", [1, 2])
def test_convolutions_equal_linens(rank):
    layer = linen.Conv(H, (3,) * rank)
    x = normal(B, S, *(7,) * (rank - 1), I)
    params = layer.init(jax.random.key(0), x)["params"]
    graphdef, _, _ = tree.split(Convolution(rank, I, H, 3, bias=True, raw=True, rngs=nnx.Rngs(params=0)))
    same(lambda x: tree.merge(graphdef, params, {})(x), lambda x: layer.apply({"params": params}, x), x)


def test_attention_whose_heads_do_not_divide_the_features_equals_linens():
    layer = linen.MultiHeadDotProductAttention(num_heads=4, qkv_features=4 * 12)
    given = theirs(layer)["params"]
    names = {"q": "query", "k": "key", "v": "value", "out": "out"}
    params = {ours: given[name]["kernel"] for ours, name in names.items()}
    params |= {f"{ours}_bias": given[name]["bias"] for ours, name in names.items()}
    graphdef, _, _ = tree.split(SelfAttention(AttentionConfig(4, key_dim=12), I, rngs=nnx.Rngs(params=0)))
    real = jnp.arange(S) < jnp.array([[2], [6], [1]])

    def ours(x):
        return tree.merge(graphdef, params, {})(x, x, real, 0.0, None)

    same(ours, lambda x: layer.apply({"params": given}, x, mask=real[:, None, None]), normal(B, S, I, seed=1))
