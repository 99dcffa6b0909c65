"""The Optax chain of every run: clipping by global norm, update direction, weight decay, learning rate, groups."""

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from deepseek_jax.config import OptimizerConfig
from deepseek_jax.models.tree import is_vector
from deepseek_jax.train.optim import schedules
from deepseek_jax.train.optim.by_depth import by_depth
from deepseek_jax.train.optim.groups import factors
from deepseek_jax.train.optim.moments import with_state_dtype
from deepseek_jax.train.optim.muon import scale_by_muon


def decays(path: tuple) -> bool:
    """Whether weight decay applies to the parameter at a tree path.

    Decided by the last name: norms and other scales, biases, sinks and the embedding are exempt.
    """
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return not (name == "embedding" or is_vector(name))


def decay_mask(params):
    """A tree of booleans like `params`: True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params)


def make_optimizer(
    config: OptimizerConfig, steps: int, axes: dict | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run of `steps` steps.  Its updates are to be added to the parameters.

    `axes`: the logical axes of the parameters (Program.axes), by which muon recognises matrices; others ignore them.

    Weight decay is decoupled from the gradient (arXiv:1711.05101) and scaled by the learning rate, as in PyTorch.
    `update` takes the step's loss as `value`, on which the schedule "plateau" is based, and the gradient's norm, if it
    is known, as `norm`.
    """
    of_clipped = (
        with_state_dtype(config.moment_dtype, DIRECTIONS[config.name](config, steps, axes)),
        _decayed(config),
        optax.scale_by_learning_rate(schedules.learning_rate(config, steps)),
        _scaled(config),
        _on_plateau(config),
    )
    if config.layer_decay != 1 or config.unfreeze:  # by_depth clips: the norm leaves out frozen layers
        inner = optax.with_extra_args_support(optax.chain(*of_clipped))
        return by_depth(inner, config.clip_norm, config.layer_decay, config.unfreeze * steps)
    clip = _clipped(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.with_extra_args_support(optax.chain(clip, *of_clipped))


def plateau_factor(opt_state) -> jax.Array | float:
    """The factor by which the schedule "plateau" has lowered the learning rate so far; 1 for other schedules."""

    def is_plateau(node):
        return isinstance(node, contrib.ReduceLROnPlateauState)

    found = [node.scale for node in jax.tree.leaves(opt_state, is_leaf=is_plateau) if is_plateau(node)]
    return found[0] if found else 1.0


def _clipped(most: float) -> optax.GradientTransformationExtraArgs:
    """optax.clip_by_global_norm, but it computes the norm only if `update` is not given it."""

    def update(updates, state, params=None, *, norm=None, **more):
        norm = optax.tree.norm(updates) if norm is None else norm

        def clip(x):
            return jnp.where(norm < most, x, (x / norm.astype(x.dtype)) * most)

        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _adam(config: OptimizerConfig, steps: int, axes: dict | None) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, nesterov=config.nesterov)


def _muon(config: OptimizerConfig, steps: int, axes: dict | None) -> optax.GradientTransformation:
    return scale_by_muon(axes, _adam(config, steps, axes))


def _sgd(config: OptimizerConfig, steps: int, axes: dict | None) -> optax.GradientTransformation:
    return optax.trace(decay=config.b1, nesterov=config.nesterov)


def _rmsprop(config: OptimizerConfig, steps: int, axes: dict | None) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_rms(decay=config.b2, eps=config.eps), _sgd(config, steps, axes))


def _adagrad(config: OptimizerConfig, steps: int, axes: dict | None) -> optax.GradientTransformation:
    return optax.scale_by_rss(eps=config.eps)


def _lion(config: OptimizerConfig, steps: int, axes: dict | None) -> optax.GradientTransformation:
    return optax.scale_by_lion(b1=config.b1, b2=config.b2)


# The optimizers by name, as functions with the arguments of `make_optimizer`.  Each returns the transformation from
# gradients, clipped, to the direction to which weight decay is added and which is then multiplied by the learning rate.
DIRECTIONS = {
    "adam": _adam,
    "adamw": _adam,
    "muon": _muon,
    "sgd": _sgd,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "lion": _lion,
}


def _decayed(config: OptimizerConfig) -> optax.GradientTransformation:
    if not any("decay=" in group for group in config.groups):
        return optax.add_decayed_weights(config.weight_decay, mask=decay_mask)

    def add(updates, params):
        decay = jax.tree.map(lambda factor: factor * config.weight_decay, factors(config.groups, "decay", params))
        pulled = jax.tree.map(lambda yes, rate: rate if yes else 0.0, decay_mask(params), decay)
        return jax.tree.map(lambda update, rate, param: update + rate * param, updates, pulled, params)

    return optax.stateless(add)


def _scaled(config: OptimizerConfig) -> optax.GradientTransformation:
    if not any("lr=" in group for group in config.groups):
        return optax.identity()

    def scale(updates, params):
        return jax.tree.map(jnp.multiply, updates, factors(config.groups, "lr", params))

    return optax.stateless(scale)


def _on_plateau(config: OptimizerConfig) -> optax.GradientTransformation:
    """Lowers the rate after `patience` checks, means over `step_every` steps, without a better training loss."""
    schedule = config.schedule
    if schedule.name != "plateau":
        return optax.identity()
    return contrib.reduce_on_plateau(
        factor=schedule.decay_ratio, patience=schedule.patience, accumulation_size=schedule.step_every
    )
