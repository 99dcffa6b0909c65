"""The hybrid network and its parts compute what PyTorch computed, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models import tree
from deepseek_jax.models.hybrid.config import AttentionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.models.hybrid.convolution import Convolution
from deepseek_jax.models.hybrid.feature_norms import BatchNorm, updated_buffers
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.models.hybrid.pooling import pool, real_steps
from deepseek_jax.models.hybrid.recurrent import Recurrent
from deepseek_jax.models.hybrid.self_attention import SelfAttention
from tests.paths import GOLDENS

EXPECTED = np.load(GOLDENS / "hybrid/expected.npz")


def golden(case: str) -> dict[str, np.ndarray]:
    """The arrays of one case, by their names without "CASE/"."""
    return {name.removeprefix(f"{case}/"): EXPECTED[name] for name in EXPECTED if name.startswith(f"{case}/")}


def of(arrays: dict, kind: str) -> dict[str, np.ndarray]:
    """The arrays of kind "weight" or "gradient" by PyTorch's names."""
    return {name.removeprefix(f"{kind}/"): value for name, value in arrays.items() if name.startswith(f"{kind}/")}


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def check(call, params, arrays, gradients, layout=lambda x: x):
    """Checks that `call(params, x)` gives y, and its vjp of dy gives `gradients` and dx.

    `layout` brings arrays from PyTorch's order of dimensions to ours.
    """
    x, y, dy, dx = (layout(arrays[name]) for name in ("x", "y", "dy", "dx"))
    run = jax.jit(lambda params, x, dy: (lambda y, back: (y, *back(dy)))(*jax.vjp(call, params, x)))
    found_y, found_gradients, found_dx = run(params, x, dy)
    np.testing.assert_allclose(found_y, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found_dx, dx, rtol=1e-5, atol=2e-5)
    assert jax.tree.structure(found_gradients) == jax.tree.structure(gradients)
    for found, expected in zip(jax.tree.leaves(found_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))


def kernel(weight):
    """A PyTorch kernel [out, in, ...] as ours [..., in, out]."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def conv(weights):
    return {"kernel": kernel(weights["weight"]), "bias": weights["bias"]}


def cell(kind: str, weights: dict, suffix: str) -> dict:
    """Our parameters of one direction of one layer.

    PyTorch's biases on the state duplicate those on the input, except for the last third of a GRU's.
    """
    gates = {"lstm": 4, "gru": 3}[kind]
    split = {name: weights[f"{name}_{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    split = {name: value.reshape(gates, -1, *value.shape[1:]) for name, value in split.items()}
    params = {
        "input": split["weight_ih"].transpose(2, 0, 1),
        "state": split["weight_hh"].transpose(2, 0, 1),
        "bias": split["bias_ih"],
    }
    return params | ({"state_bias": split["bias_hh"][2]} if kind == "gru" else {})


def layers(kind: str, weights: dict, config: RecurrentConfig) -> dict:
    ways = {"forwards": "", "backwards": "_reverse"} if config.bidirectional else {"forwards": ""}
    numbers = range(config.layers)
    return {
        "layers": {str(n): {way: cell(kind, weights, f"l{n}{suffix}") for way, suffix in ways.items()} for n in numbers}
    }


def heads(in_weight, in_bias, out_weight, out_bias, H: int) -> dict:
    """Our attention parameters, from PyTorch's concatenated q, k and v projections and its output projection."""
    F = in_weight.shape[1]
    params = {"out": out_weight.T.reshape(H, -1, F), "out_bias": out_bias}
    for name, weight, bias in zip("qkv", np.split(in_weight, 3), np.split(in_bias, 3), strict=True):
        params |= {name: weight.reshape(H, -1, F).transpose(2, 0, 1), f"{name}_bias": bias.reshape(H, -1)}
    return params


def test_the_whole_reference_model_equals_pytorchs():
    arrays = golden("model")
    config = HybridConfig(height=8, width=8, sequence="cells")

    def params(weights):
        recurrent = {name.removeprefix("recurrent."): value for name, value in weights.items()}
        block = {"convolutions": {"0": {"kernel": kernel(weights["convolution.weight"])}}}
        block["convolutions"]["0"]["bias"] = weights["convolution.bias"]
        projections = [weights[f"{name}.{part}"] for name in ("qkv", "out") for part in ("weight", "bias")]
        return {
            "convolution": {"blocks": {"0": block}},
            "recurrent": layers("lstm", recurrent, config.recurrent),
            "attention": heads(*projections, H=4),
            "head": {"kernel": weights["head.weight"].T, "bias": weights["head.bias"]},
        }

    graphdef, _, buffers = tree.split(Hybrid(config, rngs=nnx.Rngs(params=0)))

    def run(params, x):
        return tree.merge(graphdef, params, buffers)(x)[0]

    def layout(x):
        return channels_last(x) if x.ndim == 4 else x

    check(run, params(of(arrays, "weight")), arrays, params(of(arrays, "gradient")), layout)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("deep", [False, True], ids=["plain", "stacked, bidirectional, of unequal lengths"])
def test_recurrent_layers_equal_pytorchs(kind, deep):
    arrays = golden(f"{kind}_deep" if deep else kind)
    config = RecurrentConfig(kind, hidden_size=6, layers=2 if deep else 1, bidirectional=deep)
    graphdef, _, _ = tree.split(Recurrent(config, 5, raw=True, rngs=nnx.Rngs(params=0)))
    real = real_steps(arrays["lengths"], arrays["x"].shape[1]) if deep else None

    def run(params, x):
        return tree.merge(graphdef, params, {})(x, real, 0.0, None)

    weights, gradients = (
        {name.removeprefix("net."): value for name, value in of(arrays, which).items()}
        for which in ("weight", "gradient")
    )
    check(run, layers(kind, weights, config), arrays, layers(kind, gradients, config))


@pytest.mark.parametrize(("case", "rank", "into", "out", "size"), [("conv2d", 2, 4, 6, 3), ("conv2d_even", 2, 2, 3, 4)])
def test_convolution_of_images(case, rank, into, out, size):
    check_convolution(case, rank, into, out, size)


def test_convolution_of_series():
    check_convolution("conv1d", 1, 3, 4, 5)


def check_convolution(case, rank, into, out, size):
    arrays = golden(case)
    made = Convolution(rank, into, out, size, bias=True, raw=True, rngs=nnx.Rngs(params=0))
    graphdef, _, _ = tree.split(made)

    def run(params, x):
        return tree.merge(graphdef, params, {})(x)

    check(run, conv(of(arrays, "weight")), arrays, conv(of(arrays, "gradient")), channels_last)


@pytest.mark.parametrize("kind", ["max", "average"])
def test_pools_with_incomplete_last_windows_equal_pytorchs(kind):
    check(lambda params, x: pool(x, None, kind, 3)[0], {}, golden(f"{kind}_pool"), {}, channels_last)


def test_batch_norm_in_training_and_inference_equals_pytorchs():
    arrays = golden("batch_norm")
    graphdef, _, buffers = tree.split(BatchNorm(4))

    def params(given):
        return {"scale": given["weight"], "bias": given["bias"]}

    def train(params, x):
        return tree.merge(graphdef, params, buffers)(x, None, training=True)[0]

    check(train, params(of(arrays, "weight")), arrays, params(of(arrays, "gradient")), channels_last)
    _, seen = tree.merge(graphdef, params(of(arrays, "weight")), buffers)(
        jnp.asarray(channels_last(arrays["x"])), None, training=True
    )
    moved = updated_buffers(buffers, seen, momentum=0.1)
    for name in ("mean", "variance"):
        np.testing.assert_allclose(moved[name], arrays[name], rtol=1e-5, atol=1e-6)

    arrays = golden("batch_norm_inference")

    def infer(params, x):
        return tree.merge(graphdef, params, moved)(x, None, training=False)[0]

    check(infer, params(of(arrays, "weight")), arrays, params(of(arrays, "gradient")), channels_last)


def test_attention_with_padding_equals_pytorchs():
    arrays = golden("attention")
    config = AttentionConfig(num_heads=4, key_dim=6)
    graphdef, _, _ = tree.split(SelfAttention(config, 24, rngs=nnx.Rngs(params=0)))
    real = real_steps(arrays["lengths"], arrays["x"].shape[1])

    def run(params, x):
        return tree.merge(graphdef, params, {})(x, x, real, 0.0, None) * real[..., None]

    def params(given):
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        return heads(*(given[f"net.{name}"] for name in names), H=4)

    check(run, params(of(arrays, "weight")), arrays, params(of(arrays, "gradient")))
