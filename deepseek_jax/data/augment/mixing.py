"""Mixup and cutmix: combine two pictures, and their labels in the same proportion.

B pictures  H height  W width  K classes
"""

import numpy as np

from deepseek_jax.data.augment.config import ImageAugmentConfig
from deepseek_jax.data.augment.draws import Draws
from deepseek_jax.data.augment.image import inside


def mix(batch: dict, other: dict, config: ImageAugmentConfig, draws: Draws) -> dict:
    """Combines each picture of `batch` with that of `other`, with their labels [B K] and weights [B] (all above 0).

    If both mixup and cutmix are on, each picture gets one of them at random, with equal probability.
    """
    paste_B = draws.uniform("mix which") < (0.5 if config.mixup and config.cutmix else float(config.cutmix > 0))
    _, H, W, _ = batch["inputs"].shape
    blended_B = _beta(config.mixup, draws.uniform("mixup"))
    pasted_BHW = inside(_rectangles(_beta(config.cutmix, draws.uniform("cutmix")), draws, H, W), H, W)
    # The actual share of pixels from the other picture: rectangles are clipped at the edge.
    share_B = np.where(paste_B, pasted_BHW.mean((1, 2)), blended_B).astype(np.float32)
    share_BHW = np.where(paste_B[:, None, None], pasted_BHW, blended_B[:, None, None]).astype(np.float32)

    def blend(one: np.ndarray, another: np.ndarray, share: np.ndarray) -> np.ndarray:
        return one + share * (another - one)

    weights_B = blend(batch["weights"], other["weights"], share_B)
    # Labels are weighted before they are blended: each class keeps the weight of its own record, not its partner's.
    weighed_BK = blend(_weighed_labels(batch), _weighed_labels(other), share_B[:, None])
    return batch | {
        "inputs": blend(batch["inputs"], other["inputs"], share_BHW[..., None]),
        "labels": weighed_BK / weights_B[:, None],
        "weights": weights_B,
    }


def _weighed_labels(batch: dict) -> np.ndarray:
    return batch["weights"][:, None] * batch["labels"]


def _beta(a: float, uniform_B: np.ndarray) -> np.ndarray:
    """Shares of the other picture, by inverting the CDF of Beta(a, a); zeros for a = 0, which is off."""
    if not a:
        return np.zeros_like(uniform_B)
    from scipy.special import betaincinv  # takes half a second to import

    return betaincinv(a, a, uniform_B)


def _rectangles(share_B: np.ndarray, draws: Draws, height: int, width: int) -> np.ndarray:
    """Boxes [B 4] in pixels with this share of the picture's area and its aspect ratio, around random points and
    clipped at the edges (arXiv:1905.04899)."""
    half_B2 = np.sqrt(share_B)[:, None] * [height, width] / 2
    centre_B2 = np.stack([draws.uniform("cutmix y", 0, height), draws.uniform("cutmix x", 0, width)], -1)
    corners = np.concatenate([centre_B2 - half_B2, centre_B2 + half_B2], -1).round()
    return np.clip(corners, 0, [height, width, height, width])
