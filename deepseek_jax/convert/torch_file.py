"""Finds the tensors in a file of torch.save, without torch and without running the file's code.

Since version 1.6 torch writes a zip archive of uncompressed members: data.pkl is a pickle of the tensors, and data/KEY
holds the numbers of one storage.  Before, it wrote a sequence of pickles (a magic number, a version, the machine, the
tensors, the keys of their storages), then each storage: its size and its numbers.  A tensor is a view of a storage,
with an offset and strides; tied tensors share one.
"""

import collections
import dataclasses
import io
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deepseek_jax.convert.entry import Entry, first_bytes
from deepseek_jax.convert.safetensors_file import SAFETENSORS_DTYPES
from deepseek_jax.errors import UserError

PROTOCOL = 2  # of torch's pickles
MAGIC = 0x1950A86A20F9469CFC6C
ZIP, ZIP_HEADER_BYTES = b"PK", 30  # what an archive begins with; the size of the header before each member's name
CUT_SHORT = EOFError, zipfile.BadZipFile, NotImplementedError, struct.error
DAMAGED = ValueError, LookupError, AttributeError, TypeError, ImportError, OverflowError, MemoryError
STORAGES = {
    "DoubleStorage": SAFETENSORS_DTYPES["F64"],
    "FloatStorage": SAFETENSORS_DTYPES["F32"],
    "HalfStorage": SAFETENSORS_DTYPES["F16"],
    "BFloat16Storage": SAFETENSORS_DTYPES["BF16"],
    "LongStorage": SAFETENSORS_DTYPES["I64"],
    "IntStorage": SAFETENSORS_DTYPES["I32"],
    "CharStorage": SAFETENSORS_DTYPES["I8"],
    "ByteStorage": SAFETENSORS_DTYPES["U8"],
}

Place = tuple[int, int]  # where in the file something begins, and its number of bytes


def entries(file: Path) -> Iterator[tuple[str, Entry]]:
    """(name, where it is) of each tensor; UserError for a damaged file, or one that holds anything but tensors."""
    is_archive = first_bytes(file).startswith(ZIP)
    try:
        with file.open("rb") as stream:
            tensors, places, swapped = _archived(stream) if is_archive else _in_sequence(stream)
            if not isinstance(tensors, dict):
                raise ValueError("it is not a dict of tensors")
            found = [(name, _entry(file, name, tensor, places, swapped)) for name, tensor in tensors.items()]
    except CUT_SHORT:
        raise UserError(f"{file} is cut short or damaged; copy it again.") from None
    except (pickle.UnpicklingError, *DAMAGED) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{file} is not a file of torch's tensors that can be read: {reason}.") from None
    yield from found


def _archived(stream: BinaryIO) -> tuple[Any, dict[str, Place], bool]:
    """(what data.pkl holds, the places of the storages, whether the bytes of their numbers are swapped)."""
    members = {}
    for member in zipfile.ZipFile(stream).infolist():
        name = member.filename.partition("/")[2]  # without the folder of the archive
        if name in members:
            raise ValueError(f"it has two members {name}")
        members[name] = _place_of_member(stream, member)
    if "data.pkl" not in members:
        raise ValueError("it has no data.pkl")
    tensors, _ = _unpickled(io.BytesIO(_content(stream, members["data.pkl"])))
    order = _content(stream, members["byteorder"]).decode() if "byteorder" in members else "little"
    if order not in ("little", "big"):
        raise ValueError(f"its byte order is {order!r}")
    places = {name.removeprefix("data/"): place for name, place in members.items() if name.startswith("data/")}
    return tensors, places, order != sys.byteorder


def _place_of_member(stream, member: zipfile.ZipInfo) -> Place:
    header = _content(stream, (member.header_offset, ZIP_HEADER_BYTES))
    if not header.startswith(ZIP):
        raise EOFError
    name_bytes, extra_bytes = struct.unpack("<26x2H", header)  # of what is between header and data: name, padding
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"{member.filename} in it is compressed or encrypted, which torch never does")
    start = member.header_offset + ZIP_HEADER_BYTES + name_bytes + extra_bytes
    return _within(stream, start, member.file_size)


def _in_sequence(stream: BinaryIO) -> tuple[Any, dict[str, Place], bool]:
    """As `_archived` returns them; the older format is little-endian, whatever wrote it."""
    magic, _ = _unpickled(stream)
    if magic != MAGIC:
        raise ValueError("it does not begin as torch's files do")
    (_, _), (_, _), (tensors, dtypes), (keys, _) = (_unpickled(stream) for _ in range(4))
    places = {}
    for key in keys:
        size = int.from_bytes(_content(stream, (stream.tell(), 8)), "little")
        places[key] = _within(stream, stream.tell(), size * dtypes[key].itemsize)
        stream.seek(sum(places[key]))
    return tensors, places, sys.byteorder != "little"


def _content(stream, place: Place) -> bytes:
    start, nbytes = _within(stream, *place)
    stream.seek(start)
    return stream.read(nbytes)


def _within(stream, start, nbytes) -> Place:
    if start < 0 or start + nbytes > os.fstat(stream.fileno()).st_size:
        raise EOFError
    return start, nbytes


def _unpickled(stream) -> tuple[Any, dict[str, np.dtype]]:
    """(what the next pickle holds, the dtypes of its storages by key)."""
    start = stream.tell()
    for opcode, argument, place in pickletools.genops(stream):
        # CPython may crash on later opcodes that are damaged, and reserves memory for the largest number of a PUT.
        if opcode.proto > PROTOCOL or ("PUT" in opcode.name and argument > place):
            raise pickle.UnpicklingError(f"its pickle has a damaged or unknown {opcode.name}")
    stream.seek(start)
    unpickler = _Unpickler(stream)
    return unpickler.load(), unpickler.dtypes


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor of a pickle, unchecked; `offset` and `strides` count numbers of the storage `key`."""

    key: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Accepts tensors and dicts of them, and refuses anything else that a pickle names.

    What `find_class` returns has no attribute that a pickle could set to change what this program does.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self.dtypes: dict[str, np.dtype] = {}  # of the storages, by key

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._view
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not run")

    def persistent_load(self, saved):
        _, kind, key, _, _, *view = saved
        if any(view):
            raise pickle.UnpicklingError("it holds a view of a storage, as torch wrote before 0.4")
        self.dtypes[key] = STORAGES[kind]
        return key, STORAGES[kind]

    def _view(self, storage, offset, shape, strides, *_):
        return _View(*storage, offset, shape, strides)

    def _parameter(self, tensor, *_):
        return tensor


def _entry(file: Path, name: str, tensor: _View, places: Mapping[str, Place], swapped: bool) -> Entry:
    """The checked entry of a tensor; ValueError if it is none, or if its numbers are not all there."""
    if not (isinstance(name, str) and isinstance(tensor, _View) and isinstance(tensor.dtype, np.dtype)):
        raise ValueError(f"its {name} is not a tensor")
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if len(tensor.shape) != len(tensor.strides) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"its {name} has an impossible shape")
    if tensor.key not in places:
        raise ValueError(f"the numbers of its {name} (storage {tensor.key}) are missing")
    start, nbytes = places[tensor.key]
    size = tensor.dtype.itemsize
    steps = [(length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True)]
    if 0 not in tensor.shape and (tensor.offset + sum(steps) + 1) * size > nbytes:
        raise ValueError(f"its {name} reaches beyond its storage")
    strides = None if _in_c_order(tensor) else tuple(stride * size for stride in tensor.strides)
    return Entry(file, start + tensor.offset * size, tensor.dtype, tuple(tensor.shape), strides, swapped)


def _in_c_order(tensor: _View) -> bool:
    count = 1
    for length, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if length > 1 and stride != count:
            return False
        count *= length
    return True
