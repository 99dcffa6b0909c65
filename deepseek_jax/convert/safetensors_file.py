"""Reads and writes safetensors files one tensor at a time: 8 bytes with the header's length, a JSON header, the data.

The library safetensors reads FP8 and its scales only through other frameworks, and can only write whole files.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from deepseek_jax.convert.copying import contiguous
from deepseek_jax.convert.entry import Entry, first_bytes
from deepseek_jax.convert.tally import Tally
from deepseek_jax.errors import UserError

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Output:
    """A tensor to write; `pieces` are called one after another to produce consecutive parts of its data."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    pieces: tuple[Callable[[], np.ndarray], ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        parts = [contiguous(self._cast(piece())) for piece in self.pieces]
        return np.concatenate([part.reshape(-1) for part in parts]).reshape(self.shape)

    def write(self, stream: BinaryIO, tally: Tally):
        for piece in self.pieces:
            given = piece()
            array = contiguous(self._cast(given))
            tally.findings.look(self.name, given, array)
            stream.write(array.reshape(-1).view(np.uint8).data)
            tally.add(array.nbytes)

    def _cast(self, array):
        with np.errstate(over="ignore"):  # `write` refuses an overflow, naming the tensor
            return np.asarray(array).astype(self.dtype, copy=False)


def entries(file: Path) -> Iterator[tuple[str, Entry]]:
    """(name, where it is) of each tensor, from the file's header; UserError if the file is damaged."""
    header, start = _header(file)
    if file.stat().st_size < start + max((of["data_offsets"][1] for of in header.values()), default=0):
        raise UserError(f"{file} is cut short; copy it again.")
    for name, of in header.items():
        if of["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(f"{file} holds {name} as {of['dtype']}; only {', '.join(SAFETENSORS_DTYPES)} can be read.")
        first, end = of["data_offsets"]
        entry = Entry(file, start + first, SAFETENSORS_DTYPES[of["dtype"]], tuple(of["shape"]))
        if entry.nbytes != end - first:
            raise UserError(f"{file} holds {name} in {end - first} bytes, but {entry.shape} takes {entry.nbytes}.")
        yield name, entry


def _header(file) -> tuple[dict[str, dict], int]:
    """(the header, the offset at which the data begins)."""
    start = 8 + int.from_bytes(first_bytes(file)[:8], "little")
    with file.open("rb") as stream:
        stream.seek(8)
        header = _parsed(stream.read(start - 8)) if start <= file.stat().st_size else None
    if header is None:
        raise UserError(f"{file} is not a safetensors file, or is damaged; copy it again.")
    return header, start


def _parsed(text: bytes) -> dict[str, dict] | None:
    """The header without its metadata; None if the text is not a valid header."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(header, dict):
        return None
    header.pop("__metadata__", None)
    return header if all(map(_is_complete, header.values())) else None


def _is_complete(of) -> bool:
    """Whether this entry of a header has a valid dtype, shape and data_offsets."""
    if not (isinstance(of, dict) and of.keys() >= {"dtype", "shape", "data_offsets"}):
        return False
    shape, offsets = of["shape"], of["data_offsets"]
    numbers = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    whole = numbers and all(type(number) is int and number >= 0 for number in shape + offsets)
    return whole and isinstance(of["dtype"], str)


def write(path: Path, outputs: list[Output], tally: Tally):
    """Writes a file of these tensors; `tally` counts bytes."""
    outputs = sorted(outputs, key=lambda output: -output.dtype.itemsize)  # keeps every tensor aligned
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for output in outputs:
        offsets = [start, start + output.nbytes]
        header[output.name] = {"dtype": SAFETENSORS_NAMES[output.dtype], "shape": output.shape, "data_offsets": offsets}
        start += output.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for output in outputs:
            output.write(stream, tally)
