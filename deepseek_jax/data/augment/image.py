"""Augmentations of single pictures: geometry, brightness, noise and cutout.

B pictures  H height  W width  C channels  M boxes per picture; grey levels in [0, 1]
"""

import numpy as np

from deepseek_jax.data.augment.config import ImageAugmentConfig
from deepseek_jax.data.augment.draws import Draws
from deepseek_jax.data.augment.geometry import area, drop_boxes, move


def augment_images(batch: dict, config: ImageAugmentConfig, draws: Draws) -> dict:
    """Augments a batch with float32 inputs [B H W C], and boxes if it has any, by the random numbers of `draws`."""
    if config.moves:
        batch = move(batch, config, draws)
    images = batch["inputs"]
    if config.brightness:
        factor_B = draws.uniform("brightness", 1 - config.brightness, 1 + config.brightness).astype(np.float32)
        images = np.clip(images * factor_B[:, None, None, None], 0, 1)
    if config.noise:
        images = np.clip(images + np.float32(config.noise) * draws.normal("noise", images.shape[1:]), 0, 1)
    batch = batch | {"inputs": images}
    return cut_out(batch, config, draws) if config.cutout else batch


def cut_out(batch: dict, config: ImageAugmentConfig, draws: Draws) -> dict:
    """Cutout: a black square around a random point of each picture (DeVries and Taylor, arXiv:1708.04552).

    A box of which it leaves too little visible is dropped; if a picture would lose all its boxes, it is not cut.
    """
    _, H, W, _ = batch["inputs"].shape
    half = config.cutout * min(H, W) / 2
    y_B, x_B = draws.uniform("cutout y", 0, H), draws.uniform("cutout x", 0, W)
    square_B4 = np.stack([y_B - half, x_B - half, y_B + half, x_B + half], -1).round()
    square_B4 = np.clip(square_B4, 0, [H, W, H, W])
    if "boxes" in batch:
        share_B4 = (square_B4 / [H, W, H, W]).astype(np.float32)  # the type of boxes, so that equal edges compare equal
        boxes, labels, whole_B = _uncovered(batch, share_B4, config.keep_box)
        square_B4 = np.where(whole_B[:, None], 0, square_B4)
        batch = batch | {"boxes": boxes, "box_labels": labels}
    return batch | {"inputs": np.where(inside(square_B4, H, W)[..., None], np.float32(0), batch["inputs"])}


def inside(boxes_B4: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [B H W]: the pixels inside one box per picture; boxes y0 x0 y1 x1 in pixels."""
    y0, x0, y1, x1 = boxes_B4.T[..., None]
    rows, columns = np.arange(height), np.arange(width)
    return ((rows >= y0) & (rows < y1))[:, :, None] & ((columns >= x0) & (columns < x1))[:, None]


def _uncovered(batch: dict, square_B4: np.ndarray, keep: float):
    """(boxes and labels without those that the square hides, bool [B]: pictures that would lose all their boxes)."""
    boxes, labels = batch["boxes"], batch["box_labels"]
    low = np.maximum(boxes[..., :2], square_B4[:, None, :2])
    high = np.minimum(boxes[..., 2:], square_B4[:, None, 2:])
    hidden = area(np.concatenate([low, np.maximum(low, high)], -1))
    kept_BM = (labels >= 0) & (hidden <= (1 - keep) * area(boxes)) & (hidden < area(boxes))
    whole_B = (labels >= 0).any(1) & ~kept_BM.any(1)
    boxes, labels = drop_boxes(boxes, labels, np.where(whole_B[:, None], labels >= 0, kept_BM))
    return boxes, labels, whole_B
