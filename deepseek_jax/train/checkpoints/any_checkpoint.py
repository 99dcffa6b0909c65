"""Loads a model from any kind of directory, each device reading only its own shards."""

from pathlib import Path

from deepseek_jax import part_settings, record
from deepseek_jax.config import DataConfig, Experiment, TrainConfig
from deepseek_jax.convert import huggingface, orbax_directory
from deepseek_jax.errors import UserError
from deepseek_jax.models import checks
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.parallel.mesh import MeshOf, mesh_of_used
from deepseek_jax.train.checkpoints import checkpoint
from deepseek_jax.train.checkpoints.restore import Trained, restore_model, shardings

MOST_TOKENS = 512  # longest sequence of the text on which a released model is calibrated and scored


def read(
    directory: str | Path,
    step: int | None = None,
    mesh_of: MeshOf = mesh_of_used,
    *,
    best: bool = False,
    dtype: str | None = "float32",
) -> Trained:
    """Reads the model of a run directory, of the output of `convert --to orbax`, or of released files.

    A run: its newest intact checkpoint, or that of `step` or of the `best` evaluation, with moving averages if the run
    keeps them; always float32.  Converted or released files: cast to `dtype` (None: as stored), as step 0; their
    activations are bfloat16 if the embedding is, else float32.  Placement on devices: see `restore_model`.
    UserError for any other path, and for `step` or `best` of anything but a run.
    """
    directory, kind = Path(directory), record.kind(directory)
    if kind == "run":
        return restore_model(directory, checkpoint.best_step(directory) if best else step, mesh_of)
    if best:
        raise UserError(f"start.best is set, but {directory} is not a run directory; leave start.best out.")
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give that of a run or a checkpoint.")
    if step is not None:
        raise UserError(f"{directory} is not a run directory and has no checkpoint of step {step}; leave the step out.")
    files = orbax_directory if kind == "orbax" else huggingface  # which says what is wrong with any other directory
    config = files.read_config(directory)
    at = shardings(_experiment(config), config, mesh_of)
    params, buffers = files.load(directory, config, dtype=dtype, shardings=at)
    experiment = _experiment(config, "bfloat16" if params["embedding"].dtype.name == "bfloat16" else "float32")
    return Trained(directory, experiment, 0, config, params, buffers)


def _experiment(config: ModelConfig, dtype: str = "float32") -> Experiment:
    """Stands in for a released model's unknown experiment: its sizes, and data defaults that suit any text."""
    data = DataConfig(sequence_length=min(MOST_TOKENS, config.max_position_embeddings), fim_rate=0.0)
    modules = tuple(checks.plugins_of(config))
    parts = part_settings.of(part_settings.added_by(modules), config.parts)
    return Experiment(plugins=modules, parts=parts, model=config, data=data, train=TrainConfig(dtype=dtype))
