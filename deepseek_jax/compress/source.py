"""Changing a model that was read, and writing it as a run directory.

`eval`, `generate` and `predict` accept that directory like any run's, and training can start from it with
start.checkpoint.  It contains only parameters and buffers, no optimizer state, so its size is that of the model.
"""

import dataclasses
import logging
import shutil
from pathlib import Path

import jax

from deepseek_jax import record
from deepseek_jax.config import CheckpointConfig, StartConfig
from deepseek_jax.data import tokenizer
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.train import views
from deepseek_jax.train.checkpoints import checkpoint, dataset_record
from deepseek_jax.train.checkpoints.checkpoint import Checkpoints, RunPosition
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.uninterrupted import uninterrupted

MODEL_FILES = (tokenizer.TOKENIZER, tokenizer.NAMES, dataset_record.DATASET_FILE)  # of a run: they go with its model


def with_model(source: Trained, config: ModelConfig | HybridConfig, params: dict, buffers: dict) -> Trained:
    """The source with its model's config and arrays replaced."""
    experiment = dataclasses.replace(source.experiment, model=config)
    return dataclasses.replace(source, experiment=experiment, config=config, params=params, buffers=buffers)


def with_sections(source: Trained, **sections) -> Trained:
    """The source with these `sections` in its experiment (prune, quantize); all others that ask for views are off."""
    train = dataclasses.replace(source.experiment.train, ema_decay=0.0)  # the weights read are the averages already
    sections = {"start": StartConfig(), "train": train} | sections
    experiment = dataclasses.replace(views.without_views(source.experiment), **sections)
    return dataclasses.replace(source, experiment=experiment)


def write(directory: str | Path, source: Trained):
    """Writes a run directory with the source's model in the form that its experiment stores (train/views.py)."""
    directory, experiment = Path(directory), source.experiment
    params, buffers = views.split(experiment, source.params, source.buffers)  # may raise, so it precedes mkdir
    record.claim(directory, experiment)
    for name in MODEL_FILES:
        if (source.directory / name).exists():
            shutil.copyfile(source.directory / name, directory / name)
    if experiment.family == "supervised":
        dataset_record.replace_model(directory, source.config)
    with uninterrupted(), Checkpoints(directory, CheckpointConfig(), logging.info) as checkpoints:
        checkpoints.save({"params": params, "buffers": buffers}, RunPosition(step=source.step, model_only=True))


def bytes_of(directory: Path) -> int:
    """Bytes on disk of all checkpoints in a run directory, or of all files in any other directory."""
    inside = directory / checkpoint.DIRECTORY
    return sum(path.stat().st_size for path in (inside if inside.is_dir() else directory).rglob("*") if path.is_file())


def describe_bytes(made: Path, given: Trained) -> str:
    """A line on the size on disk of the model at `made`, beside that of the float32 arrays of `given`."""
    size, before = bytes_of(made), dense_bytes(given)
    return f"{made}: {size:,} bytes, {size / before:.1%} of what float32 arrays take"


def dense_bytes(of: Trained) -> int:
    """Bytes that the model's arrays occupy in their present dtypes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves((of.params, of.buffers)))
