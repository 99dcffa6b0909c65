"""Writes checkpoints, one tensor at a time: from our arrays, or from another checkpoint."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from deepseek_jax.convert import config_json, fused, shards
from deepseek_jax.convert.generations import generation_of
from deepseek_jax.convert.names import MTP_COPIES, mtp_prefix, place
from deepseek_jax.convert.reading import abstract_trees, locate, read_config, within
from deepseek_jax.convert.safetensors_file import Output
from deepseek_jax.convert.tensors import Tensors
from deepseek_jax.errors import UserError
from deepseek_jax.files import write_json
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.reporting import Report, no_report


def save(
    directory: Path,
    config: ModelConfig,
    params: dict,
    buffers: dict,
    *,
    dtype: str | None = None,
    spelling: str = "huggingface",
    shard_bytes: int = shards.SHARD_BYTES,
    report: Report = no_report,
    change: Callable[[str, Output], list[Output]] = lambda path, output: [output],
    values: Mapping[str, Any] = MappingProxyType({}),
):
    """Writes a checkpoint that `load` reads; `report` counts bytes.

    `dtype`: see `rewrite`.  `spelling`: "huggingface" or "deepseek", which differ for V4.  Files hold up to
    `shard_bytes`.  `change(path, output)` returns the tensors to write in place of `output`, a tensor of our array at
    `path`; `values` are added to config.json.  Logs a warning about NaN.
    """
    outputs = _outputs(config, (params, buffers), spelling, change, dtype)
    _publish(directory, config, outputs, spelling, shard_bytes, report, values).warn(directory.name)


def rewrite(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    spelling: str = "huggingface",
    shard_bytes: int = shards.SHARD_BYTES,
    report: Report = no_report,
):
    """Writes a checkpoint again in another spelling, dtype or file size, with no more than one tensor in memory.

    `dtype` None keeps that of every tensor (bfloat16 where quantised).  Buffers, such as a router's bias, always keep
    theirs, and tensors that rules.py marks are float32 in any other `dtype`.
    Logs a warning about NaN.  Raises UserError if a number overflows `dtype`, or if `target` is `source`.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise UserError(f"{source} would be written over while it is read; give another directory.")
    config, tensors = read_config(source), Tensors(source)
    places, names = locate(tensors, config, abstract_trees(config)), _spelling(config, spelling)
    outputs = []
    for path, where in jax.tree_util.tree_leaves_with_path(places):
        target_names = place(within(path), config, names).names
        for at, name in where.names.items():
            kind = _written(path, where.rule, dtype, tensors.dtype(name))
            read = functools.partial(tensors.__getitem__, name)
            outputs.append(Output(target_names[at], kind, tensors.shape(name), (read,)))
    _publish(target, config, outputs, spelling, shard_bytes, report).warn(source)


def export(config: ModelConfig, *trees: dict, fuse: bool = False) -> dict[str, np.ndarray]:
    """Arrays by Hugging Face's names and in its layout, from trees nested like parameters or buffers (e.g. gradients).

    `fuse` joins a layer's experts into two arrays, as Hugging Face's modules do.
    """
    outputs = _outputs(config, trees, "huggingface")
    return {output.name: output.array() for output in (fused.together(outputs) if fuse else outputs)}


def _written(path, rule, dtype, stored) -> np.dtype:
    """The dtype in which a tensor of type `stored` is written if a model of `dtype` is asked for."""
    is_buffer = path[0].idx == 1
    return np.dtype(rule.dtype(None if is_buffer else dtype) or stored)


def _outputs(config, trees, spelling, change=lambda path, output: [output], dtype=None):
    spelling, outputs = _spelling(config, spelling), []
    for path, array in jax.tree_util.tree_leaves_with_path(trees):
        where, array = place(within(path), config, spelling), _at_hand(array)
        shape = where.rule.shape_of_theirs(array.shape[where.leading :])
        kind = _written(path, where.rule, dtype, np.int64 if array.dtype == np.int32 else array.dtype)
        for at, name in where.names.items():
            piece = functools.partial(_theirs, where.rule, array, at, config)
            outputs.extend(change(within(path), Output(name, kind, shape, (piece,))))
    return outputs


def _at_hand(array):
    """A numpy view of an array on one CPU; other arrays unchanged, to be fetched from their devices piece by piece."""
    own = isinstance(array, jax.Array) and {device.platform for device in array.devices()} == {"cpu"}
    return np.asarray(array) if own and len(array.devices()) == 1 else array


def _theirs(rule, array, at, config):
    part = array[at] if isinstance(array, np.ndarray) else _part(array, at)
    return rule.to_theirs(np.asarray(part), config)


_part = jax.jit(lambda array, at: array[at])


def _publish(directory, config, outputs, spelling, shard_bytes, report, further=MappingProxyType({})):
    directory = Path(directory)
    values = config_json.to_json(config, spelling) | {"torch_dtype": outputs[0].dtype.name} | further
    write_json(directory / "config.json", values)
    outputs = outputs + _mtp_copies(config, {output.name: output for output in outputs})
    if is_v4(config) and spelling == "huggingface":
        outputs = fused.together(outputs)
    return shards.write(directory, outputs, shard_bytes, report)


def _mtp_copies(config, outputs):
    """The copies of embedding and head that each of V3's MTP modules contains beside its own tensors."""
    return [
        dataclasses.replace(
            outputs.get(original, outputs["model.embed_tokens.weight"]), name=mtp_prefix(depth, config) + copy
        )
        for depth in range(0 if config.hc_mult else config.num_nextn_predict_layers)
        for copy, original in MTP_COPIES.items()
    ]


def _spelling(config, spelling):
    """The spelling of tensor names: models before V4, and mixtures of generations, have only one."""
    return spelling if is_v4(config) else "huggingface"


def is_v4(config: ModelConfig) -> bool:
    """Whether this is a V4 model, for which DeepSeek's tensor names and Hugging Face's differ."""
    generation = generation_of(config)
    return generation is not None and generation.model_type == "deepseek_v4"
