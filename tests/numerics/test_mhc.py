"""Hyper-connections: the maps as in the paper, and an initialisation that is a plain residual connection.

B batch  S sequence  n streams  D model
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.mhc import HyperConnection, StreamHead, sinkhorn

n, D = 3, 8
CONFIG = ModelConfig(hidden_size=D, hc_mult=n, hc_sinkhorn_iters=4, hc_eps=1e-2, rms_norm_eps=1e-2)
STREAMS = np.random.default_rng(0).normal(size=(2, 5, n, D)).astype(np.float32)


def learned(module):
    """The module with random parameters in place of its initial ones."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), module)


def sublayer(x):
    return jnp.sin(3 * x), "report"


def behind_a_norm(x):
    return sublayer(x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True)))


def test_hyper_connections_follow_the_papers_equations():
    module = learned(HyperConnection(CONFIG, rngs=nnx.Rngs(params=0)))
    kernel, bias, scale = (np.asarray(part[...], np.float64) for part in (module.kernel, module.bias, module.scale))
    found, report = module(STREAMS, sublayer)
    assert report == "report"
    for place in np.ndindex(STREAMS.shape[:2]):
        x_nD = STREAMS[place].astype(np.float64)
        u = (x_nD.ravel() / np.sqrt(np.mean(x_nD**2) + 1e-2)) @ kernel
        pre = 1 / (1 + np.exp(-(u[:n] * scale[0] + bias[:n]))) + 1e-2
        post = 2 / (1 + np.exp(-(u[n : 2 * n] * scale[1] + bias[n : 2 * n])))
        comb = np.exp(u[2 * n :] * scale[2] + bias[2 * n :]).reshape(n, n)
        comb = comb / comb.sum(axis=1, keepdims=True) + 1e-2
        for turn in range(7):  # columns, then 3 times rows and columns
            comb /= comb.sum(axis=turn % 2, keepdims=True) + 1e-2
        y_D = np.sin(3 * pre @ x_nD)
        expected = [post[j] * y_D + sum(comb[i, j] * x_nD[i] for i in range(n)) for j in range(n)]
        np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-4)


def test_sinkhorn_gives_doubly_stochastic_matrices():
    logits = np.random.default_rng(2).normal(size=(50, 4, 4))
    matrix = sinkhorn(jnp.asarray(logits, jnp.float32), iterations=20, eps=1e-6)
    np.testing.assert_allclose(matrix.sum(axis=-2), 1, atol=1e-4)
    np.testing.assert_allclose(matrix.sum(axis=-1), 1, atol=1e-2)
    assert (np.asarray(matrix) > 0).all()


@pytest.mark.parametrize("streams", [1, 4])
def test_initial_hyper_connections_act_as_a_plain_residual_on_equal_streams(streams):
    """Except for hc_eps and the small part of the maps that depends on the streams."""
    config = ModelConfig(hidden_size=D, hc_mult=streams, hc_sinkhorn_iters=20, initializer_range=0.02)
    x_BSnD = np.repeat(STREAMS[:, :, :1], streams, axis=2)
    found, _ = HyperConnection(config, rngs=nnx.Rngs(params=0))(x_BSnD, behind_a_norm)
    expected = x_BSnD + behind_a_norm(x_BSnD)[0]
    np.testing.assert_allclose(found, expected, atol=0.02)
    head = StreamHead(config, rngs=nnx.Rngs(params=0))
    np.testing.assert_allclose(head(x_BSnD), x_BSnD[:, :, 0], atol=0.05)


def test_streams_are_taken_side_by_side_and_apart_and_returned_as_they_came():
    side_by_side = STREAMS.reshape(2, 5, n * D)
    connection, head = (
        learned(HyperConnection(CONFIG, rngs=nnx.Rngs(params=0))),
        StreamHead(CONFIG, rngs=nnx.Rngs(params=0)),
    )
    found, _ = connection(side_by_side, sublayer)
    np.testing.assert_array_equal(found, connection(STREAMS, sublayer)[0].reshape(2, 5, n * D))
    np.testing.assert_array_equal(head(side_by_side), head(STREAMS))


def test_the_head_reads_streams_without_mixing_them():
    module = learned(StreamHead(CONFIG, rngs=nnx.Rngs(params=0)))
    x = STREAMS.astype(np.float64)
    flat = x.reshape(2, 5, -1)
    u = flat / np.sqrt(np.mean(flat**2, axis=-1, keepdims=True) + 1e-2) @ np.asarray(module.kernel[...], np.float64)
    pre = 1 / (1 + np.exp(-(u * np.asarray(module.scale[...]) + np.asarray(module.bias[...])))) + 1e-2
    np.testing.assert_allclose(module(STREAMS), (pre[..., None] * x).sum(axis=2), rtol=1e-4, atol=1e-4)


def test_free_maps_follow_the_original_hyper_connections():
    """arXiv:2409.19606, with one scale for each map."""
    module = learned(HyperConnection(dataclasses.replace(CONFIG, hc_manifold=False), rngs=nnx.Rngs(params=0)))
    kernel, bias, scale = (np.asarray(part[...], np.float64) for part in (module.kernel, module.bias, module.scale))
    found, _ = module(STREAMS, sublayer)
    for place in np.ndindex(STREAMS.shape[:2]):
        x_nD = STREAMS[place].astype(np.float64)
        u = np.tanh((x_nD.ravel() / np.sqrt(np.mean(x_nD**2) + 1e-2)) @ kernel)
        pre, post, comb = np.split(u * np.repeat(scale, [n, n, n * n]) + bias, [n, 2 * n])
        expected = np.outer(post, np.sin(3 * pre @ x_nD)) + comb.reshape(n, n).T @ x_nD
        np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-4)
