"""Reads checkpoints: one tensor at a time, each straight into its place in our arrays."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepseek_jax import record
from deepseek_jax.convert import config_json
from deepseek_jax.convert.copying import copy
from deepseek_jax.convert.names import HEADS, MTP_COPIES, Place, may_be_left, mtp_prefix, place, spelling_of
from deepseek_jax.convert.tally import Tally
from deepseek_jax.convert.tensors import Tensors
from deepseek_jax.errors import UserError
from deepseek_jax.files import read_json
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import initialise
from deepseek_jax.parallel.logical import path_of
from deepseek_jax.reporting import Report, no_report

Ranges = tuple[range, ...]  # a part of an array: one range per dimension


def read_config(directory: Path) -> ModelConfig:
    """The config of a checkpoint, without MTP modules if the files contain none.

    Hugging Face drops these modules when it saves a model, but leaves config.json unchanged.
    """
    path = Path(directory) / "config.json"
    if not path.exists():
        raise UserError(f"{directory} has no config.json; give the directory of a checkpoint.")
    values = read_json(path)
    if record.kind(directory) == "run":
        raise UserError(
            f"{directory} is a run directory; give what `deepseek-jax convert {directory} OUT` makes of its newest "
            "checkpoint."
        )
    config = config_json.from_json(values)
    modules = config.num_nextn_predict_layers
    if not modules or any(name.startswith(mtp_prefix(0, config)) for name in Tensors(directory).names):
        return config
    return config.without_mtp()


def read_tokens(directory: Path) -> dict[str, Any]:
    """The special tokens' ids in config.json, if there is one: not part of the model, but other programs need them."""
    path = Path(directory) / "config.json"
    values = read_json(path) if path.is_file() else {}
    return {key: values[key] for key in config_json.TOKENS if key in values}


def load(
    directory: Path,
    config: ModelConfig,
    *,
    dtype: str | None = "float32",
    shardings: tuple[dict, dict] | None = None,
    report: Report = no_report,
) -> tuple[dict, dict]:
    """(params, buffers), nested as `models.tree.split` returns them for a `Decoder` of `config`.

    `dtype`: that of the parameters, except those that rules.py keeps in float32; None: as stored (bfloat16 where
    quantised).  The result has numpy arrays, or with `shardings`, nested like the result, jax arrays of which the local
    devices hold their parts.  Each process reads only the tensors that its devices need a part of, each once and one at
    a time; `report` counts tensors.

    Raises UserError if a tensor is missing, has another shape or would be unused (nothing is dropped silently except
    MTP modules beyond those of `config`), or if a number overflows `dtype`.  Logs a warning about NaN.
    """
    tensors, abstract = Tensors(directory), abstract_trees(config)
    places = locate(tensors, config, abstract)

    def source(leaf, where, sharding=None, *, dtype):
        kind = where.rule.dtype(dtype) or tensors.dtype(next(iter(where.names.values())))
        return _Source(tensors, where, config, leaf.shape, np.dtype(kind), sharding)

    of_params, of_buffers = zip(abstract, places, *([shardings] if shardings else []), strict=True)
    params = jax.tree.map(functools.partial(source, dtype=dtype), *of_params)
    buffers = jax.tree.map(lambda leaf, *rest: source(leaf, *rest, dtype=leaf.dtype), *of_buffers)
    tally = Tally(report, "reading", sum(each.count for each in jax.tree.leaves((params, buffers))))
    arrays = jax.tree.map(lambda each: each.read(tally), (params, buffers))
    tally.findings.warn(directory)
    return arrays


@dataclasses.dataclass(frozen=True)
class _Source:
    """One of our arrays: its tensors in a checkpoint, and its sharding on devices (None: a numpy array)."""

    tensors: Tensors
    where: Place
    config: ModelConfig
    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: jax.sharding.Sharding | None

    @property
    def count(self) -> int:
        """How many tensors this process reads for it."""
        return sum(len(self._names(leading)) for leading in self._groups())

    def read(self, tally: Tally) -> np.ndarray | jax.Array:
        """Reads the array.  The host holds only the parts of one group of devices at a time."""
        placed = []
        for leading, devices_of in self._groups().items():
            parts = self._parts(leading, list(devices_of), tally)
            for part, devices in zip(parts, devices_of.values(), strict=True):
                placed += [part if device is None else jax.device_put(part, device) for device in devices]
            jax.block_until_ready(placed)  # a part stays in host memory until it has been transferred
        if self.sharding is None:
            return placed[0]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, placed)

    def _groups(self) -> dict[Ranges, dict[Ranges, list]]:
        """The local devices, grouped by the layers and experts they hold, then by the part they hold of each.

        Devices with the same layers and experts need the same tensors; groups have no tensor in common.
        """
        whole = {None: tuple(slice(None) for _ in self.shape)}
        held = whole if self.sharding is None else self.sharding.addressable_devices_indices_map(self.shape)
        groups = {}
        for device, index in held.items():
            ranges = tuple(range(*cut.indices(size)) for cut, size in zip(index, self.shape, strict=True))
            leading, inner = ranges[: self.where.leading], ranges[self.where.leading :]
            groups.setdefault(leading, {}).setdefault(inner, []).append(device)
        return groups

    def _names(self, leading: Ranges) -> dict[tuple[int, ...], str]:
        """The names of the tensors of these layers and experts, by index within `leading`."""
        return {
            tuple(number - each.start for number, each in zip(at, leading, strict=True)): name
            for at, name in self.where.names.items()
            if all(number in each for number, each in zip(at, leading, strict=True))
        }

    def _parts(self, leading: Ranges, cuts: list[Ranges], tally: Tally) -> list[np.ndarray]:
        """One array per cut: that part of these layers and experts.  Their tensors are read one after the other."""
        parts = [np.empty([len(each) for each in leading + cut], self.dtype) for cut in cuts]
        for at, name in self._names(leading).items():
            tensor = self.where.rule.to_ours(self.tensors[name], self.config)
            for part, cut in zip(parts, cuts, strict=True):
                given = tensor[tuple(slice(each.start, each.stop) for each in cut)]
                with np.errstate(over="ignore"):  # `look` refuses an overflow, naming the tensor
                    copy(part, at, given)
                tally.findings.look(name, given, part[at])
            tally.add(1)
        return parts


def locate(tensors: Tensors, config: ModelConfig, abstract: tuple[dict, dict]) -> tuple[dict, dict]:
    """The Place of every array, nested like `abstract`; UserError if the tensors are not those of the model."""
    spelling = spelling_of(tensors.names)
    places = jax.tree_util.tree_map_with_path(lambda path, _: place(within(path), config, spelling), abstract)
    known, directory = set(), tensors.directory
    for leaf, where in zip(jax.tree.leaves(abstract), jax.tree.leaves(places), strict=True):
        shape = where.rule.shape_of_theirs(leaf.shape[where.leading :])
        known.update(where.names.values())
        for name in where.names.values():
            if name not in tensors.names:
                raise UserError(
                    f"{directory} has no tensor {name} of {shape}; its config.json describes another model."
                )
            if tensors.shape(name) != shape:
                raise UserError(f"{directory} has {name} of {tensors.shape(name)}; its config.json asks for {shape}.")
    left = [name for name in tensors.names - known if not may_be_left(name, config, tensors.names)]
    left = [name for name in left if 0 not in tensors.shape(name)]  # transformers' shared experts, where there are none
    if left:
        raise UserError(
            f"{directory} has {len(left)} tensors that this model does not know, such as {min(left)}; its config.json "
            "describes another model."
        )
    _check_copies(tensors, config, spelling)
    return places


def _check_copies(tensors, config, spelling):
    """UserError if a repeated embedding or head (a tied head, an MTP module's copies) differs from the original."""
    tied = "its config.json ties them (tie_word_embeddings)"
    shared = "MTP modules share them here; num_nextn_predict_layers 0 in its config.json leaves these modules out"
    embedding = place("embedding", config, spelling).names[()]
    head = embedding if config.tie_word_embeddings else place("head", config, spelling).names[()]
    copies = [(name, embedding, tied) for name in sorted(HEADS) if config.tie_word_embeddings]
    for prefix in (mtp_prefix(depth, config) for depth in range(config.num_nextn_predict_layers)):
        copies += [(prefix + name, main, shared) for name, main in zip(MTP_COPIES, (embedding, head), strict=True)]
    for name, main, why in copies:
        if name in tensors.names and not _same_numbers(tensors, name, main):
            raise UserError(f"{tensors.directory} has a {name} that is not its {main}; {why}.")


def _same_numbers(tensors, *names):
    if len({tensors.shape(name) for name in names}) > 1:
        return False
    one, other = (tensors[name] for name in names)
    if one.dtype == other.dtype:  # as bits, so that NaN equals itself; it is reported elsewhere
        one, other = (array.view(f"u{array.itemsize}") for array in (one, other))
    return np.array_equal(one, other)


def abstract_trees(config: ModelConfig) -> tuple[dict, dict]:
    """(params, buffers) as shapes and dtypes, without allocating them."""
    return jax.eval_shape(lambda: initialise(config, jax.random.key(0))[1:])


def within(path: tuple) -> str:
    """A jax key path into a tuple of trees as text, without the index of the tree."""
    return path_of(path[1:])
