"""Losses of supervised tasks, a number per record; the caller weights them to a mean over all microbatches of a batch.

B records  K classes  N numbers
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from deepseek_jax.tasks import detection
from deepseek_jax.tasks.config import ObjectiveConfig


def cross_entropy(logits_BK: Float[Array, "B K"], batch: dict, config: ObjectiveConfig) -> Float[Array, "B"]:
    """-sum over classes of label * log softmax; labels may be soft.

    `label_smoothing` spreads that share of each label over all classes (arXiv:1512.00567, section 7).
    """
    labels_BK = optax.smooth_labels(batch["labels"], config.label_smoothing)
    return optax.softmax_cross_entropy(logits_BK, labels_BK)


def focal(logits_BK: Float[Array, "B K"], batch: dict, config: ObjectiveConfig) -> Float[Array, "B"]:
    """Cross-entropy with each class's term times (1 - p)^gamma: easy records weigh little (arXiv:1708.02002)."""
    labels_BK = optax.smooth_labels(batch["labels"], config.label_smoothing)
    log_p_BK = jax.nn.log_softmax(logits_BK)
    # 1 - p as the sum of the others: exact near p = 1, where the power's slope is steep.
    rest_BK = -jnp.expm1(jnp.minimum(log_p_BK, -1e-7))
    return -(labels_BK * rest_BK**config.focal_gamma * log_p_BK).sum(axis=-1)


def mse(numbers_BN: Float[Array, "B N"], batch: dict, config: ObjectiveConfig) -> Float[Array, "B"]:
    return jnp.square(numbers_BN - batch["targets"]).mean(axis=-1)


def mae(numbers_BN: Float[Array, "B N"], batch: dict, config: ObjectiveConfig) -> Float[Array, "B"]:
    return jnp.abs(numbers_BN - batch["targets"]).mean(axis=-1)


def huber(numbers_BN: Float[Array, "B N"], batch: dict, config: ObjectiveConfig) -> Float[Array, "B"]:
    """Half the squared error up to `huber_delta`, linear with that slope beyond."""
    return optax.huber_loss(numbers_BN, batch["targets"], delta=config.huber_delta).mean(axis=-1)


def boxes(outputs: dict, batch: dict, config: ObjectiveConfig) -> Float[Array, "B"]:
    return detection.loss(outputs, batch["boxes"], batch["box_labels"], config.size_weight, config.offset_weight)


OBJECTIVES: dict[str, Callable] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "mse": mse,
    "mae": mae,
    "huber": huber,
    "boxes": boxes,
}


def penalty(params, config: ObjectiveConfig, counts: Callable[[tuple], bool]) -> Float[Array, ""]:
    """l1 * sum |w| + l2 / 2 * sum w^2 over the parameters for whose path `counts` is true; 0 if both are off."""
    if not (config.l1 or config.l2):
        return jnp.zeros(())
    leaves = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if counts(path)]
    absolute = sum(jnp.abs(leaf).sum() for leaf in leaves)
    squares = sum(jnp.square(leaf).sum() for leaf in leaves)
    return config.l1 * absolute + config.l2 / 2 * squares
