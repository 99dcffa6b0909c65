"""A model out of a checkpoint of any kind, each device reading its own part."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from deepseek_jax.convert import efficientnet, huggingface, orbax_directory
from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.hybrid_config import HybridConfig
from deepseek_jax.parallel import rules
from deepseek_jax.train import checkpoint, known_set
from deepseek_jax.train.program import whole
from deepseek_jax.train.restore import restore_model


@dataclasses.dataclass(frozen=True)
class Found:
    """A model on the devices, its family, and what its sizes come from."""

    family: str
    config: ModelConfig | HybridConfig | None  # None: of a part of a network, whose sizes are its arrays'
    params: dict
    buffers: dict


def read(directory: Path, mesh: Mesh, *, best: bool = False) -> Found:
    """Of a run directory the newest checkpoint or the `best` evaluation, averaged where the run has averages; of what
    `convert --to orbax` wrote, or of released files, all there is.  Parameters are float32, as axes say on `mesh`.

    A .pth file is EfficientNet-Lite0: the convolution of a hybrid network.
    """
    if directory.suffix == ".pth":
        params, buffers = efficientnet.load(directory)
        at = rules.replicated(mesh)
        return Found("supervised", None, *jax.tree.map(lambda leaf: jax.device_put(leaf, at), (params, buffers)))
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory; give that of a run or a checkpoint.")
    if (directory / checkpoint.DIRECTORY).is_dir():
        trained = restore_model(directory, checkpoint.best_step(directory) if best else None, mesh)
        family = trained.experiment.family
        config = known_set.read(directory).model if family == "supervised" else trained.experiment.model
        return Found(family, config, trained.params, trained.buffers)
    if orbax_directory.is_one(directory):
        load = lambda directory, config, **how: orbax_directory.load(directory, **how)[1:]  # noqa: E731
        return _of_files(directory, orbax_directory.read_config(directory), load, mesh)
    return _of_files(directory, huggingface.read_config(directory), huggingface.load, mesh)


def _of_files(directory: Path, config: ModelConfig, load: Callable, mesh: Mesh) -> Found:
    graphdef, *shapes = jax.eval_shape(lambda: initialise(config, jax.random.key(0)))
    axes, buffer_axes = tree.logical_axes(tree.merge(graphdef, *shapes))
    at = tuple(map(functools.partial(rules.shardings, mesh), (axes, whole(buffer_axes)), shapes))
    return Found("language_model", config, *load(directory, config, dtype="float32", shardings=at))
