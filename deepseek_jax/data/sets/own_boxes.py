"""Boxes in a user's own pictures: each row of a .jsonl or .parquet has a list of boxes and a list of their classes.

N pictures  M most boxes in a picture
"""

import numpy as np

from deepseek_jax.data.sets.config import ColumnsConfig
from deepseek_jax.data.sets.dataset import Records
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.formats import Row
from deepseek_jax.data.sets.labels import numbered_labels
from deepseek_jax.data.sets.rows import LARGEST, shown

Size = tuple[int, int] | None  # height and width of the upright picture in its file; None if it could not be read
SLACK = 0.01  # pixels by which left + width may exceed the picture, as COCO's sides are rounded to hundredths
Pair = tuple[list[float], object]  # y0 x0 y1 x1 as shares of the picture's size, and the label


def read(
    faults: Faults, rows: dict[int, Row], sizes: list[Size], columns: ColumnsConfig, stored: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], Records]:
    """Class names, and boxes [N M 4] and box_labels [N M] as in dataset.py; stored: see numbered_labels."""
    found = [_of_row(faults, line, row, size, columns) for (line, row), size in zip(rows.items(), sizes, strict=True)]
    labels = [(line, label) for line, pairs in zip(rows, found, strict=True) for _, label in pairs]
    what = f"an entry of {columns.label}"
    names, numbers = numbered_labels(faults, labels, what, columns.classes, stored, of="box")
    counts = np.array([len(pairs) for pairs in found], np.int32)
    there_NM = np.arange(counts.max(initial=0)) < counts[:, None]
    boxes, box_labels = np.zeros((*there_NM.shape, 4), np.float32), np.full(there_NM.shape, -1, np.int32)
    boxes[there_NM] = np.array([box for pairs in found for box, _ in pairs], np.float32).reshape(-1, 4)
    box_labels[there_NM] = numbers
    return names, {"boxes": boxes, "box_labels": box_labels}


def _of_row(faults: Faults, line: int, row: Row, size: Size, columns: ColumnsConfig) -> list[Pair]:
    """The boxes of a row with their labels; [] and a fault if their numbers differ or they are not lists."""
    boxes, labels = row[columns.boxes], row[columns.label]
    for column, values in ((columns.boxes, boxes), (columns.label, labels)):
        if not isinstance(values, list):
            faults.add(line, f"{column} is {shown(values)}; it must be a list with an entry for each box")
            return []
    if len(boxes) != len(labels):
        faults.add(
            line, f"{columns.boxes} has {len(boxes)} entries, {columns.label} has {len(labels)}; each box needs a label"
        )
        return []
    shares = [_shares(faults, line, columns, box, size) for box in boxes]
    return list(zip(shares, labels, strict=True))


def _shares(faults: Faults, line: int, columns: ColumnsConfig, box: object, size: Size) -> list[float]:
    """A box as shares y0 x0 y1 x1; zeros and a fault if it is not a valid box inside the picture."""
    sides = "width and height" if columns.xywh else "right and bottom"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        what = f"a box must be four numbers: left, top, {sides}"
    else:
        height, width = size or (1, 1)  # without a size there is a fault already
        left, top, right, bottom = _corners(box, height, width) if columns.xywh else box
        shares = np.float32([top / height, left / width, bottom / height, right / width])
        if not (shares[:2] < shares[2:]).all():
            what = (
                "width and height must be more than 0"
                if columns.xywh
                else "right must be more than left, and bottom more than top (dataset.columns.xywh: width and height)"
            )
        elif size and not (left >= 0 and top >= 0 and right <= width and bottom <= height):
            what = f"the picture ends at right {width} and bottom {height}, and begins at 0"
        else:
            return shares.tolist()
    faults.add(line, f"{columns.boxes} has {shown(box)}; {what}")
    return [0.0] * 4


def _corners(box: list[float], height: int, width: int) -> list[float]:
    """left, top, right and bottom of left, top, width and height."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    right = width if width < right <= width + SLACK else right
    bottom = height if height < bottom <= height + SLACK else bottom
    return [left, top, right, bottom]


def _is_number(side: object) -> bool:
    """A number in the range of float32; JSON's true and false are not numbers."""
    return isinstance(side, int | float) and not isinstance(side, bool) and abs(side) <= LARGEST
