"""Where a tensor lies in a file, so that it can be read when it is needed."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from deepseek_jax.errors import UserError

LFS = b"version https://git-lfs"  # the first bytes of a Git LFS pointer


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor is stored.

    `start`: the offset in bytes from the beginning of the file.  `strides`: in bytes, None for C order.  `swapped`: the
    bytes of each number are in the reverse of this machine's order.
    """

    file: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    swapped: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        if self.strides is None:
            return self._read(self.nbytes).reshape(self.shape)
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return np.ndarray(self.shape, self.dtype, self._read(last + self.dtype.itemsize), strides=self.strides)

    def _read(self, nbytes) -> np.ndarray:
        data = np.fromfile(self.file, np.uint8, nbytes, offset=self.start)
        if self.swapped:
            data = data.view(f"u{self.dtype.itemsize}").byteswap(inplace=True)
        return data.view(self.dtype)


def first_bytes(file: Path) -> bytes:
    """What a file of tensors begins with; UserError if it is not there, or only as a pointer of Git LFS."""
    if not file.is_file():
        raise UserError(f"{file} is missing; copy it there.")
    try:
        with file.open("rb") as stream:
            begin = stream.read(len(LFS))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}.") from None
    if begin == LFS:
        raise UserError(f"{file} is what git keeps in place of a large file; fetch the file itself: git lfs pull.")
    return begin
