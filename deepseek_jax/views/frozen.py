"""Training a part of a model: whole arrays by path, the last layers of a stack, or single experts.

Frozen arrays are buffers: they get no gradient, and the optimizer does not see them.  If only some rows of an array are
trained, these rows are a parameter, and the whole initial array is a buffer.

n layers of a stack  E experts  m trained experts of a layer, at most
"""

import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deepseek_jax.errors import UserError
from deepseek_jax.models.depth import ADAPTERS, before_layers, distances, stack_of
from deepseek_jax.models.lazy import LazyWeight, lazy_weight
from deepseek_jax.models.schedule import layers_of
from deepseek_jax.models.tree import flatten, unflatten
from deepseek_jax.parallel.rules import EXPERT_ROWS
from deepseek_jax.tune.config import TuneConfig, experts_of
from deepseek_jax.views.quantized import ROUNDED
from deepseek_jax.views.view import View

FROZEN = "frozen"  # key of the frozen arrays among the buffers
EXPERTS = re.compile(r"layers/[^/]+/feed_forward/experts/(gate|up|down)$")
Rows = tuple[np.ndarray, ...]  # array[rows] is trained; (): all of it


def frozen_view(config: TuneConfig) -> View:
    """The view whose buffers are {"model": the model's, "frozen": arrays that are not, or only partly, trained}."""

    def split(params, buffers):
        flat = flatten(params)
        _check_rounded(config, buffers, flat)
        trained = trained_rows(config, flat)
        _check_experts(config, flat)
        kept = {path: leaf for path, leaf in flat.items() if trained.get(path) != ()}
        params = {path: flat[path][rows] if rows else flat[path] for path, rows in trained.items()}
        return unflatten(params), {"model": buffers, FROZEN: unflatten(kept)}

    def weights(params, buffers, update):
        trained, flat = flatten(params), flatten(buffers[FROZEN])
        for path, rows in trained_rows(config, trained | flat).items():
            flat[path] = _with_rows(path, flat[path], rows, trained[path]) if rows else trained[path]
        return unflatten(flat), buffers["model"]

    def axes(params, buffers):
        flat = flatten(params)
        _check_rounded(config, buffers, flat)
        trained = trained_rows(config, flat)
        kept = {path: names for path, names in flat.items() if trained.get(path) != ()}
        params = {path: _axes_of_rows(flat[path], rows) for path, rows in trained.items()}
        return unflatten(params), {"model": buffers, FROZEN: unflatten(kept)}

    return View(split, weights, axes)


def _with_rows(path, kept, rows, trained) -> Array | LazyWeight:
    """The array `kept` with its `rows` replaced by `trained`, for single experts layer by layer.

    For all layers at once it would be a copy of all experts, and its gradient another, of which few rows are wanted.
    """
    if len(rows) == 1:
        return kept.at[rows].set(trained)
    layer_of_row, expert_of_row = rows
    rows_of_layer = [np.flatnonzero(layer_of_row == layer) for layer in range(kept.shape[0])]
    shape = len(rows_of_layer), max(map(len, rows_of_layer))
    # Layers with fewer trained experts than others are filled up with row 0 for expert number E.
    row_nm, expert_nm = np.zeros(shape, np.int32), np.full(shape, kept.shape[1], np.int32)
    for layer, own in enumerate(rows_of_layer):
        row_nm[layer, : len(own)], expert_nm[layer, : len(own)] = own, expert_of_row[own]
    return lazy_weight(path, _with_experts, kept, trained[row_nm], jnp.asarray(expert_nm))


@jax.vmap
def _with_experts(kept_E, trained_m, expert_m):
    return kept_E.at[expert_m].set(trained_m, mode="drop")  # number E is no expert


def trained_rows(config: TuneConfig, paths: Iterable[str]) -> dict[str, Rows]:
    """Which rows are trained, by path, of all arrays that are trained at least in part.  Adapters always are.

    Raises UserError if a setting matches nothing, or nothing is left to train.
    """
    paths = list(paths)
    own = [path for path in paths if not path.startswith(f"{ADAPTERS}/")]
    chosen = _by_expert(config, own) if config.experts else _by_layer(config, _by_path(config, own), own)
    chosen |= {path: () for path in paths if path not in own}
    if not chosen:
        raise UserError("the section tune leaves nothing to train; look at tune.train and tune.freeze.")
    return {path: chosen[path] for path in paths if path in chosen}


def _by_path(config, paths) -> list[str]:
    for name in ("train", "freeze"):
        pattern = getattr(config, name)
        if pattern and not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"tune.{name} is {pattern!r}, which matches no parameter's path; there are {paths[0]}, {paths[-1]}."
            )
    if config.lora.rank and not config.train:
        return []
    kept = [path for path in paths if re.search(config.train, path)]
    return [path for path in kept if not (config.freeze and re.search(config.freeze, path))]


def _by_layer(config, chosen, paths) -> dict[str, Rows]:
    if not config.last_layers:
        return dict.fromkeys(chosen, ())
    far = distances(dict.fromkeys(paths))
    layers = max(int(np.max(each)) for path, each in far.items() if not before_layers(path))
    if config.last_layers > layers:
        raise UserError(f"tune.last_layers is {config.last_layers}; the model has {layers}.")
    found = {}
    for path in chosen:
        near = np.atleast_1d(far[path] <= config.last_layers)
        if near.any():
            found[path] = () if near.all() else (np.flatnonzero(near),)
    return found


def _by_expert(config, paths) -> dict[str, Rows]:
    chosen, found = experts_of(config.experts), {}
    for path in filter(EXPERTS.match, paths):
        layers = layers_of(stack_of(path))
        pairs = [(row, expert) for row, layer in enumerate(layers) for expert in chosen.get(layer, ())]
        if pairs:
            found[path] = tuple(np.array(pairs).T)
    there = {layer for path in filter(EXPERTS.match, paths) for layer in layers_of(stack_of(path))}
    if missing := chosen.keys() - there:
        raise UserError(f"tune.experts names layer {min(missing)}, which has no routed experts.")
    return found


def _check_experts(config, flat):
    """UserError for an expert that does not exist: JAX clamps or drops out-of-range indices silently."""
    most = max((max(experts) for experts in experts_of(config.experts).values()), default=-1)
    for path, rows in ((path, leaf.shape[1]) for path, leaf in flat.items() if EXPERTS.match(path)):
        if most >= rows:
            raise UserError(f"tune.experts names expert {most}; {path} holds {rows}, counted from 0.")


def _check_rounded(config, buffers, params):
    """UserError for settings that match only matrices stored rounded: those are buffers, which are not trained."""
    kept = [path.rpartition("/")[0] for path in flatten(buffers.get(ROUNDED, {}))]
    own = [path for path in params if not path.startswith(f"{ADAPTERS}/")]
    for name, mend in (
        ("train", "name other matrices in quantize.paths, or set quantize.trained=true"),
        ("freeze", "leave it out, or set quantize.trained=true"),
    ):
        pattern = getattr(config, name)
        found = [path for path in kept if pattern and re.search(pattern, path)]
        if found and not any(re.search(pattern, path) for path in own):
            raise UserError(
                f"tune.{name} is {pattern!r}, which matches only what quantize.weights keeps rounded and untrained, "
                f"such as {found[0]}; {mend}."
            )
    layers = {layer for path in filter(EXPERTS.match, kept) for layer in layers_of(stack_of(path))}
    if rounded := layers & experts_of(config.experts).keys():
        raise UserError(
            f"tune.experts names layer {min(rounded)}, whose experts quantize.weights keeps rounded and untrained; "
            "name other matrices in quantize.paths, or set quantize.trained=true."
        )


def _axes_of_rows(names, rows):
    return (EXPERT_ROWS, *names[2:]) if len(rows) == 2 else names
