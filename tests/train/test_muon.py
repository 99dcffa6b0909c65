"""Muon against plain numpy: which parameters it updates, one matrix per expert, and the size of its updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from deepseek_jax.config import Experiment, OptimizerConfig, ScheduleConfig
from deepseek_jax.models import tree
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.hybrid.convolution import Convolution
from deepseek_jax.models.hybrid.recurrent import LSTM
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train.loop import train
from deepseek_jax.train.optim import muon
from deepseek_jax.train.optim.muon import MatrixDims, dims_of, matrix_dims, orthogonal_update, orthogonalise
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.state import abstract_state
from deepseek_jax.train.views import as_trained
from deepseek_jax.tune.config import LoraConfig, TuneConfig
from tests.parallel import orthogonalised
from tests.parallel.curves import V4
from tests.train import tiny


def newton_schulz(x):
    """Of one matrix in float64, as V4 describes: eight steps with one set of coefficients, two with another."""
    x = np.asarray(x, np.float64)
    x = x / np.linalg.norm(x)
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2:
        square = x @ x.T
        x = a * x + b * square @ x + c * square @ square @ x
    return x


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_orthogonalise_matches_numpy_and_is_nearly_the_polar_factor(shape):
    x = np.random.default_rng(0).normal(size=shape)
    found = np.asarray(orthogonalise(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(found, newton_schulz(x), atol=2e-4)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(found, u @ v, atol=0.02)


def test_each_stacked_expert_is_orthogonalised_on_its_own():
    """[layers, experts, in, out]: scaling one expert's momentum changes no other's update, nor its own."""
    momentum = np.random.default_rng(1).normal(size=(2, 3, 5, 7)).astype(np.float32)
    louder = momentum.copy()
    louder[1, 2] *= 100
    dims = MatrixDims(counted=2, rows=1)
    update = np.asarray(orthogonal_update(jnp.asarray(momentum), dims))
    np.testing.assert_allclose(orthogonal_update(jnp.asarray(louder), dims), update, atol=1e-4)
    np.testing.assert_allclose(update[1, 2], newton_schulz(momentum[1, 2]) * 0.18 * 7**0.5, atol=1e-3)
    np.testing.assert_allclose(np.sqrt((update**2).mean((-2, -1))), 0.18, rtol=0.02)


def test_heads_are_flattened_into_one_side_of_a_matrix():
    momentum = np.random.default_rng(2).normal(size=(4, 3, 5)).astype(np.float32)
    into_heads = orthogonal_update(jnp.asarray(momentum), matrix_dims("q_up", ("rank", "heads", None)))
    np.testing.assert_allclose(
        into_heads.reshape(4, 15), newton_schulz(momentum.reshape(4, 15)) * 0.18 * 15**0.5, atol=1e-3
    )
    out_of_heads = orthogonal_update(jnp.asarray(momentum), matrix_dims("out", ("heads", None, "embed")))
    np.testing.assert_allclose(
        out_of_heads.reshape(12, 5), newton_schulz(momentum.reshape(12, 5)) * 0.18 * 12**0.5, atol=1e-3
    )


def test_grouped_outputs_are_one_matrix_per_group():
    momentum = np.random.default_rng(2).normal(size=(2, 3, 5)).astype(np.float32)
    update = orthogonal_update(jnp.asarray(momentum), matrix_dims("out_down", ("heads", None, "rank")))
    expected = [newton_schulz(group) * 0.18 * 5**0.5 for group in momentum]
    np.testing.assert_allclose(update, expected, atol=1e-3)


def test_large_stacks_are_orthogonalised_in_parts(monkeypatch):
    """Seven matrices by two or three at a time: the last part overlaps with the one before."""
    momentum = jnp.asarray(np.random.default_rng(4).normal(size=(7, 4, 6)), jnp.float32)
    whole = orthogonal_update(momentum, MatrixDims(1, 1))
    for at_once in (2, 3):
        monkeypatch.setattr(muon, "AT_ONCE", at_once * 4 * 6)
        np.testing.assert_allclose(orthogonal_update(momentum, MatrixDims(1, 1)), whole, atol=1e-6)


def test_devices_exchange_sharded_matrices_and_get_the_updates_of_one_device(on_devices):
    """Only all-to-alls: a product of sharded matrices would need an all-reduce in each of the ten steps."""
    meshes = {"fsdp": 4}, {"fsdp": 2, "tensor": 2}, {"expert": 2, "fsdp": 2}, {"stage": 2, "fsdp": 2}, {"data": 4}
    for mesh, found in zip(meshes, on_devices(4, orthogonalised.on_meshes, *meshes), strict=True):
        assert max(found["errors"].values()) < 1e-5, (mesh, found["errors"])
        assert set(found["collectives"]) == ({"all-to-all"} if mesh != {"data": 4} else set()), mesh


def names_with_adam(module) -> set[str]:
    axes = tree.logical_axes(module)[0]
    found = jax.tree_util.tree_leaves_with_path(dims_of(axes), is_leaf=lambda node: node is None)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, dims in found if dims is None}


def test_which_parameters_of_a_decoder_stay_with_adam():
    model = jax.eval_shape(lambda: Decoder(dataclasses.replace(V4, hc_mult=2), rngs=nnx.Rngs(params=jax.random.key(0))))
    left = names_with_adam(model)
    assert {"embedding", "head", "norm/scale", "layers/0-0/feed_forward/router/kernel"} <= left
    assert {name.split("/")[-1] for name in left} == {
        *("embedding", "head", "scale", "kernel", "bias", "sinks", "position_bias")
    }
    kernels = {name for name in left if name.endswith("kernel")}
    assert all("router" in name or "stream_head" in name for name in kernels), kernels


def test_kernels_of_convolutions_and_gates_stay_with_adam():
    rngs = nnx.Rngs(params=jax.random.key(0))
    assert names_with_adam(Convolution(2, 4, 8, 3, bias=True, raw=False, rngs=rngs)) == {"kernel", "bias"}
    assert names_with_adam(Convolution(1, 4, 8, 3, bias=False, raw=True, rngs=rngs)) == {"kernel"}
    assert names_with_adam(LSTM(4, 8, raw=False, rngs=rngs)) == {"input", "state", "bias"}


def test_dora_magnitudes_stay_with_adam():
    """DoRA's magnitudes of a per-head projection are [heads, head width], which is not a matrix to orthogonalise."""
    tune = TuneConfig(lora=LoraConfig(rank=2, dora=True))
    experiment = Experiment(model=tiny.DENSE, tune=tune, optimizer=OptimizerConfig(name="muon"))
    axes = as_trained(language_model_program(experiment, np.ones(1)), experiment).axes
    of_query = dims_of(axes)["adapters"]["layers"]["0-0"]["attention"]["q_up"]
    assert of_query["scale"] is None and of_query["a"] == MatrixDims(counted=1, rows=1)


def test_two_steps_of_the_chain():
    """Nesterov momentum of 0.95 for the matrix, AdamW for the norm; both share one learning rate and weight decay."""
    config = OptimizerConfig(
        name="muon", peak_lr=0.1, weight_decay=0.5, clip_norm=0.0, schedule=ScheduleConfig(name="constant")
    )
    axes = {"kernel": ("embed", "mlp"), "norm": {"scale": ("embed",)}}
    optimizer = make_optimizer(config, steps=10, axes=axes)
    rng = np.random.default_rng(3)
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32), "norm": {"scale": jnp.ones(4)}}
    first, second = (rng.normal(size=(4, 6)).astype(np.float32) for _ in range(2))
    state = optimizer.init(params)
    for gradient, of_norm in ((first, 2.0), (second, 1.0)):
        gradients = {"kernel": jnp.asarray(gradient), "norm": {"scale": jnp.full(4, of_norm)}}
        updates, state = optimizer.update(gradients, state, params, value=0.0)
    momentum = second + 0.95 * (second + 0.95 * first)
    expected = -0.1 * (newton_schulz(momentum) * 0.18 * 6**0.5 + 0.5 * np.asarray(params["kernel"]))
    np.testing.assert_allclose(updates["kernel"], expected, atol=2e-4)
    mean, square = (0.9 * 2 + 1) * 0.1 / (1 - 0.9**2), (0.95 * 4 + 1) * 0.05 / (1 - 0.95**2)
    np.testing.assert_allclose(updates["norm"]["scale"], -0.1 * mean / square**0.5, rtol=1e-5)


def test_bfloat16_moments_leave_the_newton_schulz_coefficients_in_float32():
    config = OptimizerConfig(name="muon", moment_dtype="bfloat16", schedule=ScheduleConfig(name="constant"))
    program_axes, params = {"kernel": ("embed", "mlp")}, {"kernel": jnp.ones((4, 4))}
    state = make_optimizer(config, steps=10, axes=program_axes).init(params)
    floating = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert [leaf.shape for leaf in floating if leaf.dtype == jnp.bfloat16] == [(4, 4)]


def test_each_parameter_has_the_moments_of_one_optimizer_only():
    """Muon's parameters have one moment and AdamW's two; neither stores anything for the other's parameters."""
    experiment = Experiment(model=tiny.MOE, optimizer=OptimizerConfig(name="muon"))
    program = language_model_program(experiment, np.ones(1))
    optimizer = make_optimizer(experiment.optimizer, 10, program.axes)
    state = abstract_state(program, optimizer, make_mesh(experiment.mesh), ema=False)

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim)

    with_adam = names_with_adam(jax.eval_shape(lambda: Decoder(tiny.MOE, rngs=nnx.Rngs(params=jax.random.key(0)))))
    adam = sum(leaf.size for path, leaf in tree.by_path(state["params"]).items() if path in with_adam)
    assert count(state["opt_state"]) == count(state["params"]) + adam


@pytest.mark.slow
def test_a_decoder_learns_with_muon(tmp_path):
    experiment = tiny.experiment(tmp_path, tiny.ROUTED, steps=12)
    muon = dataclasses.replace(experiment.optimizer, name="muon")
    scores = train(dataclasses.replace(experiment, optimizer=muon), tmp_path / "run", Console(quiet=True))
    assert scores["final/loss"] < np.log(400) - 0.1
