"""A trained model out of a run directory, on whatever devices are here."""

import dataclasses
from pathlib import Path

import jax
from flax import nnx

from deepseek_jax import record
from deepseek_jax.config import Experiment, MeshConfig, SupervisedExperiment
from deepseek_jax.models import tree
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.hybrid import Hybrid
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import replicated
from deepseek_jax.train import checkpoint, known_set, views


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """`models.tree.merge(graphdef, params, buffers)` is the model; params are averaged ones where the run has them."""

    experiment: Experiment
    step: int
    graphdef: nnx.GraphDef
    params: dict
    buffers: dict


def restore_model(workdir: str | Path, step: int | None = None) -> TrainedModel:
    """A run's newest intact checkpoint, or that of `step`, copied to every device; UserError where there is none."""
    experiment = record.read(workdir)
    graphdef, *model = STRUCTURES[experiment.family](experiment, Path(workdir))
    params, buffers = jax.eval_shape(lambda *model: views.split(experiment, *model), *model)
    which = "ema" if experiment.train.ema_decay > 0 else "params"
    at = replicated(make_mesh(MeshConfig()))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), {which: params, "buffers": buffers}
    )
    step, state = checkpoint.read(Path(workdir), abstract, step)
    return TrainedModel(experiment, step, graphdef, *views.weights(experiment, state[which], state["buffers"]))


def _decoder(experiment: Experiment, workdir: Path):
    options = {"dtype": experiment.train.dtype}
    return jax.eval_shape(lambda: initialise(experiment.model, jax.random.key(0), **options))


def _hybrid(experiment: SupervisedExperiment, workdir: Path):
    model, dtype = known_set.read(workdir).model, experiment.train.dtype
    return tree.split(jax.eval_shape(lambda: Hybrid(model, rngs=nnx.Rngs(params=jax.random.key(0)), dtype=dtype)))


STRUCTURES = {"language_model": _decoder, "supervised": _hybrid}
