"""Low-precision products against their definition; watching products against sums of their inputs."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.compress.config import ArithmeticConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models.arithmetic import PLAIN, give, multiply, of
from deepseek_jax.models.hybrid.convolution import Convolution
from deepseek_jax.models.layers import linear
from deepseek_jax.models.moe.blocks import ExpertOptions
from deepseek_jax.models.moe.experts import every_expert, in_blocks, ragged, with_fixed_capacity
from deepseek_jax.views.arithmetic import Fp8, InputStatistics, Int8, chooser, in_tiles


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def tiles_of_128(x):
    """Rounds x to FP8 in 1 x 128 tiles as DeepSeek's act_quant does, in numpy, one tile at a time."""
    x, found = np.asarray(x, np.float32), np.empty(x.shape, np.float32)
    for row in np.ndindex(x.shape[:-1]):
        for start in range(0, x.shape[-1], 128):
            tile = x[row][start : start + 128]
            scale = np.float32(np.abs(tile).max()) / np.float32(448)
            numbers = np.clip(tile / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
            found[row][start : start + 128] = numbers.astype(np.float32) * scale
    return found


def test_fp8_activations_have_one_scale_per_tile():
    x = normal(0, 3, 5, 200) * jnp.exp(3 * normal(1, 200))
    np.testing.assert_allclose(in_tiles(x, -1), tiles_of_128(x), rtol=3e-7)
    np.testing.assert_allclose(in_tiles(x.swapaxes(1, 2), -2), tiles_of_128(x).swapaxes(1, 2), rtol=3e-7)


@pytest.mark.parametrize("rounded", [Fp8().gradients, Fp8().rows, Int8().rows])
def test_tiny_numbers_beside_zeros_become_zeros(rounded):
    np.testing.assert_array_equal(rounded(jnp.zeros((2, 128)).at[0, 5].set(1e-37)), 0)


def test_forward_and_both_backward_products_have_rounded_operands():
    x, w, dy, how = normal(0, 300, 160), normal(1, 160, 140), normal(2, 300, 140), Fp8()
    y, pull = jax.vjp(lambda x, w: multiply(x, w, how), x, w)
    dx, dw = pull(dy)
    w8 = how.weight(w)
    np.testing.assert_allclose(y, tiles_of_128(x) @ w8, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(dx, tiles_of_128(dy) @ w8.T, rtol=1e-6, atol=1e-4)
    by_token = tiles_of_128(tiles_of_128(x).T), tiles_of_128(dy.T)
    np.testing.assert_allclose(dw, by_token[0] @ by_token[1].T, rtol=1e-6, atol=1e-4)
    assert 0.01 < float(jnp.linalg.norm(y - x @ w) / jnp.linalg.norm(x @ w)) < 0.06  # rounding had an effect


@pytest.mark.parametrize("way", [every_expert, in_blocks, with_fixed_capacity, ragged])
def test_every_way_gives_each_experts_own_int8_product(way):
    """Every way gives the results of one expert after the other.

    INT8, as FP8's tiles of 128 contain different tokens in each way.
    """
    tokens, E, D, I = 60, 3, 160, 136
    x, kernels = normal(0, tokens, D), [normal(1, E, D, I), normal(2, E, D, I), normal(3, E, I, D)]
    chosen = jax.random.randint(jax.random.key(4), (tokens, 1), 0, E)
    weight, how = jnp.ones((tokens, 1)), ExpertOptions(gate_up=Int8(), down=Int8())

    def one_by_one(x, chosen, weight, gate, up, down, how):
        y = 0.0
        for expert in range(E):
            active = jax.nn.silu(multiply(x, gate[expert], Int8())) * multiply(x, up[expert], Int8())
            y += (chosen == expert) * multiply(active, down[expert], Int8())
        return y

    def with_gradients(way):
        y, pull = jax.vjp(lambda x, *kernels: way(x, chosen, weight, *kernels, how), x, *kernels)
        return y, *pull(x)

    for one, other in zip(*(jax.jit(with_gradients, static_argnums=0)(each) for each in (way, one_by_one))):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("way", [every_expert, in_blocks, with_fixed_capacity])
def test_no_fp8_block_spans_gate_and_up(way):
    """The width is no multiple of 128; `up` is so large that in a shared block the gate would be rounded to 0."""
    tokens, E, D, I = 70, 3, 96, 48
    x, kernels = normal(0, tokens, D), [normal(1, E, D, I), 3000 * normal(2, E, D, I), normal(3, E, I, D)]
    chosen, how = jax.random.randint(jax.random.key(4), (tokens, 1), 0, E), ExpertOptions(gate_up=Fp8(), down=Fp8())

    def with_gradient(way):
        y, pull = jax.vjp(lambda x: way(x, chosen, jnp.ones((tokens, 1)), *kernels, how), x)
        return y, *pull(x)

    for one, other in zip(*(jax.jit(with_gradient, static_argnums=0)(each) for each in (way, ragged))):
        np.testing.assert_allclose(one, other, atol=1e-3 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("way", [every_expert, in_blocks, with_fixed_capacity, ragged])
def test_the_watched_inputs_of_down_are_weighted_by_the_router(way):
    """In every way, so that ranges and energies of experts do not depend on the way in which they were measured."""
    tokens, E, D, I = 70, 3, 6, 5
    x, kernels = normal(0, tokens, D), [normal(1, E, D, I), normal(2, E, D, I), normal(3, E, I, D)]
    chosen = jax.random.permutation(jax.random.key(4), jnp.tile(jnp.arange(E), (tokens, 1)), 1, independent=True)[:, :2]
    weight = jax.random.uniform(jax.random.key(5), (tokens, 2))
    how = ExpertOptions(gate_up=InputStatistics(), down=InputStatistics())

    def loss(gate, up, down):
        return jnp.square(way(x, chosen, weight, gate, up, down, how)).sum()

    found = jax.grad(loss, argnums=2)(*kernels)

    weight_TE = jnp.zeros((tokens, E)).at[jnp.arange(tokens)[:, None], chosen].add(weight)
    active_TEI = [jnp.einsum("TD,EDI->TEI", x, kernel) for kernel in kernels[:2]]
    weighted_TEI = jax.nn.silu(active_TEI[0]) * active_TEI[1] * weight_TE[..., None]
    expected_EI = jnp.square(weighted_TEI).sum(axis=0)
    np.testing.assert_allclose(found, np.repeat(expected_EI[..., None], D, -1), rtol=1e-4)


@pytest.mark.parametrize("way", [every_expert, in_blocks, with_fixed_capacity])
def test_an_int8_range_of_down_applies_to_weighted_units_in_every_way(way):
    """Units of tokens with a small router weight must not saturate where the largest weighted unit does not."""
    x, kernels = normal(0, 70, 6), [normal(1, 3, 6, 5), normal(2, 3, 6, 5), normal(3, 3, 5, 6)]
    chosen, weight = jnp.tile(jnp.arange(2), (70, 1)), jnp.tile(jnp.array([0.1, 0.02]), (70, 1))
    how = ExpertOptions(down=Int8(1.0))
    arguments = x, chosen, weight, *kernels, how
    np.testing.assert_allclose(way(*arguments), ragged(*arguments), rtol=1e-4, atol=1e-4)


def test_int8_rounds_inputs_to_their_range():
    x = jnp.array([[0.3, -1.0, 0.004], [2.0, 5.0, -3.0]])
    np.testing.assert_allclose(Int8().rows(x)[0], [38 / 127, -1.0, 1 / 127], rtol=1e-6)
    np.testing.assert_allclose(Int8(2.54).rows(x)[1], [2.0, 2.54, -2.54], rtol=1e-6)


@pytest.mark.parametrize("range", [0.0, 0.5])
def test_int8_gradients_use_the_rounded_inputs(range):
    """Gradients with unrounded inputs would belong to another product, most so where inputs saturate."""
    how, x, w, dy = Int8(range), normal(0, 9, 6), normal(1, 6, 4), normal(2, 9, 4)
    dx, dw = jax.vjp(lambda x, w: multiply(x, w, how), x, w)[1](dy)
    np.testing.assert_allclose(dw, how.rows(x).T @ dy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, dy @ w.T, rtol=1e-5, atol=1e-6)


class Layer(nnx.Module):
    def __init__(self, kernel):
        self.out = nnx.Param(kernel, out_sharding=(None,) * kernel.ndim)


@pytest.mark.parametrize("power", [2, 8])
def test_watching_products_return_sums_of_their_inputs_as_gradients(power):
    layer = give(Layer(normal(0, 6, 4)), lambda path, rank: InputStatistics(power))
    x = normal(1, 5, 7, 6).at[0].set(0.0)
    graphdef, params = nnx.split(layer)

    def loss(params):
        y = linear(x, nnx.merge(graphdef, params).out)
        return jnp.square(y[1:]).sum()  # the first row has no gradient, so it must not count

    gradient = jax.grad(loss)(params)["out"][...]
    np.testing.assert_allclose(gradient, np.repeat((np.abs(x[1:]) ** power).sum((0, 1))[:, None], 4, 1), rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_convolution_by_patches_equals_the_plain_one(rank):
    convolution = Convolution(rank, 3, 5, 3, bias=True, raw=True, rngs=nnx.Rngs(params=0))
    x = normal(0, 2, *(7, 6)[:rank], 3)
    plain = convolution(x)
    give(convolution, lambda path, rank: InputStatistics())  # exact products, but by patches
    np.testing.assert_allclose(convolution(x), plain, atol=1e-5)


def test_layers_that_v3_keeps_in_high_precision_stay_so():
    choose = chooser(ArithmeticConfig(kind="fp8"))
    assert choose("layers/1-3/attention/q_down", 3) == choose("mtp/0/project", 2) == Fp8()
    for path, rank in (
        ("embedding", 2),
        ("head", 2),
        ("layers/1-3/feed_forward/router/kernel", 3),
        ("layers/1-3/attention_norm/scale", 2),
        ("layers/0-0/attention/indexer/weights", 3),
    ):
        assert choose(path, rank) is PLAIN
    experts = chooser(
        ArithmeticConfig(kind="int8", paths="experts/", ranges=("layers/1-3/feed_forward/experts/up=2.5",))
    )
    assert experts("layers/1-3/feed_forward/experts/up", 4) == Int8(2.5)
    assert experts("layers/1-3/feed_forward/experts/gate", 4) == Int8(0.0)
    assert experts("layers/1-3/attention/q_down", 3) is PLAIN


def test_parameters_without_an_arithmetic_are_multiplied_plainly():
    layer = Layer(normal(0, 6, 4))
    assert of(layer.out) is PLAIN and of(give(layer, lambda path, rank: PLAIN).out) is PLAIN
    jaxpr = str(jax.make_jaxpr(lambda x, w: multiply(x, w, PLAIN))(normal(0, 3, 6), normal(1, 6, 4)))
    assert "custom_vjp" not in jaxpr


@pytest.mark.parametrize("given", ["out", "out=", "out=-1", "out=0", "out=1.2.3", "out=.", "out=1e999"])
def test_malformed_ranges_are_refused(given):
    with pytest.raises(UserError, match="write a path and its largest input"):
        ArithmeticConfig(ranges=(given,))
