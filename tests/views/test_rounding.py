"""Rounding to few bits against its definition, and against the reader of the released formats."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from deepseek_jax.convert.quantised import dequantise
from deepseek_jax.views.matrices import Matrix, matrix_of
from deepseek_jax.views.rounding import Format, pack, packed, power_at_least, rounded, unpack

FORMATS = [Format("int8"), Format("int8", 64), Format("int4"), Format("int4", 32), Format("fp8"), Format("fp4")]
IDS = [f"{form.kind}-{form.group}" for form in FORMATS]


@pytest.fixture(scope="module")
def weight():
    return jax.random.normal(jax.random.key(1), (2, 192, 160)) * jnp.exp(jax.random.normal(jax.random.key(2), (160,)))


@pytest.mark.parametrize("form", FORMATS, ids=IDS)
def test_the_error_is_at_most_half_a_step(weight, form):
    new = np.asarray(rounded(weight, form))
    size = form.inputs_a_scale(192)
    for start in range(0, 192, size):
        group = np.asarray(weight[:, start : start + size])
        largest = np.abs(group).max(axis=1, keepdims=True)
        error = np.abs(new[:, start : start + size] - group)
        if form.kind == "int8":
            assert (error <= largest / 127 / 2 * 1.001).all()
        elif form.kind == "int4":  # clipped values may be off by up to 0.35 of the largest
            assert (error <= np.maximum(largest / 7 / 2, 0.35 * largest) * 1.001).all()
        elif form.kind == "fp4":  # relative, as steps are largest between 4 and 6
            assert (error <= np.maximum(np.abs(group) / 4, largest / 6 / 2) * 1.001).all()
        else:
            assert (error <= np.abs(group) / 16 * 1.001 + 2.3e-6 * np.abs(weight).max()).all()


@pytest.mark.parametrize("form", FORMATS, ids=IDS)
def test_rounding_twice_is_rounding_once(weight, form):
    once = rounded(weight, form)
    np.testing.assert_allclose(rounded(once, form), once, rtol=3e-7)


@pytest.mark.parametrize("form", [FORMATS[0], FORMATS[3], FORMATS[5]], ids=[IDS[0], IDS[3], IDS[5]])
@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("embedding", (6, 64)),
        ("layers/1-2/attention/out", (2, 4, 16, 10)),
        ("layers/1-2/feed_forward/experts/up", (2, 3, 96, 10)),
        ("convolution/blocks/0/convolutions/0/kernel", (3, 3, 1, 8)),  # nine inputs cannot be packed in pairs
    ],
)
def test_packed_arrays_unpack_to_the_rounded_ones(form, path, shape):
    matrix = matrix_of(path, len(shape))
    weight = jax.random.normal(jax.random.key(0), shape)
    found = pack(weight, matrix, form)
    back = unpack(found, matrix, form)
    assert back.shape == shape and back.dtype == jnp.float32
    np.testing.assert_array_equal(back, rounded(matrix.fold(weight), form).reshape(shape))
    shared = form.four_bits and matrix.split(shape)[1][-1] % 2 == 0
    assert found["values"].nbytes == weight.size // (2 if shared else 1)


def test_zeros_stay_zeros(weight):
    holes = weight * (jnp.abs(weight) > 0.5)
    for form in FORMATS:
        assert (rounded(holes, form)[holes == 0] == 0).all()
        np.testing.assert_array_equal(rounded(jnp.zeros((1, 64, 4)), form), 0)


@pytest.mark.parametrize("largest", [1e-36, 1e-37, 2e-38])
def test_numbers_too_small_for_a_scale_become_zeros(largest):
    """XLA's CPU takes denormal numbers for 0, and the largest number over 448 or 127 would be one."""
    weight = jnp.zeros((1, 64, 4)).at[0, 3, :].set(largest)
    for form in FORMATS:
        np.testing.assert_array_equal(rounded(weight, form), 0)
        assert (packed(weight, form)[0] == packed(jnp.zeros_like(weight), form)[0]).all()


def test_fp8_is_what_the_reader_of_releases_computes(weight):
    """Released matrices are [out, in], and their blocks at the edges may be smaller."""
    matrix = Matrix("linear", 0, 1)
    found = pack(weight[0], matrix, Format("fp8"))
    theirs = np.asarray(found["values"]).T.copy(), np.asarray(found["scales"]).T.copy()
    assert theirs[0].dtype == ml_dtypes.float8_e4m3fn and theirs[1].shape == (2, 2)
    np.testing.assert_array_equal(dequantise("w", *theirs), unpack(found, matrix, Format("fp8")).T)


def test_fp4_is_what_the_reader_of_releases_computes(weight):
    matrix = Matrix("linear", 0, 1)
    found = pack(weight[0], matrix, Format("fp4"))
    scales = np.asarray(found["scales"]).view(ml_dtypes.float8_e8m0fnu)
    read = dequantise("w", np.asarray(found["values"]).T.copy(), scales.T.copy())
    np.testing.assert_array_equal(read, unpack(found, matrix, Format("fp4")).T)


def test_power_at_least_is_exact_for_powers_of_two():
    exponents = np.arange(-126, 120)
    powers = np.ldexp(np.float32(1), exponents)
    for compiled in (power_at_least, jax.jit(power_at_least)):
        np.testing.assert_array_equal(compiled(powers), powers)
        np.testing.assert_array_equal(compiled(np.nextafter(powers, np.float32(np.inf))), 2 * powers)
        np.testing.assert_array_equal(compiled(powers * np.float32(1.99)), 2 * powers)


@pytest.mark.parametrize("scale", [1e-5, 3e-4, 6e-3, 1e3, 1e5])
def test_scales_of_any_magnitude_survive_e8m0(weight, scale):
    matrix, small = Matrix("linear", 0, 1), scale * weight[0]
    for form, most in ((Format("fp4"), 0.15), (Format("fp8", powers=True), 0.03)):
        found = pack(small, matrix, form)
        scales, e8m0 = np.asarray(found["scales"]), ml_dtypes.float8_e8m0fnu
        scales = scales.view(e8m0) if form.kind == "fp4" else scales.astype(e8m0)
        read = dequantise("w", np.asarray(found["values"]).T.copy(), scales.T.copy()).T
        np.testing.assert_array_equal(read, unpack(found, matrix, form))
        error = np.sqrt(np.square(read - small).sum() / np.square(small).sum())
        assert error < most, form


@pytest.mark.parametrize("sign", [1, -1])
def test_fp4_rounds_to_nearest_with_ties_to_even(sign):
    numbers = [0.1, 0.3, 0.9, 2.6, 4.9, 5.1, 1.8, 6.0] + [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    nearest = [0.0, 0.5, 1.0, 3.0, 4.0, 6.0, 2.0, 6.0] + [0.00, 1.00, 1.00, 2.00, 2.0, 4.0, 4.0]
    found = rounded(sign * jnp.array(numbers)[None, :, None], Format("fp4"))[0, :, 0]
    np.testing.assert_array_equal(found, sign * np.array(nearest))
    np.testing.assert_array_equal(found, np.array(sign * np.array(numbers), ml_dtypes.float4_e2m1fn))


def test_int4_clips_where_that_reduces_the_error():
    outlier = jnp.concatenate([jax.random.normal(jax.random.key(0), (63,)), jnp.array([8.0])])[None, :, None]
    plain = jnp.round(outlier / (8 / 7)) * (8 / 7)
    assert jnp.square(rounded(outlier, Format("int4")) - outlier).sum() < jnp.square(plain - outlier).sum()
