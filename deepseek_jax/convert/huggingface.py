"""Reads and writes checkpoints as Hugging Face and DeepSeek publish them: config.json beside safetensors files."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from deepseek_jax.convert import config_json
from deepseek_jax.convert.names import MTP_COPIES, may_be_left, mtp_prefix, place, spelling_of
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.tree import split

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


class Tensors:
    """The tensors of a directory by name, whether they lie in one file or in many; read one at a time."""

    def __init__(self, directory: Path):
        self.directory = directory
        if (directory / INDEX).exists():
            self.file_of = json.loads((directory / INDEX).read_text())["weight_map"]
        elif (directory / SINGLE).exists():
            with safe_open(directory / SINGLE, "np") as file:
                self.file_of = dict.fromkeys(file.keys(), SINGLE)
        else:
            raise UserError(f"{directory} holds neither {SINGLE} nor {INDEX}; give the directory of a checkpoint.")
        self._open: dict[str, Any] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.file_of:
            raise UserError(f"{self.directory} has no tensor {name}; its config.json tells of another model.")
        file = self.file_of[name]
        if file not in self._open:
            self._open[file] = safe_open(self.directory / file, "np")
        return self._open[file].get_tensor(name)


def read_config(directory: Path) -> ModelConfig:
    """What a directory holds: Hugging Face saves models without their MTP modules, whatever config.json says."""
    path = Path(directory) / "config.json"
    if not path.exists():
        raise UserError(f"{directory} has no config.json; give the directory of a checkpoint.")
    config = config_json.from_json(json.loads(path.read_text()))
    modules = config.num_nextn_predict_layers
    if not modules or any(name.startswith(mtp_prefix(0, config)) for name in Tensors(Path(directory)).file_of):
        return config
    of_layers = config.layer_types[: config.num_hidden_layers]
    return dataclasses.replace(config, num_nextn_predict_layers=0, layer_types=of_layers)


def load(directory: Path, config: ModelConfig) -> tuple[dict, dict]:
    """(params, buffers) in the types of a new model, as `models.tree.split` gives them for a `Decoder` of `config`.

    Raises UserError where a tensor is missing, has another shape, or would be left over: nothing is dropped in
    silence but the modules past those that `config` has.
    """
    tensors, read = Tensors(Path(directory)), set()
    spelling = spelling_of(tensors.file_of)

    def fetch(path, leaf):
        where = place(_keys(path), config, spelling)
        names = where.names
        read.update(name for layer in names for name in layer)
        array = where.to_ours(([tensors[name] for name in layer] for layer in names), config)
        if array.shape != leaf.shape:
            raise UserError(
                f"{directory}: {names[0][0]} and its like make {array.shape}; config.json says {leaf.shape}."
            )
        return array.astype(leaf.dtype)

    trees = jax.tree_util.tree_map_with_path(fetch, abstract_trees(config))
    left = [name for name in tensors.file_of if name not in read and not may_be_left(name, config)]
    if left:
        raise UserError(f"{directory} has {len(left)} tensors that this model does not know, such as {min(left)}.")
    return trees


def save(directory: Path, config: ModelConfig, params: dict, buffers: dict, *, shard_bytes: int = SHARD_BYTES):
    """Writes what `load` reads; in numbered files with an index where there are more than `shard_bytes`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_json.to_json(config), indent=2) + "\n")
    tensors = export(config, params, buffers)
    tensors |= _mtp_copies(config, tensors)
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        save_file(tensors, directory / SINGLE, metadata={"format": "pt"})
        return
    file_of = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensors[name] for name in shard}, directory / file, metadata={"format": "pt"})
        file_of |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": file_of}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def export(config: ModelConfig, *trees: dict) -> dict[str, np.ndarray]:
    """Arrays named and laid out as in a checkpoint, from trees nested as the parameters or buffers (gradients too)."""
    tensors = {}
    for path, array in jax.tree_util.tree_leaves_with_path(trees):
        where = place(_keys(path), config)
        for name, tensor in where.to_theirs(np.asarray(array), config).items():
            tensors[name] = np.ascontiguousarray(tensor)
    return tensors


def abstract_trees(config: ModelConfig) -> tuple[dict, dict]:
    """Shapes of the parameters and the buffers, without making them."""
    model = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0)))
    _, params, buffers = split(model)
    return params, buffers


def _keys(path):
    """The names along a path into one tree of a tuple of trees."""
    return tuple(key.key for key in path[1:])


def _mtp_copies(config, tensors):
    return {
        mtp_prefix(depth, config) + copy: tensors.get(original, tensors["model.embed_tokens.weight"])
        for depth in range(0 if config.hc_mult else config.num_nextn_predict_layers)
        for copy, original in MTP_COPIES.items()
    }


def _shards(tensors, shard_bytes) -> Iterator[list[str]]:
    shard, size = [], 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += tensor.nbytes
    yield shard
