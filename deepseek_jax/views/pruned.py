"""Training with masks: pruned weights stay zero, and gradual pruning removes more of them during the run.

Masks are buffers, so checkpoints contain them, and they are sharded like the weights they belong to.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.compress.config import PruneConfig, parse_pattern
from deepseek_jax.models.lazy import lazy_weight, materialised
from deepseek_jax.models.tree import flatten, unflatten
from deepseek_jax.views import masks
from deepseek_jax.views.matrices import LINEAR, Matrix, chosen, ranks
from deepseek_jax.views.view import View


def pruned_view(config: PruneConfig, steps: int) -> View:
    """The view whose buffers are {"model": the model's, "masks": bool arrays nested like the weights they belong to}.

    `steps` is the length of the run, to which config.begin and config.end refer.
    """

    def split(params, buffers):
        flat = flatten(params)
        pruned_matrices(config, flat)  # raises for a pattern that does not fit now, not in the middle of a run
        found = {path: flat[path] for path in chosen(flat, config.paths, "prune.paths", (LINEAR,))}
        keep = (lambda weight: weight != 0) if config.method == "zeros" else lambda weight: jnp.ones(weight.shape, bool)
        found = {path: keep(weight) for path, weight in found.items()}
        return params, {"model": buffers, "masks": unflatten(found)}

    def weights(params, buffers, update):
        flat, kept = flatten(params), flatten(buffers["masks"])
        found = {path: lazy_weight(path, _zeros_where_false, mask, flat[path]) for path, mask in kept.items()}
        return unflatten(flat | found), buffers["model"]

    def axes(params, buffers):
        flat = flatten(params)
        found = {path: flat[path] for path in chosen(ranks(flat), config.paths, "prune.paths", (LINEAR,))}
        return params, {"model": buffers, "masks": unflatten(found)}

    def update(params, buffers, update):
        return buffers | {"masks": _updated_masks(config, steps, materialised(params), buffers["masks"], update)}

    return View(split, weights, axes, update) if config.method == "magnitude" else View(split, weights, axes)


def pruned_matrices(config: PruneConfig, flat: dict) -> dict[str, Matrix]:
    """The matrices that `config` prunes.  If it names no paths, those that its pattern does not fit are skipped."""
    found = chosen(flat, config.paths, "prune.paths", (LINEAR,))
    if not config.pattern:
        return found
    return masks.divisible_by(found, flat, parse_pattern("", config.pattern)[1], "prune.pattern", bool(config.paths))


def masked(params: dict, masks: dict) -> dict:
    """`params` with zeros where a mask is false, even in place of NaN; these weights get no gradient."""
    flat, kept = flatten(params), flatten(masks)
    found = {path: _zeros_where_false(mask, flat[path]) for path, mask in kept.items()}
    return unflatten(flat | found)


def _zeros_where_false(mask, weight):
    return jnp.where(mask, weight, 0)


def sparsity_at(config: PruneConfig, steps: int, update) -> jax.Array:
    """sparsity (1 - (1 - t)^3), where t rises from 0 at `begin` to 1 at `end` (arXiv:1710.01878, equation 1)."""
    first, last = _mask_update_span(config, steps)
    t = jnp.where(update < last, jnp.clip((update - first) / max(last - first, 1), 0.0, 1.0), 1.0)
    return config.sparsity * (1 - (1 - t) ** 3)


def updates_to_prune(config: PruneConfig, steps: int) -> int:
    """How many updates until the masks are final; models before that are less sparse than was asked for."""
    return _mask_update_span(config, steps)[1] + 1 if config.method == "magnitude" else 0


def _mask_update_span(config: PruneConfig, steps: int) -> tuple[int, int]:
    """The first and the last update after which masks are recomputed."""
    return tuple(min(round(share * steps), steps - 1) for share in (config.begin, config.end))


def _updated_masks(config, steps, params, kept, update):
    """The masks after update number `update`.  Pruned weights stay pruned, because their score is 0."""
    first, last = _mask_update_span(config, steps)
    # Also at `last`, which `every` need not hit, so that the sparsity asked for is reached.
    due = (update >= first) & (update <= last) & (((update - first) % config.every == 0) | (update == last))

    def look(kept):
        flat, old = flatten(params), flatten(kept)
        scores = {path: jnp.abs(flat[path]) * mask for path, mask in old.items()}
        if config.pattern:
            new = masks.by_pattern(scores, pruned_matrices(config, flat), config.pattern)
        else:
            new = masks.largest(scores, pruned_matrices(config, flat), sparsity_at(config, steps, update), config.scope)
        return unflatten(old | new)

    return jax.lax.cond(due, look, lambda kept: kept, kept)
