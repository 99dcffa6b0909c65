"""Reads the arrays of a .pth file in torch's format before version 1.6, without torch and without running its code.

The file is a sequence of pickles (a magic number, a version, the machine, the arrays, their storages' keys), then each
storage: its number of elements, and the elements.
"""

import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np

from deepseek_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
DAMAGED = EOFError, ValueError, LookupError, AttributeError, TypeError, ImportError, OverflowError, MemoryError
STORAGES = {"FloatStorage": np.float32, "DoubleStorage": np.float64, "LongStorage": np.int64, "HalfStorage": np.float16}


def load(path: Path) -> dict[str, np.ndarray]:
    """The file's arrays by name; UserError for another kind of file."""
    if zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is an archive, as torch writes since 1.6; load it with torch and save it with "
            "_use_new_zipfile_serialization=False."
        )
    try:
        with Path(path).open("rb") as stream:
            return _load(stream)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except (pickle.UnpicklingError, *DAMAGED) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is not a .pth file of arrays that can be read: {reason}.") from None


def _load(stream) -> dict[str, np.ndarray]:
    if _Arrays(stream).load() != MAGIC:
        raise ValueError("it does not begin as torch's older files do")
    for _ in ("version", "machine"):
        _Arrays(stream).load()
    unpickler = _Arrays(stream)
    found = unpickler.load()
    for key in _Arrays(stream).load():
        size = int.from_bytes(stream.read(8), "little")
        storage = unpickler.storages[key]
        storage[:] = np.frombuffer(stream.read(size * storage.itemsize), storage.dtype)
    return dict(found)


class _Arrays(pickle.Unpickler):
    """An unpickler that only accepts tensors and dicts of them, and refuses anything else that a pickle names."""

    def __init__(self, stream):
        super().__init__(stream)
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}")

    def persistent_load(self, saved):
        _, dtype, key, _, size, *_ = saved
        return self.storages.setdefault(key, np.zeros(size, dtype))


def _view(storage, offset, shape, strides, *_):
    """A tensor's view into its storage, whose data is read later; ValueError if it would reach beyond the storage."""
    strides = tuple(stride * storage.itemsize for stride in strides)
    return np.ndarray(shape, storage.dtype, storage, offset * storage.itemsize, strides)
