"""Loads a model from any kind of checkpoint, each device reading only its own shards."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax

from deepseek_jax import record
from deepseek_jax.config import DataConfig, Experiment, TrainConfig
from deepseek_jax.convert import efficientnet, huggingface, orbax_directory
from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.hybrid_config import HybridConfig
from deepseek_jax.parallel import rules
from deepseek_jax.parallel.mesh import MeshOf, mesh_of_used
from deepseek_jax.train import checkpoint, dataset_record
from deepseek_jax.train.program import replicated_axes
from deepseek_jax.train.restore import TrainedModel, restore_model, structure

MOST_TOKENS = 512  # longest sequence of the text on which a released model is calibrated and scored


@dataclasses.dataclass(frozen=True)
class Found:
    """A model on the devices, its family, and the config that sets its sizes."""

    family: str
    config: ModelConfig | HybridConfig | None  # None for part of a network (a .pth), sized by its arrays alone
    params: dict
    buffers: dict


def read_trained(directory: str | Path, step: int | None = None, mesh_of: MeshOf = mesh_of_used) -> TrainedModel:
    """The model of a run directory (newest intact checkpoint, or that of `step`), or a released one in stored dtypes.

    `mesh_of`: see `restore_model`.  A released model gets step 0, and its activations are bfloat16 if its embedding is,
    else float32.  UserError if a `step` of a released checkpoint is asked for.
    """
    directory = Path(directory)
    if not record.is_release(directory):
        return restore_model(directory, step, mesh_of)
    if step is not None:
        raise UserError(f"{directory} is a released checkpoint, which has no steps; leave --checkpoint out.")
    found = read(directory, mesh_of, dtype=None)
    dtype = "bfloat16" if found.params["embedding"].dtype.name == "bfloat16" else "float32"
    experiment = experiment_of(found.config, dtype)
    graphdef, *_ = structure(experiment, directory)
    return TrainedModel(experiment, 0, graphdef, found.params, found.buffers)


def experiment_of(config: ModelConfig, dtype: str = "float32") -> Experiment:
    """Stands in for a released model's unknown experiment: its sizes, and data defaults that suit any text."""
    data = DataConfig(sequence_length=min(MOST_TOKENS, config.max_position_embeddings), fim_rate=0.0)
    return Experiment(model=config, data=data, train=TrainConfig(dtype=dtype))


def read(
    directory: Path, mesh_of: MeshOf = mesh_of_used, *, best: bool = False, dtype: str | None = "float32"
) -> Found:
    """Reads a run directory, the output of `convert --to orbax`, released files, or a .pth file.

    A run: its newest checkpoint, or that of the `best` evaluation, with moving averages if the run keeps them; always
    float32.  Converted or released files: cast to `dtype` (None: as stored).  A .pth file: EfficientNet-Lite0, the
    convolution of a hybrid network.  Placement on devices: see `restore_model`.  UserError for any other path, and for
    `best` of anything but a run.
    """
    if best and not (directory / checkpoint.DIRECTORY).is_dir():
        raise UserError(f"start.best is set, but {directory} is not a run directory; leave start.best out.")
    if directory.suffix == ".pth":
        params, buffers = efficientnet.load(directory)
        at = rules.replicated(mesh_of(HybridConfig()))
        return Found("supervised", None, *jax.tree.map(lambda leaf: jax.device_put(leaf, at), (params, buffers)))
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give that of a run or a checkpoint.")
    if (directory / checkpoint.DIRECTORY).is_dir():
        trained = restore_model(directory, checkpoint.best_step(directory) if best else None, mesh_of)
        family = trained.experiment.family
        config = dataset_record.read(directory).model if family == "supervised" else trained.experiment.model
        return Found(family, config, trained.params, trained.buffers)
    if orbax_directory.is_one(directory):

        def load(directory, config, **how):
            return orbax_directory.load(directory, **how)[1:]

        return _of_files(directory, orbax_directory.read_config(directory), load, mesh_of, dtype)
    return _of_files(directory, huggingface.read_config(directory), huggingface.load, mesh_of, dtype)


def _of_files(directory: Path, config: ModelConfig, load: Callable, mesh_of: MeshOf, dtype: str | None) -> Found:
    graphdef, *shapes = jax.eval_shape(lambda: initialise(config, jax.random.key(0)))
    axes, buffer_axes = tree.logical_axes(tree.merge(graphdef, *shapes))
    at = tuple(map(functools.partial(rules.shardings, mesh_of(config)), (axes, replicated_axes(buffer_axes)), shapes))
    return Found("language_model", config, *load(directory, config, dtype=dtype, shardings=at))
