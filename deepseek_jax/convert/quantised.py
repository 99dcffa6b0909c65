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
FP4_PAIRS = np.stack([FP4_VALUES[_BYTES & 15], FP4_VALUES[_BYTES >> 4]], axis=-1)  # low bits: the even column


def is_packed(dtype: np.dtype) -> bool:
    """Whether a quantised matrix of this type holds two numbers a byte."""
    return dtype in (np.int8, np.uint8)


def dequantise(name: str, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """weight[o, i] times the scale of its block (multiplied, though files call it scale_inv); edge blocks are smaller.

    FP8: scale[ceil(o/128), ceil(i/128)].  FP4: weight[o, i/2] of bytes, scale[o, ceil(i/32)].
    """
    packed = is_packed(weight.dtype)
    values = (FP4_PAIRS if packed else FP8_VALUES)[weight.view(np.uint8)].reshape(weight.shape[0], -1)
    rows, columns = (1, FP4_BLOCK) if packed else (FP8_BLOCK, FP8_BLOCK)
    blocks = tuple(-(-size // block) for size, block in zip(values.shape, (rows, columns), strict=True))
    if scale.shape != blocks:
        raise UserError(f"the scales of {name} have shape {scale.shape}; a matrix of {values.shape} has {blocks}.")
    scale = scale.astype(np.float32)
    for column in range(blocks[1]):
        values[:, column * columns : (column + 1) * columns] *= np.repeat(scale[:, column], rows)[: len(values), None]
    return values
