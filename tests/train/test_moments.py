"""Optimizer moments stored in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.config import OptimizerConfig
from deepseek_jax.train.optim.moments import map_moments, with_state_dtype
from deepseek_jax.train.optim.optimizer import make_optimizer


def test_moments_are_bfloat16_and_updates_float32():
    optimizer = make_optimizer(OptimizerConfig(moment_dtype="bfloat16"), steps=10)
    params = {"kernel": jnp.ones((4, 4))}
    state = optimizer.init(params)
    updates, after = optimizer.update({"kernel": jnp.full((4, 4), 0.3)}, state, params, value=jnp.ones(()))
    kinds = [{leaf.dtype.name for leaf in jax.tree.leaves(each) if leaf.shape} for each in (state, after, updates)]
    assert kinds == [{"bfloat16"}, {"bfloat16"}, {"float32"}]


def test_moments_are_found_by_path_and_shape():
    params = {"a": jnp.ones((2, 3)), "b": {"a": jnp.ones(3)}}
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_sm3(), factored)
    state = jax.eval_shape(optimizer.init, params)
    names = {"a": "wide", "b": {"a": "narrow"}}
    found = map_moments(lambda leaf, name: (name, leaf.shape), state, params, names, others=lambda leaf: leaf.shape)
    adam, sm3, adafactor = found
    assert adam.mu == adam.nu == sm3.nu == {"a": ("wide", (2, 3)), "b": {"a": ("narrow", (3,))}}
    assert adam.count == () and sm3.mu == {"a": [(2,), (3,)], "b": {"a": [(3,)]}}
    assert sorted(of["a"] for of in (adafactor.v, adafactor.v_row, adafactor.v_col)) == [(1,), (2,), (3,)]
    assert adafactor.v["b"] == {"a": ("narrow", (3,))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_optimizer_that_asks_for_the_loss_is_given_it(dtype):
    """The chain passes `value=loss` on, which the plateau schedule needs too."""
    by_loss = optax.GradientTransformationExtraArgs(
        lambda params: (), lambda updates, state, params=None, *, value, **more: (updates * value, state)
    )
    updates, _ = with_state_dtype(dtype, by_loss).update(jnp.ones(2), (), value=3.0)
    np.testing.assert_array_equal(updates, [3, 3])


def test_moments_are_cast_to_float32_for_the_update():
    seen = []
    watching = optax.GradientTransformation(
        lambda params: jnp.ones(2), lambda updates, state, params=None: (updates, seen.append(state) or state)
    )
    rounded = with_state_dtype("bfloat16", watching)
    rounded.update(jnp.ones(2), rounded.init(jnp.ones(2)))
    assert [state.dtype.name for state in seen] == ["float32"]


def test_updates_differ_from_float32_by_rounding_only():
    rounded, exact = (with_state_dtype(dtype, optax.scale_by_adam(b2=0.95)) for dtype in ("bfloat16", "float32"))
    params, rng = jnp.zeros(256), np.random.default_rng(0)
    states = [optimizer.init(params) for optimizer in (rounded, exact)]
    for _ in range(30):
        gradient = jnp.asarray(rng.normal(size=256) + 0.5)
        (near, states[0]), (true, states[1]) = (
            optimizer.update(gradient, state) for optimizer, state in zip((rounded, exact), states)
        )
    error = np.abs(near - true)
    assert 0 < error.mean() < 0.005 and error.max() < 0.05
