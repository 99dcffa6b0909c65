"""The tensors of a checkpoint by name, each read from its file only when it is asked for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deepseek_jax import record
from deepseek_jax.convert import fused, safetensors_file, torch_file
from deepseek_jax.convert.entry import Entry
from deepseek_jax.convert.quantised import dequantise, is_packed
from deepseek_jax.convert.safetensors_file import SAFETENSORS_DTYPES
from deepseek_jax.errors import UserError
from deepseek_jax.files import read_json

QUANTISED = (SAFETENSORS_DTYPES["F8_E4M3"], SAFETENSORS_DTYPES["I8"], SAFETENSORS_DTYPES["U8"])
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_SINGLE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"  # read where there are no safetensors


class Tensors:
    """The tensors of a directory, in one file or many; quantised ones are returned dequantised.

    `names` are those of all tensors except scales.  Experts fused into one array appear as separate tensors.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self._entries: dict[str, Entry] = {}
        for name, entry in fused.apart(self._stored()):
            if name in self._entries:
                raise UserError(
                    f"{directory} holds {name} by itself and in an array of all experts; leave one of them."
                )
            self._entries[name] = entry
        self._scales = dict(_scales(self._entries))
        self.names = self._entries.keys() - self._scales.values()
        for name in sorted(self.names - self._scales.keys()):
            if self._entries[name].dtype in QUANTISED:
                raise UserError(f"{directory} has {name} in {self._entries[name].dtype}, but no scales of it.")
        self.nbytes = sum(entry.nbytes for entry in self._entries.values())

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._entries[name].read()
        if name in self._scales:
            return dequantise(name, array, self._entries[self._scales[name]].read())
        return array

    def shape(self, name: str) -> tuple[int, ...]:
        entry = self._entries[name]
        packed = name in self._scales and is_packed(entry.dtype)
        return (*entry.shape[:-1], 2 * entry.shape[-1]) if packed else entry.shape

    def dtype(self, name: str) -> np.dtype:
        """The dtype as stored; for quantised matrices bfloat16, the type of the released models' other tensors."""
        return SAFETENSORS_DTYPES["BF16"] if name in self._scales else self._entries[name].dtype

    def _stored(self) -> Iterator[tuple[str, Entry]]:
        """All files' entries; UserError if two files hold the same tensor, as one would be dropped silently."""
        file_of = {}
        for file in self._files():
            of_torch = file.suffix == ".bin"
            for name, entry in (torch_file if of_torch else safetensors_file).entries(file):
                if file_of.setdefault(name, file) != file:
                    raise UserError(f"{file_of[name]} and {file} both hold {name}; leave it in one of them.")
                yield name, entry

    def _files(self) -> list[Path]:
        for index, single in (INDEX, SINGLE), (TORCH_INDEX, TORCH_SINGLE):
            if (self.directory / index).exists():
                return _files_of(self.directory / index)
            if (self.directory / single).exists():
                return [self.directory / single]
        given = self.directory
        if record.kind(given) == "orbax":
            raise UserError(f"{given} holds Orbax's arrays; give what `deepseek-jax convert {given} OUT` makes.")
        names = f"{SINGLE}, {INDEX}, {TORCH_SINGLE} and {TORCH_INDEX}"
        raise UserError(f"{given} holds none of {names}; give the directory of a checkpoint.")


def _files_of(index: Path) -> list[Path]:
    files = read_json(index).get("weight_map")
    if not (isinstance(files, dict) and all(isinstance(file, str) for file in files.values())):
        raise UserError(f"{index} has no weight_map, which says the file of each tensor; copy it again.")
    return [index.parent / file for file in sorted(set(files.values()))]


def _scales(entries) -> Iterator[tuple[str, str]]:
    """(name of a quantised matrix, name of its scales) pairs, in V3's and V4's spelling."""
    for name, entry in entries.items():
        stem = name.removesuffix(".weight")
        for scale in (f"{stem}.weight_scale_inv", f"{stem}.scale"):
            if stem != name and scale in entries and entry.dtype in QUANTISED:
                yield name, scale
