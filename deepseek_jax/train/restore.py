"""Loads a trained model from a run directory onto whatever devices are present."""

import dataclasses
import functools
from pathlib import Path

import jax
from flax import nnx

from deepseek_jax import record
from deepseek_jax.compress.arithmetic import chooser
from deepseek_jax.compress.matrices import by_matrix
from deepseek_jax.config import AnyExperiment, Experiment, SupervisedExperiment
from deepseek_jax.models import tree
from deepseek_jax.models.arithmetic import give
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.hybrid import Hybrid
from deepseek_jax.parallel import rules
from deepseek_jax.parallel.mesh import MeshOf, mesh_of_used
from deepseek_jax.parallel.rules import abstract_on
from deepseek_jax.train import checkpoint, dataset_record, views
from deepseek_jax.train.program import replicated_axes
from deepseek_jax.train.state import scored_model
from deepseek_jax.tune import lora


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """`models.tree.merge(graphdef, params, buffers)` is the model; moving averages if the run keeps them."""

    experiment: AnyExperiment
    step: int
    graphdef: nnx.GraphDef
    params: dict
    buffers: dict


def restore_model(workdir: str | Path, step: int | None = None, mesh_of: MeshOf = mesh_of_used) -> TrainedModel:
    """The model of a run's newest intact checkpoint, or of that of `step`; UserError if there is none.

    Its arrays are sharded by their logical axes over `mesh_of(model config)`, by default over all devices.
    """
    kept = _restore(workdir, step, mesh_of)
    if not views.views_of(kept.experiment):
        return kept
    _, shapes, axes = _model(kept.experiment, Path(workdir))
    at = tuple(map(functools.partial(rules.shardings, mesh_of(kept.experiment.model)), axes, shapes))
    to_model = jax.jit(lambda *arrays: views.weights(kept.experiment, *arrays), out_shardings=at)
    params, buffers = to_model(kept.params, kept.buffers)
    return dataclasses.replace(kept, params=params, buffers=buffers)


def restore_adapters(workdir: str | Path) -> tuple[AnyExperiment, dict[str, dict]]:
    """(the experiment, its newest adapters by the path of the matrix they adapt) of a run that trains adapters."""
    kept = _restore(workdir, None, mesh_of_used)
    return kept.experiment, by_matrix(kept.params[lora.ADAPTERS])


def _restore(workdir, step, mesh_of) -> TrainedModel:
    """The parameters and buffers that the run trained and kept, still split by its views (train/views.py)."""
    experiment = record.read(workdir)
    graphdef, shapes, axes = _model(experiment, Path(workdir))
    kept = jax.eval_shape(lambda *model: views.split(experiment, *model), *shapes)
    abstract = functools.partial(abstract_on, mesh_of(experiment.model))
    params, buffers = map(abstract, views.axes(experiment, *axes), kept)
    model = {"params": params, "buffers": buffers}
    if experiment.train.ema_decay > 0:
        model = {"buffers": buffers, "ema": model | {"buffers": views.own_buffers(experiment, buffers)}}
    step, state = checkpoint.read(Path(workdir), model, step)
    return TrainedModel(experiment, step, graphdef, *scored_model(state))


def _model(experiment, workdir):
    """(graphdef, shapes of parameters and of buffers, logical axes of both)."""
    graphdef, *shapes = structure(experiment, workdir)
    axes, buffer_axes = tree.logical_axes(tree.merge(graphdef, *shapes))
    return graphdef, shapes, (axes, replicated_axes(buffer_axes))


def structure(experiment: AnyExperiment, workdir: Path) -> tuple[nnx.GraphDef, dict, dict]:
    """(graphdef, shapes of parameters, of buffers) of the model that an experiment describes.

    A hybrid network's sizes are read from dataset.json in `workdir`.
    """
    return STRUCTURES[experiment.family](experiment, workdir)


def _decoder(experiment: Experiment, workdir: Path):
    def make():
        return Decoder(experiment.model, rngs=nnx.Rngs(params=0), dtype=experiment.train.dtype)

    return tree.split(give(jax.eval_shape(make), chooser(experiment.arithmetic)))


def _hybrid(experiment: SupervisedExperiment, workdir: Path):
    model, dtype = dataset_record.read(workdir).model, experiment.train.dtype

    def make():
        return Hybrid(model, rngs=nnx.Rngs(params=0), dtype=dtype)

    return tree.split(give(jax.eval_shape(make), chooser(experiment.arithmetic)))


STRUCTURES = {"language_model": _decoder, "supervised": _hybrid}
