"""Where a model that is to be made smaller comes from, and where the smaller one goes: run directories.

What is written goes through `eval`, `generate` and `predict` as any run does, and training begins from it with
start.checkpoint.  It holds parameters and buffers alone: no optimizer, so that its bytes are those of the model.
"""

import dataclasses
import logging
import shutil
from pathlib import Path

import jax

from deepseek_jax import record
from deepseek_jax.config import AnyExperiment, CheckpointConfig, StartConfig
from deepseek_jax.data import tokenizer
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.hybrid_config import HybridConfig
from deepseek_jax.train import any_checkpoint, checkpoint, known_set, views
from deepseek_jax.train.checkpoint import Checkpoints, Progress
from deepseek_jax.train.restore import restore_model
from deepseek_jax.undisturbed import undisturbed

BESIDE = (tokenizer.TOKENIZER, tokenizer.NAMES, known_set.FILE)  # what a run directory may have beside its checkpoints


@dataclasses.dataclass(frozen=True)
class Source:
    """A model with dense float32 arrays; of one that was released the experiment is only the defaults and its sizes.

    `model` has all sizes, also those that the data decided.
    """

    directory: Path
    experiment: AnyExperiment
    step: int
    model: ModelConfig | HybridConfig
    params: dict
    buffers: dict


def read(directory: str | Path, step: int | None = None) -> Source:
    """The model of a run directory (its newest checkpoint, or that of `step`), of Orbax's or of a released one."""
    directory = Path(directory)
    if (directory / checkpoint.DIRECTORY).is_dir():
        trained = restore_model(directory, step)
        experiment = trained.experiment
        model = known_set.read(directory).model if experiment.family == "supervised" else experiment.model
        return Source(directory, experiment, trained.step, model, trained.params, trained.buffers)
    if step is not None:
        raise UserError(f"{directory} is no run directory and has no checkpoint of step {step}; leave the step out.")
    found = any_checkpoint.read(directory)
    if found.config is None:
        raise UserError(f"{directory} is a part of a network; give the run directory of a whole one.")
    return Source(directory, any_checkpoint.experiment_of(found.config), 0, found.config, found.params, found.buffers)


def with_model(source: Source, model: ModelConfig | HybridConfig, params: dict, buffers: dict) -> Source:
    """The source with another model in it."""
    experiment = dataclasses.replace(source.experiment, model=model)
    return dataclasses.replace(source, experiment=experiment, model=model, params=params, buffers=buffers)


def asking_for(source: Source, **sections) -> Source:
    """The source with these sections of its experiment (prune, quantize) and no others that ask for views."""
    train = dataclasses.replace(source.experiment.train, ema_decay=0.0)  # what was read are the averages already
    sections = {"start": StartConfig(), "train": train} | sections
    experiment = dataclasses.replace(views.plain(source.experiment), **sections)
    return dataclasses.replace(source, experiment=experiment)


def write(directory: str | Path, source: Source):
    """Makes a run directory of the source's model as its experiment keeps it (train/views.py)."""
    directory, experiment = Path(directory), source.experiment
    params, buffers = views.split(experiment, source.params, source.buffers)  # what does not fit leaves no directory
    record.claim(directory, experiment)
    for name in BESIDE:
        if (source.directory / name).exists():
            shutil.copyfile(source.directory / name, directory / name)
    if experiment.family == "supervised":
        known_set.replace_model(directory, source.model)
    with undisturbed(), Checkpoints(directory, CheckpointConfig(), logging.info) as checkpoints:
        checkpoints.save({"params": params, "buffers": buffers}, Progress(step=source.step, model_only=True))


def bytes_of(directory: Path) -> int:
    """Of all checkpoints in a run directory, or of a directory of files as they are."""
    inside = directory / checkpoint.DIRECTORY
    return sum(path.stat().st_size for path in (inside if inside.is_dir() else directory).rglob("*") if path.is_file())


def describe_bytes(made: Path, given: Source) -> str:
    """What a smaller model takes on the disk."""
    size, before = bytes_of(made), dense_bytes(given)
    return f"{made}: {size:,} bytes, {size / before:.1%} of what float32 arrays take"


def dense_bytes(of: Source) -> int:
    """What the model's arrays take as they are."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves((of.params, of.buffers)))
