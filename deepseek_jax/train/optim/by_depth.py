"""Learning rates that fall from the output down, and gradual unfreezing (ULMFiT, arXiv:1801.06146, section 3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepseek_jax.models import tree
from deepseek_jax.models.depth import distances, stack_of
from deepseek_jax.parallel.logical import path_of


class ByDepthState(NamedTuple):
    inner: optax.OptState
    count: jax.Array


def by_depth(
    inner: optax.GradientTransformationExtraArgs, clip_norm: float, decay: float, unfrozen_at: float
) -> optax.GradientTransformationExtraArgs:
    """`inner`, with updates scaled by `decay` per layer of distance from the output and layers unfrozen in turn.

    Parameters after the last layer are trained from the first update, the lowest layer from update `unfrozen_at`, and
    those in between start at equal intervals.  Gradients are scaled so that the global norm over unfrozen layers is at
    most `clip_norm` (0: no clipping).  `inner` sees the gradients of frozen layers too: an Adam that had counted steps
    without them would start a layer with updates of several times the learning rate.
    """

    def init(params):
        return ByDepthState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra):
        far = _distances(updates)
        most = max(int(np.max(each)) for each in jax.tree.leaves(far)) or 1
        begun = jax.tree.map(lambda each: state.count >= unfrozen_at * each / most, far)
        if clip_norm:
            norm = optax.tree.norm(jax.tree.map(lambda update, begun: jnp.where(begun, update, 0), updates, begun))
            updates = optax.tree.scale(clip_norm / jnp.maximum(norm, clip_norm), updates)
        made, inner_state = inner.update(updates, state.inner, params, **extra)
        made = jax.tree.map(lambda update, begun, each: jnp.where(begun, update * decay**each, 0), made, begun, far)
        return made, ByDepthState(inner_state, optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _distances(params):
    """A tree like `params` of distances from the output, in layers, that broadcast against each parameter."""
    flat = tree.by_path(params)
    far = distances({path: leaf.shape[0] if stack_of(path) else None for path, leaf in flat.items()})

    def of(path, leaf):
        each = far[path_of(path)].astype(np.float32)
        return each.reshape(-1, *(1,) * (leaf.ndim - 1)) if each.ndim else each

    return jax.tree_util.tree_map_with_path(of, params)
