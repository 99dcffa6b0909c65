"""The three ways to compute routed experts against a loop over experts, with gradients, however uneven the loads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.moe.dispatch import plan
from deepseek_jax.models.moe.experts import every_expert, in_blocks, ragged

E, D, WIDTH = 5, 8, 6


def _reference(x_TD, experts_TK, weights_TK, gate, up, down):
    total = 0.0
    for expert in range(E):
        active = jax.nn.silu(x_TD @ gate[expert]) * (x_TD @ up[expert])
        weight_T = jnp.where(experts_TK == expert, weights_TK, 0.0).sum(axis=1)
        total += weight_T[:, None] * (active @ down[expert])
    return total


def _choices(rng, tokens, loads):
    if loads == "even":
        return np.stack([rng.permutation(E)[:2] for _ in range(tokens)])
    return np.tile([3, 1], (tokens, 1))  # three experts get nothing, two get every token


@pytest.mark.parametrize("way", [every_expert, in_blocks, ragged])
@pytest.mark.parametrize("tokens, loads", [(1, "even"), (300, "even"), (257, "two experts only")])
def test_value_and_gradients(way, tokens, loads):
    rng = np.random.default_rng(0)
    shapes = (tokens, D), (tokens, 2), (E, D, WIDTH), (E, D, WIDTH), (E, WIDTH, D), (tokens, D)
    x, weights, gate, up, down, cotangent = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    experts = jnp.asarray(_choices(rng, tokens, loads), jnp.int32)

    def value_and_gradients(compute):
        run = lambda x, weights, *kernels: compute(x, experts, weights, *kernels)  # noqa: E731
        y, pull_back = jax.vjp(run, x, weights, gate, up, down)
        return y, *pull_back(cotangent)

    ours = jax.jit(value_and_gradients, static_argnums=0)(way)
    names = "y", "x", "weights", "gate", "up", "down"
    for name, got, expected in zip(names, ours, value_and_gradients(_reference), strict=True):
        scale = max(1.0, float(jnp.abs(expected).max()))
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("block", [1, 4])
def test_plan_gives_every_assignment_its_own_slot(block):
    experts = np.random.default_rng(1).integers(0, E - 1, size=(20, 3))  # the last expert gets none
    layout = plan(jnp.asarray(experts, jnp.int32), E, block)
    slots = np.asarray(layout.slot_of_assignment).reshape(-1)
    assert len(set(slots.tolist())) == slots.size
    np.testing.assert_array_equal(np.asarray(layout.assignment_of_slot)[slots], np.arange(slots.size))
    np.testing.assert_array_equal(np.asarray(layout.expert_of_block)[slots // block], experts.reshape(-1))
    np.testing.assert_array_equal(layout.counts, np.bincount(experts.reshape(-1), minlength=E))
    assert slots.max() < int(layout.num_blocks) * block
