"""The optimizer chain: clipping, weight decay, the first steps of each optimizer, parameter groups, the plateau."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.config import OPTIMIZERS, OptimizerConfig, ScheduleConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.presets import preset
from deepseek_jax.train.optim import groups
from deepseek_jax.train.optim.optimizer import decay_mask, make_optimizer, plateau_factor
from tests.train import tiny

CONSTANT = ScheduleConfig(name="constant")


def one_update(params, gradient, **settings):
    optimizer = make_optimizer(OptimizerConfig(schedule=CONSTANT, **settings), steps=10)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params, value=0.0)
    return optax.apply_updates(params, updates)


def test_weight_decay_spares_norms_biases_and_embeddings_of_the_real_model():
    config = dataclasses.replace(tiny.MOE, attention_bias=True)
    params = jax.eval_shape(lambda: initialise(config, jax.random.key(0)))[1]
    spared = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-1]
        for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(params))
        if not decays
    }
    assert spared == {"embedding", "scale", "q_down_bias", "kv_down_bias", "out_bias"}
    mask = decay_mask(params)
    assert mask["head"] and all(jax.tree.leaves(mask["layers"]["1-1"]["feed_forward"]))


def test_weight_decay_in_v4_is_decided_by_the_last_part_of_a_path():
    params = jax.eval_shape(lambda: initialise(preset("v4-flash"), jax.random.key(0)))[1]
    mask = tree.by_path(decay_mask(params))
    spared = {path.split("/")[-1] for path, decays in mask.items() if not decays}
    assert spared == {"embedding", "scale", "bias", "position_bias", "sinks"}
    assert mask["mtp/0/project_embedding"] and mask["mtp/0/project_hidden"]


def test_clipping_takes_a_norm_that_is_known():
    params, gradient = {"kernel": jnp.zeros(2)}, {"kernel": jnp.array([3.0, 4.0])}
    settings = {"name": "sgd", "b1": 0.0, "weight_decay": 0.0, "peak_lr": 1.0, "clip_norm": 1.0, "schedule": CONSTANT}
    optimizer = make_optimizer(OptimizerConfig(**settings), steps=10)
    state = optimizer.init(params)
    for norm, expected in ({}, [-0.6, -0.8]), ({"norm": 10.0}, [-0.3, -0.4]), ({"norm": 0.5}, [-3.0, -4.0]):
        norm = {name: jnp.float32(value) for name, value in norm.items()}
        updates, after = optimizer.update(gradient, state, params, value=0.0, **norm)
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-6)
        assert jax.tree.structure(after) == jax.tree.structure(state)
    assert state[0] == optax.EmptyState(), "as optax.clip_by_global_norm had, whose checkpoints are read"


def test_stacked_norm_scales_are_spared_though_they_are_matrices():
    params = {"attention_norm": {"scale": jnp.ones((3, 8))}, "attention": {"out": jnp.ones((3, 8))}}
    after = one_update(params, jax.tree.map(jnp.zeros_like, params), peak_lr=0.5, weight_decay=0.1)
    np.testing.assert_array_equal(after["attention_norm"]["scale"], 1.0)
    np.testing.assert_allclose(after["attention"]["out"], 1 - 0.5 * 0.1)


def test_weight_decay_is_decoupled_from_the_gradient():
    """AdamW moves by lr (sign(g) + decay * p) in its first step, however small the gradient."""
    params = {"kernel": jnp.array([2.0, -2.0])}
    after = one_update(params, {"kernel": jnp.array([1e-3, 1e-3])}, peak_lr=0.1, weight_decay=0.2, clip_norm=0.0)
    np.testing.assert_allclose(after["kernel"], [2 - 0.1 * (1 + 0.4), -2 - 0.1 * (1 - 0.4)], rtol=1e-4)


@pytest.mark.parametrize("clip, expected", [(0.0, [3.0, 4.0]), (1.0, [0.6, 0.8]), (10.0, [3.0, 4.0])])
def test_gradient_is_clipped_by_its_global_norm(clip, expected):
    params = {"one": jnp.zeros(1), "two": jnp.zeros(1)}
    gradient = {"one": jnp.array([3.0]), "two": jnp.array([4.0])}
    after = one_update(params, gradient, name="sgd", peak_lr=1.0, b1=0.0, weight_decay=0.0, clip_norm=clip)
    np.testing.assert_allclose([-after["one"][0], -after["two"][0]], expected, rtol=1e-6)


def test_sgd_has_momentum():
    optimizer = make_optimizer(
        OptimizerConfig(name="sgd", peak_lr=1.0, b1=0.5, weight_decay=0.0, clip_norm=0.0, schedule=CONSTANT), steps=10
    )
    params, gradient = {"kernel": jnp.zeros(1)}, {"kernel": jnp.ones(1)}
    state, moved = optimizer.init(params), []
    for _ in range(3):
        updates, state = optimizer.update(gradient, state, params, value=0.0)
        moved.append(-float(updates["kernel"][0]))
    assert moved == [1.0, 1.5, 1.75]


@pytest.mark.parametrize(
    "name, settings, expected",
    [
        ("adam", {}, [1.0, -1.0]),  # sign(g) in the first step
        ("adam", {"nesterov": True}, [4 / 3, -4 / 3]),  # g + b1 (1 - b1) g / (1 - b1^2)
        ("adam", {"eps": 1.0}, [3 / 4, -0.5 / 1.5]),
        ("lion", {}, [1.0, -1.0]),
        ("sgd", {"nesterov": True}, [1.5 * 3, 1.5 * -0.5]),  # g + b1 (g + b1 0)
        ("rmsprop", {"b2": 0.75}, [2.0, -2.0]),  # g / sqrt((1 - b2) g^2)
        ("rmsprop", {"b2": 0.75, "nesterov": True}, [3.0, -3.0]),
        ("adagrad", {}, [3 / (0.1 + 9) ** 0.5, -0.5 / (0.1 + 0.25) ** 0.5]),  # accumulators begin at 0.1
    ],
)
def test_each_optimizers_first_step(name, settings, expected):
    params, gradient = {"kernel": jnp.zeros(2)}, {"kernel": jnp.array([3.0, -0.5])}
    plain = {"name": name, "peak_lr": 1.0, "b1": 0.5, "weight_decay": 0.0, "clip_norm": 0.0} | settings
    after = one_update(params, gradient, **plain)
    np.testing.assert_allclose(-after["kernel"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("adam", 1 / 3),  # m = (b1 3 - 0.5) (1 - b1) / (1 - b1^2), v = (b2 9 + 0.25) (1 - b2) / (1 - b2^2)
        ("lion", 1.0),  # the sign of b1 m + (1 - b1) g, m = (1 - b2) 3
        ("rmsprop", 0.5 * 2.0 - 0.5 / (0.25 * 7) ** 0.5),  # momentum of g / sqrt(v)
        ("adagrad", -0.5 / (0.1 + 9 + 0.25) ** 0.5),
    ],
)
def test_each_optimizers_second_step_decays_its_moments_as_configured(name, expected):
    """Checked in a second step, with gradient -0.5 after 3: the first would not show the decay of the moments."""
    plain = {"name": name, "peak_lr": 1.0, "b1": 0.5, "b2": 0.75, "weight_decay": 0.0, "clip_norm": 0.0}
    optimizer, params = make_optimizer(OptimizerConfig(schedule=CONSTANT, **plain), steps=10), {"kernel": jnp.zeros(1)}
    state = optimizer.init(params)
    for gradient in (3.0, -0.5):
        updates, state = optimizer.update({"kernel": jnp.array([gradient])}, state, params, value=0.0)
    np.testing.assert_allclose(-updates["kernel"], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["adagrad", "lion", "own"])
def test_nesterov_is_refused_where_it_would_do_nothing(name, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "own", ())
    with pytest.raises(UserError, match=f"optimizer.nesterov is set, but {name} does not use it"):
        OptimizerConfig(name=name, nesterov=True)


def test_a_listed_optimizer_without_an_implementation_raises_a_key_error(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "forgotten", ())
    with pytest.raises(KeyError, match="forgotten"):
        make_optimizer(OptimizerConfig(name="forgotten"), steps=10)


def test_groups_scale_learning_rate_and_decay_by_path():
    params = {"body": {"kernel": jnp.ones(1)}, "head": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    plain = {"name": "sgd", "peak_lr": 0.5, "b1": 0.0, "weight_decay": 0.1, "clip_norm": 0.0}
    after = one_update(params, params, groups=("kernel decay=2", "^head/ lr=0.1", "head/k decay=0"), **plain)
    np.testing.assert_allclose(after["body"]["kernel"], 1 - 0.5 * (1 + 0.2))
    np.testing.assert_allclose(after["head"]["kernel"], 1 - 0.05 * 1)
    np.testing.assert_allclose(after["head"]["bias"], 1 - 0.05 * 1)  # biases never decay


@pytest.mark.parametrize("group", ["head", "head lr=x", "head speed=2", "", "( lr=1", "head lr=-1"])
def test_a_malformed_group_is_refused(group):
    with pytest.raises(UserError, match="optimizer.groups"):
        OptimizerConfig(groups=("head lr=1", group))


def test_a_group_that_matches_no_parameter_is_refused():
    with pytest.raises(UserError, match="groups has 'heed', .* there are head"):
        groups.check(("head lr=1", "heed lr=1"), {"head": jnp.ones(1)})


def test_a_plateau_of_the_training_loss_lowers_the_rate():
    schedule = ScheduleConfig(name="plateau", step_every=2, patience=2, decay_ratio=0.5)
    optimizer = make_optimizer(
        OptimizerConfig(name="sgd", peak_lr=1.0, b1=0.0, weight_decay=0.0, clip_norm=0.0, schedule=schedule), steps=99
    )
    params = {"kernel": jnp.zeros(1)}
    state, moved = optimizer.init(params), []
    for loss in (4.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0):  # only the second pair of steps is better
        updates, state = optimizer.update({"kernel": jnp.ones(1)}, state, params, value=loss)
        moved.append(-float(updates["kernel"][0]))
    assert moved[:7] == [1.0] * 7 and moved[-1] == 0.5 == plateau_factor(state), moved
