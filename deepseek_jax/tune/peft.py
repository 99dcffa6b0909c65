"""Reads and writes adapters in the format of the library peft: adapter_config.json and adapter_model.safetensors.

The file has matrices lora_A [r, in] and lora_B [out, r] per linear layer, under the layer's name in released
checkpoints.  Experts have their own, one by one, under the names in DeepSeek's files (transformers fuses experts, so
peft itself cannot adapt them this way).  So have the groups of V4's output projection, one tensor in released files:
the group's number follows the layer's name.  No library has the hybrid network: its layers are named like its
parameters, and a convolution counts as the matrix [height x width x input channels, output channels] that patches
multiply.

r rank
"""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from deepseek_jax.convert.finite import is_finite
from deepseek_jax.convert.names import place
from deepseek_jax.convert.reading import abstract_trees
from deepseek_jax.convert.safetensors_file import entries
from deepseek_jax.errors import UserError
from deepseek_jax.fields import convert
from deepseek_jax.files import read_json, write_json
from deepseek_jax.models import tree
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.tune.config import LoraConfig
from deepseek_jax.views.lora import Adapter, geometry
from deepseek_jax.views.matrices import CONTROL, matrix_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {"a": ".lora_A.weight", "b": ".lora_B.weight", "scale": ".lora_magnitude_vector"}

# Keys of adapter_config.json that must have these values or be empty; anything else would be another method.
NEUTRAL = {
    "bias": "none",
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "use_qalora": False,
    "lora_bias": False,
    "alora_invocation_tokens": None,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "velora_config": None,
    "monteclora_config": None,
}
CHANGES_WEIGHTS = "pissa", "olora", "corda", "lora_ga"  # init_lora_weights that also change the base model's weights


def save(directory: Path, model: ModelConfig | HybridConfig, adapters: dict[str, Adapter], config: LoraConfig):
    """Writes adapters so that `load` and peft's PeftModel.from_pretrained can read them."""
    tensors, layers = {}, []
    for path, adapter in adapters.items():
        matrix = geometry(path, adapter)
        for at, layer in layer_names(path, model, matrix.leading).items():
            layers.append(layer)
            for part, array in adapter.items():
                tensors[PREFIX + layer + PARTS[part]] = _theirs(part, np.asarray(array[at], np.float32))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if isinstance(model, ModelConfig) else None,
        "base_model_name_or_path": None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "use_dora": config.dora,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(layers),  # full names: the last part alone would match routed and shared experts
    }
    write_json(directory / CONFIG, about)


def load(directory: Path, model: ModelConfig | HybridConfig) -> tuple[dict[str, Adapter], LoraConfig]:
    """(adapters of numpy arrays by the path of our matrix, their config); zeros for layers of a stack that have none.

    Raises UserError if they do not fit this model, or use a method other than LoRA and DoRA.
    """
    directory = Path(directory)
    config = _read_config(directory)
    found = {name.removeprefix(PREFIX): entry for name, entry in entries(directory / TENSORS)}
    left, adapters = set(found), {}
    for path, weight in tree.by_path(_shapes(model)).items():
        matrix = matrix_of(path, weight.ndim)
        if matrix is None or matrix.kind == CONTROL:
            continue
        layers = layer_names(path, model, matrix.leading)
        there = {at: layer for at, layer in layers.items() if layer + PARTS["a"] in found}
        if not there:
            continue
        if config.dora and len(there) < len(layers):
            raise UserError(f"{directory} has no DoRA adapter for {min(set(layers.values()) - set(there.values()))}.")
        leading, inputs, outputs = matrix.split(weight.shape)
        shapes = {"a": (*inputs, config.rank), "b": (config.rank, *outputs)}
        shapes |= {"scale": outputs} if config.dora else {}
        adapters[path] = {part: np.zeros((*leading, *shape), np.float32) for part, shape in shapes.items()}
        for at, layer in there.items():
            for part, shape in shapes.items():
                left.discard(layer + PARTS[part])
                adapters[path][part][at] = _ours(part, layer, found.get(layer + PARTS[part]), shape)
    if left:
        raise UserError(f"{directory} has adapters for {min(left)}, which this model does not have.")
    return adapters, config


def layer_names(path: str, model: ModelConfig | HybridConfig, leading: int) -> dict[tuple[int, ...], str]:
    """The names of the linear layers in our array at `path`, by their index in its `leading` dimensions."""
    if isinstance(model, HybridConfig):
        return {(): path.replace("/", ".")}
    where = place(path, model)
    names = {at: name.removesuffix(".weight") for at, name in where.names.items()}
    if where.leading == leading:
        return names
    # V4's grouped output: one tensor of a released checkpoint, but a matrix and so an adapter for each group.
    return {(*at, group): f"{name}.{group}" for at, name in names.items() for group in range(model.o_groups)}


def _shapes(model) -> dict:
    """The model's parameters as shapes, without allocating them."""
    if isinstance(model, HybridConfig):
        return tree.split(jax.eval_shape(lambda: Hybrid(model, rngs=nnx.Rngs(params=0))))[1]
    return abstract_trees(model)[0]


def _theirs(part, array):
    if part == "scale":
        return np.ascontiguousarray(array.reshape(-1))
    a = part == "a"
    return np.ascontiguousarray((array.reshape(-1, array.shape[-1]) if a else array.reshape(array.shape[0], -1)).T)


def _ours(part, layer, entry, shape):
    theirs = _shape_of_theirs(part, shape)
    if entry is None or entry.shape != theirs:
        there = "none" if entry is None else entry.shape
        raise UserError(f"the adapter of {layer} has {PARTS[part][1:]} of {there}; this model needs {theirs}.")
    array = entry.read().astype(np.float32)
    if not is_finite(array):
        raise UserError(
            f"the adapter of {layer} holds NaN or infinity in {PARTS[part][1:]}: its file is damaged, or its training "
            "diverged."
        )
    return (array if part == "scale" else array.T).reshape(shape)


def _shape_of_theirs(part, shape) -> tuple[int, ...]:
    if part == "scale":
        return (math.prod(shape),)
    return (shape[-1], math.prod(shape[:-1])) if part == "a" else (math.prod(shape[1:]), shape[0])


def _read_config(directory) -> LoraConfig:
    path = directory / CONFIG
    if not path.exists():
        raise UserError(f"{directory} has no {CONFIG}; give the directory of adapters as the library peft saves them.")
    about = read_json(path)
    if about.get("peft_type") != "LORA":
        raise UserError(
            f"{path} uses the method {about.get('peft_type')}; only LORA, with or without use_dora, is read."
        )
    for key, value in NEUTRAL.items():
        if about.get(key) and about[key] != value:
            raise UserError(f"{path} has {key} = {about[key]!r}, which is not read; only {value!r} is.")
    if missing := {"r", "lora_alpha"} - about.keys():
        raise UserError(f"{path} has no {min(missing)}; the library peft writes it.")
    if str(about.get("init_lora_weights")).startswith(CHANGES_WEIGHTS):
        how = about["init_lora_weights"]
        raise UserError(
            f"{path} was initialised by {how}, which changes the base weights; save it with peft as plain LoRA."
        )
    rank, alpha = convert(f"{path}'s r", about["r"], int), convert(f"{path}'s lora_alpha", about["lora_alpha"], float)
    if rank < 1:
        raise UserError(f"{path}'s r is {rank}; it must be at least 1.")
    alpha *= math.sqrt(rank) if about.get("use_rslora") else 1.0  # of rank-stabilised adapters
    return dataclasses.replace(LoraConfig(), rank=rank, alpha=alpha, dora=bool(about.get("use_dora")))
