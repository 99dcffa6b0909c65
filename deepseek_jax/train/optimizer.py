"""The one Optax chain: clip by global norm, AdamW or SGD, decoupled weight decay, learning rate."""

import jax
import optax

from deepseek_jax.config import OptimizerConfig
from deepseek_jax.train import schedules

SPARED = ("norm", "scale", "bias", "embed")


def decays(path: tuple) -> bool:
    """Whether weight decay pulls on the parameter at a tree path.

    The rule goes by name: spared is whatever lies under a key that contains one of SPARED (norms, their scales, biases,
    embeddings).  Not by rank: layers are stacked, so the scale of a norm has two dimensions, [layers, width].
    """
    keys = jax.tree_util.keystr(path, simple=True, separator="/").lower()
    return not any(word in keys for word in SPARED)


def decay_mask(params):
    """A tree of booleans like `params`: True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The chain of a run of `steps` steps.  Its updates are added to the parameters as they are.

    Weight decay is decoupled from the gradient (arXiv:1711.05101) and scaled by the learning rate, as PyTorch does it.
    """
    if config.name == "adamw":
        direction = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    else:
        direction = optax.trace(decay=config.b1)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        direction,
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedules.learning_rate(config, steps)),
    )
