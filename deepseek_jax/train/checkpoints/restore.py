"""A trained model, and how it is read from a run directory onto whatever devices are present."""

import dataclasses
import functools
from pathlib import Path

import jax
from flax import nnx

from deepseek_jax import record
from deepseek_jax.compress.config import ArithmeticConfig
from deepseek_jax.config import AnyExperiment
from deepseek_jax.models import tree
from deepseek_jax.models.arithmetic import give
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.parallel import rules
from deepseek_jax.parallel.mesh import MeshOf, mesh_of_used
from deepseek_jax.parallel.rules import abstract_on
from deepseek_jax.train import views
from deepseek_jax.train.checkpoints import checkpoint, dataset_record
from deepseek_jax.train.program import replicated_axes
from deepseek_jax.train.state import scored_model
from deepseek_jax.views import lora
from deepseek_jax.views.arithmetic import chooser
from deepseek_jax.views.matrices import by_matrix


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model read from `directory`: `models.tree.merge(graphdef, params, buffers)`.

    `experiment` trained it; that of a released model has only its sizes, and defaults.  `config` has all sizes, also
    those that the data decided (classes, columns), which `experiment.model` may lack.
    """

    directory: Path
    experiment: AnyExperiment
    step: int
    config: ModelConfig | HybridConfig | None  # None for part of a network (train/start.py)
    params: dict
    buffers: dict

    @property
    def graphdef(self) -> nnx.GraphDef:
        return _structure(self.config, self.experiment.train.dtype, self.experiment.arithmetic)[0]

    @property
    def model(self) -> tree.Parts:
        """The model in the form that `infer` takes."""
        return self.graphdef, self.params, self.buffers


def restore_model(workdir: str | Path, step: int | None = None, mesh_of: MeshOf = mesh_of_used) -> Trained:
    """The model of a run's newest intact checkpoint, or of that of `step`; UserError if there is none.

    Moving averages if the run keeps them.  The arrays are sharded by their logical axes over `mesh_of(model config)`,
    by default over all devices.
    """
    kept = _restore(workdir, step, mesh_of)
    if not views.views_of(kept.experiment):
        return kept
    at = shardings(kept.experiment, kept.config, mesh_of)
    to_model = jax.jit(lambda *arrays: views.weights(kept.experiment, *arrays), out_shardings=at)
    params, buffers = to_model(kept.params, kept.buffers)
    return dataclasses.replace(kept, params=params, buffers=buffers)


def restore_adapters(workdir: str | Path) -> tuple[AnyExperiment, dict[str, dict]]:
    """(the experiment, its newest adapters by the path of the matrix they adapt) of a run that trains adapters."""
    kept = _restore(workdir, None, mesh_of_used)
    return kept.experiment, by_matrix(kept.params[lora.ADAPTERS])


def _restore(workdir, step, mesh_of) -> Trained:
    """The parameters and buffers that the run trained and kept, still split by its views (train/views.py)."""
    workdir, experiment = Path(workdir), record.read(workdir)
    record.warn_of_changed_plugins(workdir, experiment)
    config = sizes(experiment, workdir)
    shapes, axes = _arrays(experiment, config)
    kept = jax.eval_shape(lambda *model: views.split(experiment, *model), *shapes)
    abstract = functools.partial(abstract_on, mesh_of(experiment.model))
    params, buffers = map(abstract, views.axes(experiment, *axes), kept)
    model = {"params": params, "buffers": buffers}
    if experiment.train.ema_decay > 0:
        model = {"buffers": buffers, "ema": model | {"buffers": views.own_buffers(experiment, buffers)}}
    step, state = checkpoint.read(workdir, model, step)
    return Trained(workdir, experiment, step, config, *scored_model(state))


def sizes(experiment: AnyExperiment, workdir: Path) -> ModelConfig | HybridConfig:
    """All sizes of an experiment's model; a hybrid network's are recorded in `workdir`, as the data decided some."""
    return dataset_record.read(workdir).model if experiment.family == "supervised" else experiment.model


def shardings(experiment: AnyExperiment, config: ModelConfig | HybridConfig, mesh_of: MeshOf) -> tuple[dict, dict]:
    """The shardings of the model's parameters and buffers."""
    shapes, axes = _arrays(experiment, config)
    return tuple(map(functools.partial(rules.shardings, mesh_of(experiment.model)), axes, shapes))


def _arrays(experiment, config):
    """(shapes of parameters and of buffers, logical axes of both)."""
    graphdef, *shapes = _structure(config, experiment.train.dtype, experiment.arithmetic)
    axes, buffer_axes = tree.logical_axes(tree.merge(graphdef, *shapes))
    return shapes, (axes, replicated_axes(buffer_axes))


@functools.cache  # tracing a model takes a second
def _structure(config: ModelConfig | HybridConfig, dtype: str, arithmetic: ArithmeticConfig) -> tree.Parts:
    """The model with shapes in place of arrays."""
    kind = Decoder if isinstance(config, ModelConfig) else Hybrid
    model = jax.eval_shape(lambda: kind(config, rngs=nnx.Rngs(params=0), dtype=dtype))
    return tree.split(give(model, chooser(arithmetic)))
