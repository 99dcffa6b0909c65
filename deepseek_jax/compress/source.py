"""Reading the model to compress, and writing the compressed one as a run directory.

`eval`, `generate` and `predict` accept that directory like any run's, and training can start from it with
start.checkpoint.  It contains only parameters and buffers, no optimizer state, so its size is that of the model.
"""

import dataclasses
import logging
import shutil
from pathlib import Path

import jax

from deepseek_jax import record
from deepseek_jax.config import AnyExperiment, CheckpointConfig, StartConfig
from deepseek_jax.data import tokenizer
from deepseek_jax.delay_signals import delay_signals
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.hybrid_config import HybridConfig
from deepseek_jax.train import any_checkpoint, checkpoint, dataset_record, views
from deepseek_jax.train.checkpoint import Checkpoints, RunPosition
from deepseek_jax.train.restore import restore_model

MODEL_FILES = (tokenizer.TOKENIZER, tokenizer.NAMES, dataset_record.DATASET_FILE)  # of a run: they go with its model


@dataclasses.dataclass(frozen=True)
class Source:
    """A model with dense float32 arrays.  For a released model, `experiment` is the default one with its sizes.

    `model` has all sizes, including those that the data decided (classes, columns); `experiment.model` may lack them.
    """

    directory: Path
    experiment: AnyExperiment
    step: int
    model: ModelConfig | HybridConfig
    params: dict
    buffers: dict


def read(directory: str | Path, step: int | None = None) -> Source:
    """The model of a run directory (its newest checkpoint, or that of `step`), an Orbax directory or a release."""
    directory = Path(directory)
    if (directory / checkpoint.DIRECTORY).is_dir():
        trained = restore_model(directory, step)
        experiment = trained.experiment
        model = dataset_record.read(directory).model if experiment.family == "supervised" else experiment.model
        return Source(directory, experiment, trained.step, model, trained.params, trained.buffers)
    if step is not None:
        raise UserError(f"{directory} is not a run directory and has no checkpoint of step {step}; leave the step out.")
    found = any_checkpoint.read(directory)
    if found.config is None:
        raise UserError(f"{directory} holds only a part of a network; give the run directory of a whole one.")
    return Source(directory, any_checkpoint.experiment_of(found.config), 0, found.config, found.params, found.buffers)


def with_model(source: Source, model: ModelConfig | HybridConfig, params: dict, buffers: dict) -> Source:
    """The source with its model's config and arrays replaced."""
    experiment = dataclasses.replace(source.experiment, model=model)
    return dataclasses.replace(source, experiment=experiment, model=model, params=params, buffers=buffers)


def with_sections(source: Source, **sections) -> Source:
    """The source with these `sections` in its experiment (prune, quantize); all others that ask for views are off."""
    train = dataclasses.replace(source.experiment.train, ema_decay=0.0)  # the weights read are the averages already
    sections = {"start": StartConfig(), "train": train} | sections
    experiment = dataclasses.replace(views.without_views(source.experiment), **sections)
    return dataclasses.replace(source, experiment=experiment)


def write(directory: str | Path, source: Source):
    """Writes a run directory with the source's model in the form that its experiment stores (train/views.py)."""
    directory, experiment = Path(directory), source.experiment
    params, buffers = views.split(experiment, source.params, source.buffers)  # may raise, so it precedes mkdir
    record.claim(directory, experiment)
    for name in MODEL_FILES:
        if (source.directory / name).exists():
            shutil.copyfile(source.directory / name, directory / name)
    if experiment.family == "supervised":
        dataset_record.replace_model(directory, source.model)
    with delay_signals(), Checkpoints(directory, CheckpointConfig(), logging.info) as checkpoints:
        checkpoints.save({"params": params, "buffers": buffers}, RunPosition(step=source.step, model_only=True))


def bytes_of(directory: Path) -> int:
    """Bytes on disk of all checkpoints in a run directory, or of all files in any other directory."""
    inside = directory / checkpoint.DIRECTORY
    return sum(path.stat().st_size for path in (inside if inside.is_dir() else directory).rglob("*") if path.is_file())


def describe_bytes(made: Path, given: Source) -> str:
    """A line on the size on disk of the model at `made`, beside that of the float32 arrays of `given`."""
    size, before = bytes_of(made), dense_bytes(given)
    return f"{made}: {size:,} bytes, {size / before:.1%} of what float32 arrays take"


def dense_bytes(of: Source) -> int:
    """Bytes that the model's arrays occupy in their present dtypes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves((of.params, of.buffers)))
