"""Quantised weights stored in the buffers, or rounded in every forward pass: what is trained, stored and computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from deepseek_jax.compress.config import PruneConfig, QuantizeConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.models.decoder import Decoder, initialise
from deepseek_jax.models.lazy import materialised
from deepseek_jax.models.tree import flatten
from deepseek_jax.parallel import rules
from deepseek_jax.train import views
from deepseek_jax.tune.config import LoraConfig, TuneConfig
from deepseek_jax.views.matrices import matrix_of
from deepseek_jax.views.quantized import ROUNDED, quantized_view
from deepseek_jax.views.rounding import Format, rounded
from tests.parallel.meshes import abstract_mesh
from tests.views import training


@pytest.fixture(scope="module")
def model():
    _, params, buffers = initialise(training.MODEL, jax.random.key(0))
    return params, buffers


@pytest.mark.parametrize("config", [QuantizeConfig("int8"), QuantizeConfig("int4", 16), QuantizeConfig("fp4")])
def test_stored_weights_have_the_small_dtype_and_are_the_rounded_ones(model, config):
    view, flat = quantized_view(config), flatten(model[0])
    params, buffers = jax.jit(view.split)(*model)
    back, own = jax.jit(lambda *kept: materialised(view.weights(*kept, None)))(params, buffers)
    assert jax.tree.structure((back, own)) == jax.tree.structure(model)
    trained, form = flatten(params), Format(config.weights, config.group)
    expected = jax.jit(lambda flat: {path: _rounded(path, leaf, form) for path, leaf in flat.items()})(
        {path: leaf for path, leaf in flat.items() if path not in trained}
    )
    for path, leaf in flatten(back).items():
        np.testing.assert_allclose(leaf, (flat | expected)[path], rtol=3e-7, err_msg=path)
    assert ("embedding" in trained) == (config.weights == "fp4")
    sizes = {leaf.dtype.name for path, leaf in flatten(buffers["rounded"]).items() if "values" in path}
    assert sizes == {"int8" if config.weights == "int8" else "uint8"}


def _rounded(path, leaf, form):
    return rounded(matrix_of(path, leaf.ndim).fold(leaf), form).reshape(leaf.shape)


@pytest.mark.parametrize(
    "config", [QuantizeConfig("int4", 16), QuantizeConfig("fp8"), QuantizeConfig("int8", 0, "", True)]
)
def test_axes_match_the_trained_and_stored_arrays(model, config):
    axes = tree.logical_axes(jax.eval_shape(lambda: Decoder(training.MODEL, rngs=nnx.Rngs(params=0))))
    view = quantized_view(config)
    for names, arrays in zip(view.axes(*axes), jax.eval_shape(view.split, *model), strict=True):
        lengths = jax.tree.map(len, names, is_leaf=lambda node: isinstance(node, tuple))
        assert lengths == jax.tree.map(lambda leaf: leaf.ndim, arrays)


@pytest.mark.parametrize("kind", ["int4", "fp4"])
def test_packed_weights_are_sharded_where_the_mesh_divides_them(kind):
    """Two 4-bit inputs share a byte: 24 inputs divide over 8 devices, but their 12 bytes do not and are replicated."""
    config, view = dataclasses.replace(training.MODEL, hidden_size=24), quantized_view(QuantizeConfig(kind))
    axes = tree.logical_axes(jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0))))
    kept = jax.eval_shape(lambda: view.split(*initialise(config, jax.random.key(0))[1:]))
    _, at = (rules.shardings(abstract_mesh(fsdp=8), *each) for each in zip(view.axes(*axes), kept))
    gate, down = (
        flatten(at[ROUNDED])[f"layers/1-1/feed_forward/shared/{name}/values"].spec for name in ("gate", "down")
    )
    assert (gate, down) == (PartitionSpec(None, None, "tensor"), PartitionSpec(None, "tensor", "fsdp"))


def test_gradients_pass_straight_through_rounding(model):
    view = quantized_view(QuantizeConfig("int4", 16, paths="experts/", trained=True))
    params, buffers = view.split(*model)

    def loss(params):
        weights = materialised(view.weights(params, buffers, jnp.int32(3))[0])
        weights = weights["layers"]["1-1"]["feed_forward"]["experts"]["up"]
        return jnp.sum(weights**2), weights

    (_, weights), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    up = params["layers"]["1-1"]["feed_forward"]["experts"]["up"]
    new = rounded(matrix_of("layers/1-1/feed_forward/experts/up", 4).fold(up), Format("int4", 16)).reshape(up.shape)
    np.testing.assert_allclose(weights, new, rtol=3e-7)
    np.testing.assert_array_equal(gradient["layers"]["1-1"]["feed_forward"]["experts"]["up"], 2 * weights)


@pytest.mark.slow
def test_training_with_rounded_weights_learns():
    config = QuantizeConfig("int4", 16, trained=True)
    state, step, _, mesh = training.start(training.experiment(prune=PruneConfig(), quantize=config), {})
    losses = []
    for _ in range(8):
        state, measured = step(state, training.batch(0, mesh))
        losses.append(float(measured["loss/total"]))
    assert losses[-1] < losses[0] - 0.02


def test_groups_and_paths_that_fit_no_matrix_are_refused(model):
    with pytest.raises(UserError, match=r"quantize.group is 24, which divides the inputs of no matrix here .*16"):
        quantized_view(QuantizeConfig("int8", 24)).split(*model)
    with pytest.raises(UserError, match="quantize.group is 32, which is for int8 and int4; quantize.weights is fp8"):
        QuantizeConfig("fp8", 32)
    with pytest.raises(UserError, match="quantize.paths is 'nothing', which matches no matrix's path"):
        quantized_view(QuantizeConfig("int8", paths="nothing")).split(*model)


@pytest.mark.slow
def test_adapters_are_trained_over_four_bits(model):
    """QLoRA: only the adapters are trained; the weights that they modify are stored in 4 bits."""
    tune, config = TuneConfig(lora=LoraConfig(rank=2)), QuantizeConfig("int4", 16)
    experiment = training.experiment(prune=PruneConfig(), quantize=config, tune=tune)
    params, buffers = jax.jit(lambda *model: views.split(experiment, *model))(*model)
    assert {path.split("/")[0] for path in flatten(params)} == {"adapters"}
    back, own = jax.jit(lambda *kept: views.weights(experiment, *kept))(params, buffers)
    plain = quantized_view(config)
    expected, _ = jax.jit(lambda *model: materialised(plain.weights(*plain.split(*model), None)))(*model)
    jax.tree.map(lambda *each: np.testing.assert_allclose(*each, rtol=3e-7), back, expected)  # adapters begin at zero
    assert jax.tree.structure(own) == jax.tree.structure(model[1])
    axes = tree.logical_axes(jax.eval_shape(lambda: Decoder(training.MODEL, rngs=nnx.Rngs(params=0))))
    for names, arrays in zip(views.axes(experiment, *axes), (params, buffers), strict=True):
        lengths = jax.tree.map(len, names, is_leaf=lambda node: isinstance(node, tuple))
        assert lengths == jax.tree.map(lambda leaf: leaf.ndim, arrays)
