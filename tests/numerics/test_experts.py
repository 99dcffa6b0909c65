"""Every way to compute routed experts against a loop over experts, with gradients; the dense feed-forward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import deepseek_jax
from deepseek_jax.models.arithmetic import PLAIN, Arithmetic
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import SwiGLU
from deepseek_jax.models.moe import experts as experts_module
from deepseek_jax.models.moe.blocks import ExpertOptions
from deepseek_jax.models.moe.experts import (
    MOST_FOR_FEW,
    chosen_experts,
    every_expert,
    in_blocks,
    plainly,
    ragged,
    with_fixed_capacity,
)
from deepseek_jax.models.tree import merge, split
from deepseek_jax.parallel.dispatch import OVERFLOW_PROBABILITY, TILE, allot, plan, sufficient_capacity
from tests.paths import GOLDENS

E, D, WIDTH = 5, 8, 6


def _reference(x_TD, experts_TK, weights_TK, gate, up, down, how):
    total, limit = 0.0, how.limit
    for expert in range(E):
        gates, ups = x_TD @ gate[expert], x_TD @ up[expert]
        if limit:
            gates, ups = jnp.where(gates > limit, limit, gates), jnp.where(abs(ups) > limit, limit * jnp.sign(ups), ups)
        active = jax.nn.silu(gates) * ups
        weight_T = jnp.where(experts_TK == expert, weights_TK, 0.0).sum(axis=1)
        total += weight_T[:, None] * (active @ down[expert])
    return total


def _choices(rng, tokens, loads):
    if loads == "even":
        return np.stack([rng.permutation(E)[:2] for _ in range(tokens)])
    return np.tile([3, 1], (tokens, 1))  # two experts get every token, the others none


@pytest.mark.parametrize("way", [chosen_experts, every_expert, in_blocks, with_fixed_capacity, ragged])
@pytest.mark.parametrize(
    "tokens, loads, limit",
    [
        (1, "even", 0.0),
        (300, "even", 0.0),
        (300, "even", 1.0),
        (257, "two experts only", 0.0),
        (1200, "even", 0.0),  # enough tokens for large blocks
    ],
)
def test_each_way_has_the_outputs_and_gradients_of_the_loop(way, tokens, loads, limit):
    """A limit of 1 clamps many of the gate and up activations, whose gradient is then 0."""
    rng = np.random.default_rng(0)
    shapes = (tokens, D), (tokens, 2), (E, D, WIDTH), (E, D, WIDTH), (E, WIDTH, D), (tokens, D)
    x, weights, gate, up, down, cotangent = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    experts = jnp.asarray(_choices(rng, tokens, loads), jnp.int32)

    def value_and_gradients(compute):
        def run(x, weights, *kernels):
            return compute(x, experts, weights, *kernels, ExpertOptions(limit))

        y, pull_back = jax.vjp(run, x, weights, gate, up, down)
        return y, *pull_back(cotangent)

    ours = jax.jit(value_and_gradients, static_argnums=0)(way)
    names = "y", "x", "weights", "gate", "up", "down"
    for name, got, expected in zip(names, ours, value_and_gradients(_reference), strict=True):
        scale = max(1.0, float(jnp.abs(expected).max()))
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("way", [chosen_experts, every_expert, in_blocks, with_fixed_capacity, ragged])
def test_an_assignment_to_no_expert_adds_nothing(way):
    """Expert index E stands for none, as in rows left empty by another device or routed to experts elsewhere."""
    rng = np.random.default_rng(0)
    shapes = (300, D), (300, 2), (E, D, WIDTH), (E, D, WIDTH), (E, WIDTH, D)
    x, weights, *kernels = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    experts = jnp.asarray(np.where(rng.random((300, 2)) < 0.4, E, _choices(rng, 300, "even")), jnp.int32)
    weights = jnp.where(experts == E, 0, weights)
    arguments = x, experts, weights, *kernels, ExpertOptions()
    np.testing.assert_allclose(way(*arguments), _reference(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("down", [PLAIN, Arithmetic()], ids=["plain", "weighted before"])
def test_nan_in_rows_of_no_expert_reaches_neither_outputs_nor_gradients(down, monkeypatch):
    """Kernels may leave anything, even NaN, in rows past the last group; neither outputs nor gradients may see it."""

    def known(x, counts):
        return (jnp.arange(x.shape[0]) < counts.sum())[:, None]

    @jax.custom_vjp
    def poisoned(x, kernel, counts):
        return jnp.where(known(x, counts), jax.lax.ragged_dot(x, kernel, counts), jnp.nan)

    def pull_back(saved, dy):
        x, kernel, counts = saved
        pull = jax.vjp(lambda x, kernel: jax.lax.ragged_dot(x, kernel, counts), x, kernel)[1]
        dx, dkernel = pull(jnp.where(known(x, counts), dy, 0))
        return jnp.where(known(x, counts), dx, jnp.nan), dkernel, None

    poisoned.defvjp(lambda *given: (poisoned(*given), given), pull_back)
    monkeypatch.setattr(experts_module, "grouped_matmul", lambda x, kernel, counts, how: poisoned(x, kernel, counts))
    rng = np.random.default_rng(0)
    shapes = (30, D), (30, 2), (E, D, WIDTH), (E, D, WIDTH), (E, WIDTH, D)
    x, weights, *kernels = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    experts = jnp.asarray(np.where(rng.random((30, 2)) < 0.4, E, _choices(rng, 30, "even")), jnp.int32)
    weights = jnp.where(experts == E, 0, weights)

    def loss(x, weights, *kernels):
        return ragged(x, experts, weights, *kernels, ExpertOptions(down=down)).sum()

    for each in jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))(x, weights, *kernels)):
        assert jnp.isfinite(each).all()


@pytest.mark.parametrize("tokens, per_token, experts", [(8, 4, 16), (16, 4, 16), (64, 4, 16), (20, 8, 64)])
def test_the_capacity_is_rarely_too_small_but_a_tile_less_often_would_be(tokens, per_token, experts):
    rng, room = np.random.default_rng(0), sufficient_capacity(tokens, per_token, experts)
    draws = rng.permuted(np.tile(np.arange(experts), (4000, tokens, 1)), axis=-1)[..., :per_token]
    busiest = (draws.reshape(4000, -1, 1) == np.arange(experts)).sum(axis=1).max(axis=1)
    assert (busiest > room).mean() < OVERFLOW_PROBABILITY < (busiest > room - TILE).mean()


@pytest.mark.parametrize("tokens, per_token, experts", [(3, 2, 2), (4, 4, 4), (1, 1, 8), (7, 2, 3)])
def test_the_capacity_for_few_tokens_holds_them_all(tokens, per_token, experts):
    assert sufficient_capacity(tokens, per_token, experts) >= tokens


def test_assignments_without_room_get_the_slot_past_the_last():
    slots = allot(jnp.array([[1, 0], [1, 2], [1, 0]]), targets=2, capacity=2)  # a third for expert 1, and one for none
    np.testing.assert_array_equal(slots.slot_of_assignment, [[2, 0], [3, 4], [4, 1]])
    np.testing.assert_array_equal(slots.assignment_of_slot, [1, 5, 0, 2])


@pytest.mark.parametrize("block", [1, 4])
def test_plan_gives_every_assignment_its_own_slot(block):
    experts = np.random.default_rng(1).integers(0, E - 1, size=(20, 3))  # the last expert gets no tokens
    layout = plan(jnp.asarray(experts, jnp.int32), E, block)
    slots = np.asarray(layout.slot_of_assignment).reshape(-1)
    assert len(set(slots.tolist())) == slots.size
    np.testing.assert_array_equal(np.asarray(layout.assignment_of_slot)[slots], np.arange(slots.size))
    np.testing.assert_array_equal(np.asarray(layout.expert_of_block)[slots // block], experts.reshape(-1))
    np.testing.assert_array_equal(layout.counts, np.bincount(experts.reshape(-1), minlength=E))
    assert slots.max() < int(layout.num_blocks) * block


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_dense_feed_forward_with_biases_and_clamp(limit):
    config = ModelConfig(hidden_size=D, mlp_bias=True, swiglu_limit=limit, initializer_range=1.0)
    graphdef, params, _ = split(SwiGLU(config, WIDTH, rngs=nnx.Rngs(params=0)))
    rng = np.random.default_rng(2)
    p = {name: np.float32(rng.normal(size=param.shape)) for name, param in params.items()}
    x = np.float32(rng.normal(size=(7, D)))
    gate, up = x @ p["gate"] + p["gate_bias"], x @ p["up"] + p["up_bias"]
    if limit:
        assert (gate > limit).any() and (up > limit).any() and (up < -limit).any()
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    expected = gate / (1 + np.exp(-gate)) * up @ p["down"] + p["down_bias"]
    np.testing.assert_allclose(merge(graphdef, p, {})(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_under_plainly_vmap_and_second_derivatives_of_a_model_work():
    """As docs/models.md says: per-row gradients under vmap, and second derivatives, of a whole model.

    Inside `plainly()`, functions that were compiled before are compiled anew.
    """
    model = deepseek_jax.from_pretrained(GOLDENS / "v3")
    length = MOST_FOR_FEW // model.config.num_experts_per_tok + 1
    tokens = jnp.arange(2 * length).reshape(2, length) * 7 % model.config.vocab_size

    def loss(down, tokens_S):
        layers = model.params["layers"] | {"1-2": _with_down(model.params["layers"]["1-2"], down)}
        decoder = merge(model.graphdef, model.params | {"layers": layers}, model.buffers)
        hidden = decoder(tokens_S[None], jnp.arange(length)[None], jnp.ones((1, length), int)).hidden
        return -jax.nn.log_softmax(decoder.logits(hidden))[0, jnp.arange(length - 1), tokens_S[1:]].mean()

    down, gradient = model.params["layers"]["1-2"]["feed_forward"]["experts"]["down"], jax.jit(jax.grad(loss))
    expected = [gradient(down, row) for row in tokens]
    for_all_rows = jax.jit(jax.vmap(gradient, (None, 0)))
    with pytest.raises(NotImplementedError, match="ragged_dot vmap over any dim but 0 - NYI"):  # documented there too
        for_all_rows(down, tokens)
    with plainly():
        by_row = for_all_rows(down, tokens)
    np.testing.assert_allclose(by_row, expected, rtol=1e-4, atol=1e-6)

    direction, step = jax.random.normal(jax.random.key(0), down.shape), 1e-4
    with plainly():
        curved = jax.jit(jax.grad(lambda down: (gradient(down, tokens[0]) * direction).sum()))(down)
    ahead, behind = (gradient(down + sign * step * direction, tokens[0]) for sign in (1, -1))
    assert jnp.linalg.norm((ahead - behind) / (2 * step) - curved) < 0.01 * jnp.linalg.norm(curved)


def _with_down(layer, down):
    """The parameters of a stack of layers with its experts' `down` kernels replaced."""
    feed_forward = layer["feed_forward"]
    return layer | {"feed_forward": feed_forward | {"experts": feed_forward["experts"] | {"down": down}}}
