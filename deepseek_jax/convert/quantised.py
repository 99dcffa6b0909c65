"""Released low-precision matrices as float32: FP8 e4m3 in blocks (V3), packed FP4 e2m1 (V4's experts).

o out  i in
"""

import ml_dtypes
import numpy as np

from deepseek_jax.errors import UserError

FP8_BLOCK = 128
FP4_BLOCK = 32  # columns that share a scale

_BYTES = np.arange(256, dtype=np.uint8)
FP8_VALUES = _BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# Both values of a byte as one 8-byte number, which numpy looks up several times as fast; low bits: the even column.
FP4_PAIRS = np.stack([FP4_VALUES[_BYTES & 15], FP4_VALUES[_BYTES >> 4]], axis=-1).view(np.float64)[:, 0]


def is_packed(dtype: np.dtype) -> bool:
    """Whether a quantised matrix of this dtype holds two numbers per byte (FP4)."""
    return dtype in (np.int8, np.uint8)


def dequantise(name: str, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """weight[o, i] times the scale of its block (multiplied, though files call it scale_inv); edge blocks are smaller.

    FP8: scale[ceil(o/128), ceil(i/128)].  FP4: weight[o, i/2] of bytes, scale[o, ceil(i/32)].  uint8 scales are read as
    e8m0 exponents, as written by libraries without a type for these; UserError for other integer types.
    """
    if scale.dtype == np.uint8:
        scale = scale.view(ml_dtypes.float8_e8m0fnu)
    if scale.dtype.kind in "iu":
        raise UserError(f"the scales of {name} are of type {scale.dtype}; they must be floating, or bytes of e8m0.")
    packed = is_packed(weight.dtype)
    values = (FP4_PAIRS if packed else FP8_VALUES).take(weight.view(np.uint8)).view(np.float32)
    rows, columns = (1, FP4_BLOCK) if packed else (FP8_BLOCK, FP8_BLOCK)
    blocks = tuple(-(-size // block) for size, block in zip(values.shape, (rows, columns), strict=True))
    if scale.shape != blocks:
        raise UserError(f"the scales of {name} have shape {scale.shape}; a matrix of {values.shape} has {blocks}.")
    scale = np.repeat(scale.astype(np.float32), rows, axis=0)[: len(values)]
    if values.shape[1] % columns:
        values *= np.repeat(scale, columns, axis=1)[:, : values.shape[1]]
    else:
        in_blocks = values.reshape(*scale.shape, columns)
        in_blocks *= scale[:, :, None]
    return values
