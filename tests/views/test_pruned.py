"""Pruning while training: the schedule, zeros that stay zero, masks in checkpoints and on any mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.config import CheckpointConfig
from deepseek_jax.models.lazy import materialised
from deepseek_jax.models.tree import flatten, unflatten
from deepseek_jax.train.checkpoints.checkpoint import Checkpoints, RunPosition
from deepseek_jax.train.state import shardings_of
from deepseek_jax.views.pruned import pruned_view, sparsity_at
from tests.views import training


def test_the_sparsity_schedule_is_cubic():
    config = PruneConfig(method="magnitude", sparsity=0.8, begin=0.1, end=0.5)
    at = [float(sparsity_at(config, 100, jnp.asarray(step))) for step in (0, 10, 30, 50, 90)]
    assert at == pytest.approx([0, 0, 0.8 * (1 - 0.5**3), 0.8, 0.8])


@pytest.mark.parametrize("begin", [0.0, 1.0])
def test_a_schedule_that_ends_with_the_run_reaches_its_sparsity_in_the_last_update(begin):
    config = PruneConfig(method="magnitude", sparsity=0.5, begin=begin, end=1.0, every=100)
    view, params = pruned_view(config, 10), {"attention": {"out": jnp.arange(1.0, 17).reshape(4, 4)}}
    params, buffers = view.split(params, {})
    for number in range(10):
        buffers = view.update(params, buffers, jnp.asarray(number))
    assert not buffers["masks"]["attention"]["out"][:2].any() and buffers["masks"]["attention"]["out"][2:].all()


@pytest.fixture(scope="module")
def gradual():
    """(the states before each step and after the last, abstract state, compiled step, mesh)."""
    state, step, abstract, mesh = training.start(training.experiment(), {})
    states = [jax.device_get(state)]
    for number in range(training.STEPS):
        state, _ = step(state, training.batch(number, mesh))
        states.append(jax.device_get(state))
    return states, abstract, step, mesh


def weights(state) -> dict:
    view = pruned_view(training.GRADUAL, training.STEPS)
    return flatten(materialised(view.weights(state["params"], state["buffers"], None)[0]))


def test_more_and_more_weights_are_pruned_and_none_returns(gradual):
    states, *_ = gradual
    paths = flatten(states[0]["buffers"]["masks"])
    assert "embedding" not in paths and not any("router" in path for path in paths)
    shares = [_zeros([weights(state)[path] for path in paths]) for state in states]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(0.5, abs=0.01)
    for before, after in zip(states, states[1:]):
        masks_of = (flatten(state["buffers"]["masks"]) for state in (before, after))
        for old, new in zip(*(each.values() for each in masks_of)):
            assert not (new & ~old).any()


def _zeros(arrays) -> float:
    return sum(int((array == 0).sum()) for array in arrays) / sum(array.size for array in arrays)


def test_masks_are_checkpointed_and_training_resumes_bit_for_bit(gradual, tmp_path):
    states, abstract, step, mesh = gradual
    half = training.STEPS // 2
    with Checkpoints(tmp_path, CheckpointConfig(), print) as checkpoints:
        checkpoints.save(jax.device_put(states[half], shardings_of(abstract)), RunPosition(half))
        checkpoints.wait()
        state, _ = checkpoints.restore(abstract)
    for number in range(half, training.STEPS):
        state, _ = step(state, training.batch(number, mesh))
    for one, other in zip(jax.tree.leaves(jax.device_get(state)), jax.tree.leaves(states[-1]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_initial_zeros_stay_zero(gradual):
    """With method "zeros", the zeros of a model that `prune` wrote stay zero in further training."""
    config = PruneConfig(method="zeros", paths="experts/")
    model = weights(gradual[0][-1])
    params, buffers = pruned_view(config, 10).split(unflatten(model), {})
    grown = jax.tree.map(lambda leaf: leaf + 1, params)
    after = flatten(materialised(pruned_view(config, 10).weights(grown, buffers, 3)[0]))
    for path, leaf in model.items():
        expected = np.where(leaf == 0, 0, leaf + 1) if "experts/" in path else leaf + 1
        np.testing.assert_array_equal(after[path], expected)


def test_masked_weights_get_no_gradient():
    view = pruned_view(PruneConfig(method="zeros"), 10)
    params, buffers = view.split({"attention": {"q": jnp.array([[1.0, 0.0], [2.0, 3.0]])}}, {})
    gradient = jax.grad(lambda params: view.weights(params, buffers, 1)[0]["attention"]["q"].sum())(params)
    np.testing.assert_array_equal(gradient["attention"]["q"], [[1, 0], [1, 1]])


@pytest.mark.slow
def test_pruning_and_qlora_on_eight_devices_equal_one_device(on_devices):
    one, many = on_devices(8, training.on_meshes, "one", "fsdp=2,expert=2,tensor=2").values()
    for name in ("pruned", "rounded"):
        np.testing.assert_allclose(many[name], one[name], rtol=1e-5, err_msg=name)
        assert all(math.isfinite(loss) for loss in one[name])
    assert many["masks"] == one["masks"]


def test_pruned_weights_stay_pruned_however_large_they_become():
    config = PruneConfig(method="magnitude", sparsity=0.5, end=0.8, every=4)
    rising = {"attention": {"out": jnp.arange(1.0, 65).reshape(8, 8)}}
    view, falling = pruned_view(config, 10), {"attention": {"out": rising["attention"]["out"][::-1]}}
    rising, buffers = view.split(rising, {})
    early = view.update(rising, buffers, jnp.asarray(4))["masks"]["attention"]["out"]
    late = view.update(falling, {"masks": {"attention": {"out": early}}}, jnp.asarray(8))["masks"]["attention"]["out"]
    assert not early[:3].any() and not late[:3].any() and late.sum() == 32


def test_masks_change_only_every_few_updates():
    config = PruneConfig(method="magnitude", sparsity=0.5, begin=0.2, end=0.8, every=4)
    view, weights = pruned_view(config, 10), {"attention": {"out": jnp.arange(1.0, 65).reshape(8, 8)}}
    weights, buffers = view.split(weights, {})
    changed = []
    for number in range(10):
        after = view.update(weights, buffers, jnp.asarray(number))
        if (after["masks"]["attention"]["out"] != buffers["masks"]["attention"]["out"]).any():
            changed.append(number)
        buffers = after
    assert changed == [6, 8]  # at 2, where pruning begins, the sparsity is still 0
