"""Dequantised FP8 and FP4 matrices against their definition, number by number."""

import ml_dtypes
import numpy as np
import pytest

from deepseek_jax.convert.quantised import dequantise
from deepseek_jax.convert.safetensors_file import Output, entries, write
from deepseek_jax.convert.tally import Tally
from deepseek_jax.convert.tensors import Tensors
from deepseek_jax.errors import UserError
from deepseek_jax.reporting import no_report
from tests.paths import GOLDENS


@pytest.mark.parametrize("scale_type", [np.float32, ml_dtypes.float8_e8m0fnu])
@pytest.mark.parametrize("shape", [(128, 256), (146, 160), (300, 1)])
def test_fp8_blocks_may_be_ragged(shape, scale_type):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
    blocks = [-(-size // 128) for size in shape]
    scale = (2.0 ** rng.integers(-6, 6, blocks)).astype(scale_type)
    expected = [
        [float(weight[row, column]) * float(scale[row // 128, column // 128]) for column in range(shape[1])]
        for row in range(shape[0])
    ]
    np.testing.assert_array_equal(dequantise("w", weight, scale), np.array(expected, np.float32))


def test_fp4_pairs_have_the_even_column_in_the_low_bits():
    rng = np.random.default_rng(0)
    packed = rng.integers(-128, 128, (6, 40), np.int8)
    scale = (2.0 ** rng.integers(-6, 6, (6, 3))).astype(ml_dtypes.float8_e8m0fnu)  # the last block is half as wide
    numbers = np.arange(16, dtype=np.uint8).astype(np.uint8).view(ml_dtypes.float4_e2m1fn)
    for row, byte in np.ndindex(packed.shape):
        for half, bits in enumerate((packed[row, byte] & 15, packed[row, byte] >> 4 & 15)):
            column = 2 * byte + half
            expected = float(numbers[bits]) * float(scale[row, column // 32])
            assert dequantise("w", packed, scale)[row, column] == expected


def test_scales_of_the_wrong_shape_are_refused():
    weight, scale = np.zeros((146, 160), ml_dtypes.float8_e4m3fn), np.ones((1, 2), np.float32)
    with pytest.raises(UserError, match=r"scales of w have shape \(1, 2\); a matrix of \(146, 160\) has \(2, 2\)"):
        dequantise("w", weight, scale)


def test_scales_stored_as_bytes_are_read_as_e8m0():
    """Libraries without an e8m0 type store scales as bytes; taking these as integers would silently change weights."""
    weight, scale = np.ones((2, 3), ml_dtypes.float8_e4m3fn), np.full((1, 1), 2**-5, ml_dtypes.float8_e8m0fnu)
    np.testing.assert_array_equal(dequantise("w", weight, scale.view(np.uint8)), np.full((2, 3), 2**-5, np.float32))


def test_scales_in_other_integer_types_are_refused():
    weight, scale = np.ones((2, 3), ml_dtypes.float8_e4m3fn), np.ones((1, 1), np.int32)
    with pytest.raises(UserError, match="scales of w are of type int32; they must be floating, or bytes of e8m0"):
        dequantise("w", weight, scale)


@pytest.mark.parametrize("name", ["v3_fp8", "v4_quant/official"])
def test_quantised_matrices_without_scales_are_refused(tmp_path, name):
    """Without its scale a block's values could have any magnitude."""
    held = dict(entries(GOLDENS / name / "model.safetensors"))
    kept = {name: entry for name, entry in held.items() if not name.endswith((".scale", "_scale_inv"))}
    outputs = [Output(name, entry.dtype, entry.shape, (entry.read,)) for name, entry in kept.items()]
    write(tmp_path / "model.safetensors", outputs, Tally(no_report, "writing", 0))
    with pytest.raises(UserError, match=r"has \S+ in (int8|float8_e4m3fn), but no scales of it"):
        Tensors(tmp_path)


def test_scales_of_a_matrix_that_is_not_quantised_are_not_applied(tmp_path):
    """A matrix that was dequantised while its scales remained in the file must not be scaled again."""
    weight, scale = np.ones((4, 6), ml_dtypes.bfloat16), np.ones((1, 1), np.float32)
    outputs = [
        Output(name, array.dtype, array.shape, (lambda array=array: array,))
        for name, array in {"a.weight": weight, "a.weight_scale_inv": scale}.items()
    ]
    write(tmp_path / "model.safetensors", outputs, Tally(no_report, "writing", 0))
    tensors = Tensors(tmp_path)
    assert tensors.names == {"a.weight", "a.weight_scale_inv"}
    np.testing.assert_array_equal(tensors["a.weight"], weight)
