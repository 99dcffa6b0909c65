"""Writes what torch.save writes since version 1.6, without torch, and such files damaged in one way or another."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

STORAGES = {"float32": "FloatStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}
NEW_DICT = b"ccollections\nOrderedDict\n)R"


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    code: bytes | None = None,
    members: Mapping[str, bytes | None] = MappingProxyType({}),
    compression: int = zipfile.ZIP_STORED,
):
    """`code`: data.pkl in place of that of the tensors; `members`: further ones, others in their place, or None."""
    content = {"data.pkl": pickled(tensors) if code is None else code, "byteorder": b"little", "version": b"3\n"}
    content |= {f"data/{key}": np.ascontiguousarray(array).tobytes() for key, array in enumerate(tensors.values())}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (content | members).items():
            if data is not None:
                archive.writestr(f"{path.stem}/{name}", data)


def pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A pickle of tensors in C order, one storage each."""
    items = b""
    for key, (name, array) in enumerate(tensors.items()):
        strides = np.cumprod([1, *reversed(array.shape)])[:-1][::-1]
        items += _text(name) + tensor(STORAGES[array.dtype.name], str(key), array.size, 0, array.shape, strides)
    return b"\x80\x02" + NEW_DICT + b"(" + items + b"u."


def tensor(storage: str, key: str, size: int, offset: int, shape, strides) -> bytes:
    """Opcodes of a tensor."""
    saved = (
        b"(" + _text("storage") + f"ctorch\n{storage}\n".encode() + _text(key) + _text("cpu") + _number(size) + b"tQ"
    )
    view = _number(offset) + _numbers(shape) + _numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + saved + view + b"\x89" + NEW_DICT + b"tR"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _number(number: int) -> bytes:
    return b"I%d\n" % number


def _numbers(numbers) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"
