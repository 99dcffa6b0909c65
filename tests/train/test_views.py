"""Views (views/view.py): a program trained through one view wrapped in another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.state import initial_state, scored_model
from deepseek_jax.train.step import make_step
from deepseek_jax.train.views import viewed
from deepseek_jax.views.view import View
from tests.train import toy

# Only `kernel` is trained; the norm moves to the buffers.
FREEZE = View(
    split=lambda params, buffers: (
        {"kernel": params["kernel"]},
        {"model": buffers, "frozen": {"norm": params["norm"]}},
    ),
    weights=lambda params, buffers, update: (params | buffers["frozen"], buffers["model"]),
    axes=lambda params, buffers: ({"kernel": params["kernel"]}, {"model": buffers, "frozen": {"norm": params["norm"]}}),
)
# Masks the kernel's first number to 0, and counts the updates in a buffer.
MASK = View(
    split=lambda params, buffers: (
        params,
        {"model": buffers, "mask": jnp.arange(toy.WIDTH) > 0, "seen": jnp.zeros(())},
    ),
    weights=lambda params, buffers, update: (params | {"kernel": params["kernel"] * buffers["mask"]}, buffers["model"]),
    axes=lambda params, buffers: (params, {"model": buffers, "mask": ("embed",), "seen": ()}),
    update=lambda params, buffers, update: buffers | {"seen": buffers["seen"] + 1},
)


@pytest.fixture
def program():
    return viewed(viewed(toy.program(), FREEZE), MASK)


def test_trained_arrays_become_the_models_weights_and_back(program):
    params, buffers = program.make_parameters()
    assert list(params) == ["kernel"]
    model, own = program.to_model(params, buffers)
    np.testing.assert_array_equal(model["kernel"], [0.0, 2.0, 3.0, 4.0])
    assert set(model) == {"kernel", "norm"} and set(own) == {"bias"}
    again = program.from_model(model, own)
    np.testing.assert_array_equal(again[0]["kernel"], model["kernel"])
    assert jax.tree.structure(again) == jax.tree.structure((params, buffers))


def test_axes_match_the_trained_and_kept_arrays(program):
    params, buffers = program.make_parameters()

    def is_names(node):
        return isinstance(node, tuple)

    for axes, arrays in ((program.axes, params), (program.buffer_axes, buffers)):
        lengths = jax.tree.map(len, axes, is_leaf=is_names)
        assert lengths == jax.tree.map(jnp.ndim, arrays)


def test_a_step_moves_what_is_trained_and_nothing_else(program):
    experiment = toy.experiment(ema_decay=0.9)
    optimizer = make_optimizer(experiment.optimizer, 10)
    state = initial_state(program, *program.make_parameters(), optimizer, ema=True)
    batch = {"x": jnp.ones((1, 2, toy.WIDTH)), "y": jnp.zeros((1, 2)), "weight": jnp.ones((1, 2))}
    after, metrics = make_step(program, optimizer, experiment)(state, batch)
    moved = np.asarray(after["params"]["kernel"] != state["params"]["kernel"])
    np.testing.assert_array_equal(moved, [False, True, True, True])
    kept = after["buffers"]
    assert kept["seen"] == 1 and kept["model"]["model"]["bias"] > 0
    np.testing.assert_array_equal(kept["model"]["frozen"]["norm"]["scale"], np.ones(toy.WIDTH))
    assert after["ema"]["buffers"].keys() == {"model"} and after["ema"]["buffers"]["model"].keys() == {"model"}
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=3e-7)
    jax.tree.map(same, scored_model(after), (after["params"], kept))  # the average of a single update is its result
    assert metrics["loss/total"] == pytest.approx(81.0)  # (2 + 3 + 4) squared, without the masked number
