"""The training step on a toy program: gradient accumulation, averages, buffers, and non-finite numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.config import ScheduleConfig
from deepseek_jax.train.optim.schedules import learning_rate
from deepseek_jax.train.state import scored_model
from tests.train import toy


def numbers(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(one, other):
    for left, right in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_array_equal(left, right)


def poisoned(batch: dict) -> dict:
    return batch | {"y": np.full_like(batch["y"], np.nan)}


def test_accumulation_equals_the_large_batch():
    """Microbatches have unequal total weights, so a mean of their means would differ."""
    config = toy.experiment()
    (whole, step), (parts, _) = toy.start(config), toy.start(config)
    large = toy.batch(1, 12)
    small = jax.tree.map(lambda leaf: leaf.reshape(4, 3, *leaf.shape[2:]), large)
    for _ in range(3):
        whole, from_whole = step(whole, large)
        parts, from_parts = step(parts, small)
        for key in from_whole:
            np.testing.assert_allclose(from_whole[key], from_parts[key], rtol=2e-6, err_msg=key)
    for left, right in zip(numbers(whole), numbers(parts), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-6)


def test_buffers_are_updated_from_the_whole_batch_and_get_no_gradient():
    state, step = toy.start(toy.experiment())
    batch = toy.batch(2, 6)
    state, _ = step(state, batch)
    np.testing.assert_allclose(state["buffers"]["bias"], 1e-3 * batch["weight"].sum(), rtol=1e-6)
    assert jax.tree.structure(state["params"]) == jax.tree.structure({"kernel": 0, "norm": {"scale": 0}})


def test_buffers_are_updated_with_the_new_parameters():
    task = dataclasses.replace(
        toy.program(), update_buffers=lambda params, buffers, aux, update: {"bias": params["kernel"].sum()}
    )
    state, step = toy.start(toy.experiment(), task=task)
    state, _ = step(state, toy.batch(1, 6))
    np.testing.assert_allclose(state["buffers"]["bias"], state["params"]["kernel"].sum(), rtol=1e-6)


def test_the_loss_is_given_each_microbatchs_number():
    """A loss derives its random key from it, so that microbatches get different noise."""

    def loss(params, buffers, batch, totals, scheduled):
        value, aux = toy.program().loss(params, buffers, batch, totals, scheduled)
        return value, aux | {"numbers": jax.nn.one_hot(scheduled["microbatch"], 3)}

    state, step = toy.start(toy.experiment(), task=dataclasses.replace(toy.program(), loss=loss))
    _, metrics = step(state, toy.batch(3, 2))
    np.testing.assert_array_equal(metrics["numbers"], [1, 1, 1])


def test_moving_averages_follow_parameters_and_buffers():
    """The mean of the values after each update, weighted by 0.9^age; initial values and skipped steps do not count."""
    state, step = toy.start(toy.experiment(ema_decay=0.9, on_nonfinite="skip"))
    after = []
    for seed in range(3):
        state, _ = step(state, poisoned(toy.batch(1, 6)))
        state, _ = step(state, toy.batch(1, 6, seed))
        after.append(numbers((state["params"], state["buffers"])))
    for left, *rest in zip(numbers(scored_model(state)), *after, strict=True):
        np.testing.assert_allclose(left, np.average(rest, axis=0, weights=[0.81, 0.9, 1]), rtol=1e-6, atol=2e-7)


def test_an_integer_buffer_is_copied_and_not_averaged():
    program = dataclasses.replace(
        toy.program(),
        make_parameters=lambda: (toy.program().make_parameters()[0], {"table": jnp.zeros(2, jnp.int32)}),
        buffer_axes={"table": (None,)},
        update_buffers=lambda params, buffers, aux, update: {"table": buffers["table"] + 1},
    )
    state, step = toy.start(toy.experiment(ema_decay=0.9), task=program)
    state, _ = step(state, toy.batch(1, 6))
    np.testing.assert_array_equal(state["ema"]["buffers"]["table"], [1, 1])


def test_metrics_are_the_norms_and_rate_of_the_step():
    config = toy.experiment()
    state, step = toy.start(config)
    before = numbers(state["params"])
    state, metrics = step(state, toy.batch(1, 6))
    moved = np.sqrt(sum(((new - old) ** 2).sum() for new, old in zip(numbers(state["params"]), before, strict=True)))
    np.testing.assert_allclose(moved, 0.1 * metrics["grad_norm"], rtol=1e-5)  # plain gradient descent
    assert metrics["learning_rate"] == learning_rate(config.optimizer, 10)(0)
    length = np.sqrt(sum((parameter**2).sum() for parameter in numbers(state["params"])))
    np.testing.assert_allclose(metrics["param_norm"], length, rtol=1e-6)
    assert int(state["step"]) == 1 and int(metrics["skipped"]) == 0
    state, step = toy.start(toy.with_optimizer(config, clip_norm=1e-3))
    assert step(state, toy.batch(1, 6))[1]["grad_norm"] == metrics["grad_norm"] > 1  # the norm before clipping


def test_skip_drops_a_step_that_is_not_finite_and_counts_it():
    state, step = toy.start(toy.with_optimizer(toy.experiment(on_nonfinite="skip", ema_decay=0.9), name="adamw"))
    state, _ = step(state, toy.batch(1, 6))
    before = jax.tree.map(np.array, {key: state[key] for key in ("params", "opt_state", "buffers", "ema")})
    state, metrics = step(state, poisoned(toy.batch(1, 6)))
    assert_same({key: state[key] for key in before}, before)
    assert (int(state["step"]), int(state["skipped"])) == (2, 1)
    assert not np.isfinite(metrics["loss/total"])
    state, metrics = step(state, toy.batch(1, 6))
    assert (int(state["step"]), int(state["skipped"])) == (3, 1)
    assert np.isfinite(metrics["param_norm"])
    with pytest.raises(AssertionError):
        assert_same(state["params"], before["params"])


def test_stop_leaves_the_state_as_it_was_in_all_further_steps():
    state, step = toy.start(toy.experiment(on_nonfinite="stop"))
    state, _ = step(state, toy.batch(1, 6))
    before = jax.tree.map(np.array, {key: value for key, value in state.items() if key != "skipped"})
    state, _ = step(state, poisoned(toy.batch(1, 6)))
    state, metrics = step(state, toy.batch(1, 6))  # already queued when the loop sees the failure
    assert int(metrics["skipped"]) == 2
    assert_same({key: state[key] for key in before}, before)


def test_a_non_finite_gradient_of_a_finite_loss_is_skipped():
    """The square root of 0 is finite, its derivative is not."""

    def loss(params, buffers, batch, totals, weights):
        value = jnp.sqrt(0 * params["kernel"].sum())
        return value, {"loss/next": value, "load": jnp.zeros(())}

    state, step = toy.start(toy.experiment(on_nonfinite="skip"), task=dataclasses.replace(toy.program(), loss=loss))
    state, metrics = step(state, toy.batch(1, 6))
    assert metrics["loss/total"] == 0 and int(state["skipped"]) == 1


def test_a_non_finite_loss_with_a_finite_gradient_is_skipped():
    def loss(params, buffers, batch, totals, weights):
        value = params["kernel"].sum() + jnp.inf
        return value, {"loss/next": value, "load": jnp.zeros(())}

    state, step = toy.start(toy.experiment(on_nonfinite="skip"), task=dataclasses.replace(toy.program(), loss=loss))
    state, metrics = step(state, toy.batch(1, 6))
    assert np.isfinite(metrics["grad_norm"]) and int(state["skipped"]) == 1


def test_the_learning_rate_metric_includes_the_plateau():
    """The gradient is zero in all steps; the loss is the mean of the batch's targets."""

    def loss(params, buffers, batch, totals, weights):
        value = batch["y"].mean() + 0 * params["kernel"].sum()
        return value, {"loss/next": value, "load": jnp.zeros(())}

    schedule = ScheduleConfig(name="plateau", step_every=1, patience=1, decay_ratio=0.5)
    config = toy.with_optimizer(toy.experiment(), peak_lr=1e-9, schedule=schedule)
    state, step = toy.start(config, task=dataclasses.replace(toy.program(), loss=loss))
    rates = []
    for value in (4.0, 3.0, 2.0, 1.0, 1.0, 1.0):
        state, metrics = step(state, toy.batch(1, 6) | {"y": np.full((1, 6), value, np.float32)})
        rates.append(float(metrics["learning_rate"]))
    assert rates[:4] == pytest.approx([1e-9] * 4) and rates[-1] < 0.6e-9, rates


def test_a_second_call_compiles_nothing():
    state, step = toy.start(toy.experiment())
    for _ in range(3):
        state, _ = step(state, toy.batch(1, 6))
    assert step._cache_size() == 1


def test_state_is_donated():
    state, step = toy.start(toy.experiment())
    kept = state["params"]["kernel"]
    step(state, toy.batch(1, 6))
    assert kept.is_deleted()


def test_shapes_of_the_state_survive_a_step():
    state, step = toy.start(toy.experiment(ema_decay=0.5))
    shapes = jax.tree.map(jnp.shape, state)
    state, _ = step(state, toy.batch(1, 6))
    assert jax.tree.map(jnp.shape, state) == shapes


def test_schedules_count_updates_not_steps():
    """A skipped step makes none: the loss, the buffers and the learning rate see the same update number again."""

    def loss(params, buffers, batch, totals, scheduled):
        value, aux = toy.program().loss(params, buffers, batch, totals, scheduled)
        return value, aux | {"scheduled": jnp.float32(scheduled["update"])}

    task = dataclasses.replace(
        toy.program(),
        loss=loss,
        scheduled=lambda update: {"update": update},
        update_buffers=lambda params, buffers, aux, update: {"bias": jnp.float32(update)},
    )
    schedule = ScheduleConfig(name="cosine", warmup_steps=5)
    config = toy.with_optimizer(toy.experiment(on_nonfinite="skip"), schedule=schedule)
    state, step = toy.start(config, task=task)
    seen = []
    for batch in (toy.batch(1, 6), poisoned(toy.batch(1, 6)), toy.batch(1, 6)):
        state, metrics = step(state, batch)
        seen.append((int(metrics["scheduled"]), int(state["buffers"]["bias"]), float(metrics["learning_rate"])))
    rates = [float(learning_rate(config.optimizer, 10)(update)) for update in (0, 1)]
    np.testing.assert_allclose(seen, [(0, 0, rates[0]), (1, 0, rates[1]), (1, 1, rates[1])], rtol=1e-6)
