"""Boxes without anchors: a heat map of centres, sizes and offsets (CenterNet, arXiv:1904.07850).

B pictures  h w cells of the map  K classes  M boxes  P peaks.  A box is y0 x0 y1 x1 and a size is height and width, in
fractions of the picture; an offset is the position y x of a centre inside its cell, from 0 to 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ALPHA, BETA = 2, 4  # of the focal loss (section 3)
FOUND = 0.3  # lowest score of a box that is drawn or returned as a prediction
SPREAD = 1 / 6  # standard deviation of a centre's bump over the box's side: the edge is three deviations away


def loss(
    outputs: dict[str, Array],
    boxes_BM4: Float[Array, "B M 4"],
    labels_BM: Int[Array, "B M"],
    size_weight: float,
    offset_weight: float,
) -> Float[Array, "B"]:
    """Focal loss of the heat map plus L1 of sizes and offsets at the centres, divided by a picture's number of boxes.

    `outputs`: heat [B h w K] (logits), size and offset [B h w 2].  A label below 0 marks an entry without a box.
    """
    there_BM = labels_BM >= 0
    count_B = jnp.maximum(there_BM.sum(axis=1), 1)
    cells = outputs["heat"].shape[1:3]
    centre_BM2, size_BM2 = _centres(boxes_BM4, cells)
    cell_BM2 = jnp.clip(jnp.floor(centre_BM2), 0, jnp.array(cells) - 1).astype(jnp.int32)
    heat_BhwK = heat_targets(cell_BM2, size_BM2, labels_BM, outputs["heat"].shape[1:])
    value_B = _focal(outputs["heat"], heat_BhwK)
    for name, target_BM2, weight in (
        ("size", size_BM2, size_weight),
        ("offset", centre_BM2 - cell_BM2, offset_weight),
    ):
        off_BM = jnp.abs(_at(outputs[name], cell_BM2) - target_BM2).sum(axis=-1)
        value_B += weight * (off_BM * there_BM).sum(axis=1)
    return value_B / count_B


def heat_targets(
    cell_BM2: Int[Array, "B M 2"], size_BM2: Float[Array, "B M 2"], labels_BM: Int[Array, "B M"], shape: tuple
) -> Float[Array, "B h w K"]:
    """1 in the cell of each centre, with a Gaussian bump as wide as the box around it; the maximum of all."""
    height, width, classes = shape
    y_h, x_w = jnp.arange(height), jnp.arange(width)
    deviation_BM2 = jnp.maximum(size_BM2 * jnp.array([height, width]) * SPREAD, 1e-3)
    y_BMh = jnp.square((y_h - cell_BM2[..., :1]) / deviation_BM2[..., :1])
    x_BMw = jnp.square((x_w - cell_BM2[..., 1:]) / deviation_BM2[..., 1:])
    bump_BMhw = jnp.exp(-0.5 * (y_BMh[..., :, None] + x_BMw[..., None, :]))
    of_class_BMK = jax.nn.one_hot(labels_BM, classes)  # all zeros for labels below 0
    return (bump_BMhw[..., None] * of_class_BMK[:, :, None, None, :]).max(axis=1)


def decode(
    outputs: dict[str, Array], peaks: int
) -> tuple[Float[Array, "B P 4"], Int[Array, "B P"], Float[Array, "B P"]]:
    """(boxes, classes, scores) of the `peaks` highest local maxima of the heat map, best first (section 4)."""
    score_BhwK = jax.nn.sigmoid(outputs["heat"])
    neighbours = jax.lax.reduce_window(score_BhwK, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    B, h, w, K = score_BhwK.shape
    best = jnp.where(score_BhwK >= neighbours, score_BhwK, 0).reshape(B, -1)
    score_BP, place_BP = jax.lax.top_k(best, min(peaks, best.shape[1]))
    cell_BP2 = jnp.stack([place_BP // (w * K), place_BP // K % w], axis=-1)
    centre_BP2 = (cell_BP2 + _at(outputs["offset"], cell_BP2)) / jnp.array([h, w])
    half_BP2 = jnp.maximum(_at(outputs["size"], cell_BP2), 0) / 2  # the head may return negative sizes
    boxes_BP4 = jnp.concatenate([centre_BP2 - half_BP2, centre_BP2 + half_BP2], axis=-1)
    return jnp.clip(boxes_BP4, 0, 1), place_BP % K, score_BP


def _centres(boxes_BM4, cells):
    """(centres in cells, sizes in fractions of the picture), each [B M 2]."""
    low_BM2, high_BM2 = boxes_BM4[..., :2], boxes_BM4[..., 2:]
    return (low_BM2 + high_BM2) / 2 * jnp.array(cells), high_BM2 - low_BM2


def _at(map_Bhw2: Float[Array, "B h w 2"], cell_BM2: Int[Array, "B M 2"]) -> Float[Array, "B M 2"]:
    return jax.vmap(lambda each_hw2, cell_M2: each_hw2[cell_M2[:, 0], cell_M2[:, 1]])(map_Bhw2, cell_BM2)


def _focal(logits_BhwK, heat_BhwK) -> Float[Array, "B"]:
    """Focal loss of the heat map (equation 1): cells around a centre count less the nearer to it they are."""
    p, log_p, log_rest = jax.nn.sigmoid(logits_BhwK), jax.nn.log_sigmoid(logits_BhwK), jax.nn.log_sigmoid(-logits_BhwK)
    is_centre: Bool[Array, "B h w K"] = heat_BhwK >= 1
    centre = (1 - p) ** ALPHA * log_p
    around = (1 - heat_BhwK) ** BETA * p**ALPHA * log_rest
    return -jnp.where(is_centre, centre, around).sum(axis=(1, 2, 3))
