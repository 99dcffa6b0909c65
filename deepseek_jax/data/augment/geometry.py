"""Rotates, scales, crops and mirrors pictures and their boxes in a single affine transform, called a move.

B pictures  H height  W width  C channels  M boxes per picture; points are (y, x), pixel i extends from i to i + 1
"""

import dataclasses

import numpy as np

from deepseek_jax.data.augment.config import ImageAugmentConfig
from deepseek_jax.data.augment.draws import Draws

RETRIES = 4  # further moves drawn for a picture that would lose all of its boxes


@dataclasses.dataclass(frozen=True)
class Moves:
    """Affine transforms: a point p of picture b goes to matrix[b] @ p + shift[b]."""

    matrix_B22: np.ndarray
    shift_B2: np.ndarray

    def where(self, mask_B: np.ndarray, other: "Moves") -> "Moves":
        """These moves, replaced by those of `other` where the mask is true."""
        matrix = np.where(mask_B[:, None, None], other.matrix_B22, self.matrix_B22)
        return Moves(matrix, np.where(mask_B[:, None], other.shift_B2, self.shift_B2))


def draw_moves(config: ImageAugmentConfig, draws: Draws, height: int, width: int) -> Moves:
    """Random moves: mirror, scale and rotate about the centre, then enlarge a random window to the full picture."""
    angle_B = np.radians(draws.uniform("rotate", -config.rotate, config.rotate))
    scale_B = draws.uniform("scale", 1 - config.scale, 1 + config.scale)
    mirror_B = np.where(draws.uniform("flip") < config.flip, -1.0, 1.0)
    window_B = draws.uniform("crop", 1 - config.crop, 1.0)
    cos_B, sin_B = scale_B * np.cos(angle_B), scale_B * np.sin(angle_B)
    matrix_B22 = np.stack([cos_B, -sin_B * mirror_B, sin_B, cos_B * mirror_B], -1).reshape(-1, 2, 2)
    size_2 = np.array([height, width], float)
    corner_B2 = np.stack([draws.uniform("crop y"), draws.uniform("crop x")], -1) * (1 - window_B)[:, None] * size_2
    shift_B2 = size_2 / 2 - matrix_B22 @ (size_2 / 2) - corner_B2
    return Moves(matrix_B22 / window_B[:, None, None], shift_B2 / window_B[:, None])


def move(batch: dict, config: ImageAugmentConfig, draws: Draws) -> dict:
    """Moves a batch's inputs [B H W C] and, if it has them, boxes [B M 4]; see `keeping_boxes`."""
    _, H, W, _ = batch["inputs"].shape
    if "boxes" in batch:
        moves, _ = keeping_boxes(batch, config, draws)
        boxes, labels = move_boxes(batch["boxes"], batch["box_labels"], moves, H, W, config.keep_box)
        batch = batch | {"boxes": boxes, "box_labels": labels}
    else:
        moves = draw_moves(config, draws, H, W)
    return batch | {"inputs": resample(batch["inputs"], moves)}


def keeping_boxes(batch: dict, config: ImageAugmentConfig, draws: Draws) -> tuple[Moves, np.ndarray]:
    """Returns (random moves that leave every picture with boxes at least one, bool [B]: pictures left unmoved).

    A move that would push all boxes out is drawn again, up to RETRIES times; after that the picture is not moved.
    """
    size = batch["inputs"].shape[1:3]
    had_B = (batch["box_labels"] >= 0).any(1)

    def lost(moves: Moves) -> np.ndarray:
        _, labels_BM = move_boxes(batch["boxes"], batch["box_labels"], moves, *size, config.keep_box)
        return had_B & ~(labels_BM >= 0).any(1)

    moves = draw_moves(config, draws, *size)
    for attempt in range(RETRIES):
        if not (lost_B := lost(moves)).any():
            return moves, lost_B
        moves = moves.where(lost_B, draw_moves(config, draws.again(f"move {attempt}"), *size))
    lost_B = lost(moves)
    still = Moves(np.broadcast_to(np.eye(2), moves.matrix_B22.shape), np.zeros_like(moves.shift_B2))
    return moves.where(lost_B, still), lost_B


def move_boxes(
    boxes_BM4: np.ndarray, labels_BM: np.ndarray, moves: Moves, height: int, width: int, keep: float
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (y0 x0 y1 x1, shares of the picture's size) and labels after the moves.

    A rotated box becomes its axis-aligned bounding box, clipped at the picture's edge.  If less than the share `keep`
    of it is inside, it is dropped: label -1, all zeros.
    """
    size_4 = np.array([height, width] * 2, float)
    y0, x0, y1, x1 = np.moveaxis(boxes_BM4 * size_4, -1, 0)
    corners_BM42 = np.stack([np.stack(point, -1) for point in ((y0, x0), (y0, x1), (y1, x0), (y1, x1))], -2)
    moved = np.einsum("Bij,BMPj->BMPi", moves.matrix_B22, corners_BM42) + moves.shift_B2[:, None, None]
    around = np.concatenate([moved.min(-2), moved.max(-2)], -1)
    inside = np.clip(around, 0, size_4)
    kept_BM = (labels_BM >= 0) & (area(inside) >= keep * area(around)) & (area(inside) > 0)
    return drop_boxes((inside / size_4).astype(np.float32), labels_BM, kept_BM)


def drop_boxes(boxes_BM4, labels_BM, kept_BM):
    """Sets the boxes outside the mask `kept_BM` to zeros and their labels to -1."""
    return np.where(kept_BM[..., None], boxes_BM4, np.float32(0)), np.where(kept_BM, labels_BM, np.int32(-1))


def area(boxes: np.ndarray) -> np.ndarray:
    """The areas [...] of boxes [... 4], in their own units."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def resample(images_BHWC: np.ndarray, moves: Moves) -> np.ndarray:
    """The pictures, float32 [B H W C], after the moves, by bilinear interpolation; black outside the original."""
    B, H, W, C = images_BHWC.shape
    back_B22 = np.linalg.inv(moves.matrix_B22)
    origin_B2 = np.einsum("Bij,Bj->Bi", back_B22, 0.5 - moves.shift_B2) - 0.5  # source of the centre of pixel 0, 0
    back_B22, origin_B2 = back_B22.astype(np.float32), origin_B2.astype(np.float32)
    rows_H1, columns_W = np.arange(H, dtype=np.float32)[:, None], np.arange(W, dtype=np.float32)
    y_BHW, x_BHW = (
        np.clip(row[:, 0, None, None] * rows_H1 + row[:, 1, None, None] * columns_W + start[:, None, None], -1, size)
        for row, start, size in zip(back_B22.transpose(1, 0, 2), origin_B2.T, (H, W), strict=True)
    )
    top_BHW, left_BHW = np.floor(y_BHW), np.floor(x_BHW)
    down, right = (y_BHW - top_BHW)[..., None], (x_BHW - left_BHW)[..., None]
    # A black frame, one pixel before and two after, so that every index below is valid.
    framed = np.pad(images_BHWC, ((0, 0), (1, 2), (1, 2), (0, 0))).reshape(-1, C)
    stride = W + 3
    at = (np.arange(B)[:, None, None] * (H + 3) + top_BHW.astype(np.int64) + 1) * stride + left_BHW.astype(np.int64) + 1
    upper = framed[at] * (1 - right) + framed[at + 1] * right
    lower = framed[at + stride] * (1 - right) + framed[at + stride + 1] * right
    return upper * (1 - down) + lower * down
