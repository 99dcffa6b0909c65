"""Reads checkpoints: every tensor straight into its place of our arrays, one at a time."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from deepseek_jax.convert import config_json
from deepseek_jax.convert.names import HEADS, Place, may_be_left, mtp_prefix, place, spelling_of
from deepseek_jax.convert.progress import Progress, Tally, unseen
from deepseek_jax.convert.tensors import Tensors, read_json
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import initialise


def read_config(directory: Path) -> ModelConfig:
    """What a directory holds: Hugging Face saves models without their MTP modules, whatever config.json says."""
    path = Path(directory) / "config.json"
    if not path.exists():
        raise UserError(f"{directory} has no config.json; give the directory of a checkpoint.")
    values = read_json(path)
    if "experiment" in values and "model_type" not in values:
        raise UserError(
            f"{directory} is a run directory; give what `deepseek-jax convert {directory} OUT` makes of its newest "
            "checkpoint."
        )
    config = config_json.from_json(values)
    modules = config.num_nextn_predict_layers
    if not modules or any(name.startswith(mtp_prefix(0, config)) for name in Tensors(directory).names):
        return config
    return config.without_mtp()


def load(
    directory: Path,
    config: ModelConfig,
    *,
    dtype: str | None = "float32",
    shardings: tuple[dict, dict] | None = None,
    progress: Progress = unseen,
) -> tuple[dict, dict]:
    """(params, buffers), as `models.tree.split` gives them for a `Decoder` of `config`.

    `dtype` is that of the parameters but for those that rules.py keeps in float32; None is as stored (bfloat16 where
    quantised).  Tensors are read one at a time, each into its place of our array: a numpy array, or with `shardings`,
    nested like the result, an array of jax of which every device here gets its part, read by itself.  `progress` counts
    tensors.

    Raises UserError where a tensor is missing, has another shape, or would be left over: nothing is dropped in
    silence but the modules past those that `config` has.
    """
    tensors, abstract = Tensors(directory), abstract_trees(config)
    places = locate(tensors, config, abstract)
    tally = Tally(progress, sum(len(where.names) for where in jax.tree.leaves(places)))

    def fetch(leaf, where, sharding=None, *, dtype):
        kind = where.rule.dtype(dtype) or tensors.dtype(next(iter(where.names.values())))
        source = _Source(tensors, where, config, leaf.shape, np.dtype(kind), tally)
        if sharding is None:
            return source.part(tuple(slice(None) for _ in leaf.shape))
        return jax.make_array_from_callback(leaf.shape, sharding, source.part)

    of_params, of_buffers = zip(abstract, places, *([shardings] if shardings else []), strict=True)
    params = jax.tree.map(functools.partial(fetch, dtype=dtype), *of_params)
    buffers = jax.tree.map(lambda leaf, *rest: fetch(leaf, *rest, dtype=leaf.dtype), *of_buffers)
    return params, buffers


@dataclasses.dataclass(frozen=True)
class _Source:
    """One of our arrays as it lies in a checkpoint."""

    tensors: Tensors
    where: Place
    config: ModelConfig
    shape: tuple[int, ...]
    dtype: np.dtype
    tally: Tally

    def part(self, index: tuple[slice, ...]) -> np.ndarray:
        """What `index` cuts out of the array; only tensors that have a share in it are read, one after the other."""
        ranges = [range(*cut.indices(size)) for cut, size in zip(index, self.shape, strict=True)]
        leading, inner = ranges[: self.where.leading], index[self.where.leading :]
        part = np.empty([len(each) for each in ranges], self.dtype)
        for at, name in self.where.names.items():
            if all(number in each for number, each in zip(at, leading, strict=True)):
                tensor = self.tensors[name]
                place_in_part = tuple(number - each.start for number, each in zip(at, leading, strict=True))
                part[place_in_part] = self.where.rule.to_ours(tensor, self.config)[inner]
                self.tally.add(1)
        return part


def locate(tensors: Tensors, config: ModelConfig, abstract: tuple[dict, dict]) -> tuple[dict, dict]:
    """The place of every array; UserError where the tensors are not those of the model."""
    spelling = spelling_of(tensors.names)
    places = jax.tree_util.tree_map_with_path(lambda path, _: place(keys(path), config, spelling), abstract)
    known, directory = set(), tensors.directory
    for leaf, where in zip(jax.tree.leaves(abstract), jax.tree.leaves(places), strict=True):
        shape = where.rule.shape_of_theirs(leaf.shape[where.leading :])
        known.update(where.names.values())
        for name in where.names.values():
            if name not in tensors.names:
                raise UserError(f"{directory} has no tensor {name} of {shape}; its config.json tells of another model.")
            if tensors.shape(name) != shape:
                raise UserError(f"{directory} has {name} of {tensors.shape(name)}; its config.json asks for {shape}.")
    left = [name for name in tensors.names - known if not may_be_left(name, config, tensors.names)]
    if left:
        raise UserError(
            f"{directory} has {len(left)} tensors that this model does not know, such as {min(left)}; its config.json "
            "tells of another model."
        )
    _check_tied(tensors, config, spelling)
    return places


def _check_tied(tensors, config, spelling):
    """Files may hold the embedding a second time, as the head that it is tied to."""
    embedding = place(("embedding",), config, spelling).names[()]
    for head in HEADS & tensors.names if config.tie_word_embeddings else ():
        if not np.array_equal(tensors[head], tensors[embedding]):
            raise UserError(
                f"{tensors.directory} has a {head} that is not its {embedding}; its config.json says that they are "
                "one (tie_word_embeddings)."
            )


def abstract_trees(config: ModelConfig) -> tuple[dict, dict]:
    """Shapes of the parameters and the buffers, without making them."""
    return jax.eval_shape(lambda: initialise(config, jax.random.key(0))[1:])


def keys(path) -> tuple[str, ...]:
    """The names along a path of jax's into one tree of a tuple of trees."""
    return tuple(key.key for key in path[1:])
