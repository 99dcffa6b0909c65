"""A set for object detection: one or a few MNIST digits on a noisy canvas, with tight boxes around their ink.

N scenes  M boxes per scene
"""

import pathlib

import numpy as np

from deepseek_jax.data import cache
from deepseek_jax.data.sets import images, splitting
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.dataset import SPLITS, Records
from deepseek_jax.data.sets.source import Source, numbered
from deepseek_jax.errors import UserError

SIDES = 14, 28  # smallest and largest side in pixels to which MNIST's frame of 28 is scaled
INK = 64  # grey level from which a pixel belongs to the digit
NOISE = 24  # grey levels: the background is uniform noise up to this
NEAREST = 2  # least distance in pixels between two digits' boxes
VERSION = 1  # increase it when a change in this file changes the pictures


def scenes(config: DatasetConfig) -> Source:
    """`scenes.count` square pictures with sides of `scenes.canvas` pixels and 1 to `scenes.most` digits of MNIST-5k.

    The digits are split first, so that no digit in a test scene occurs in training.
    """
    settings = config.scenes

    def make(directory: pathlib.Path):
        np.savez(directory / "scenes.npz", **_compose_all(config))

    recipe = [settings.count, settings.canvas, settings.most, config.val, config.test, config.seed, VERSION]
    entry = cache.root(config) / "sets" / f"scenes-{cache.digest(recipe)}"
    with np.load(cache.build(entry, make) / "scenes.npz") as arrays:
        records = dict(arrays)
    given = records.pop("given")
    records["ids"] = numbered(len(given))
    return Source("scenes", "boxes", "image", records, class_names=images.DIGITS, given=given)


def _compose_all(config: DatasetConfig) -> Records:
    digits, labels = images.mnist_digits(config)
    settings, shares = config.scenes, {"val": config.val, "test": config.test}
    split_of = splitting.by_content(splitting.content_keys(digits), labels, seed=config.seed, **shares)
    counts = {name: round(share * settings.count) for name, share in shares.items()}
    counts = {"train": settings.count - sum(counts.values())} | counts
    for split, share in shares.items():
        if counts[split] and not (split_of == split).any():
            raise UserError(
                f"dataset.{split} is {share}, of {len(digits):,} digits too small a share to make scenes from; raise "
                "it, or set it to 0."
            )
    composed, given = [], []
    for number, split in enumerate(SPLITS):
        mine = split_of == split
        for index in range(counts[split]):
            rng = np.random.default_rng((config.seed, number, index))
            composed.append(_compose(digits[mine], labels[mine], settings.canvas, settings.most, rng))
            given.append(split)
    columns = {name: np.stack([scene[name] for scene in composed]) for name in composed[0]}
    return columns | {"given": np.array(given)}


def _compose(digits: np.ndarray, labels: np.ndarray, canvas: int, most: int, rng: np.random.Generator) -> Records:
    """Composes a scene: inputs uint8 [canvas canvas 1], boxes [M 4] as shares of the canvas, box_labels [M].

    A digit for which twenty tries find no free place is left out; the first one always fits.
    """
    picture = rng.integers(0, NOISE, (canvas, canvas), dtype=np.uint8)
    boxes, found = np.zeros((most, 4), np.float32), np.full(most, -1, np.int32)
    placed: list[tuple[int, int, int, int]] = []
    for _ in range(rng.integers(1, most + 1)):
        chosen = rng.integers(len(digits))
        ink = _outline(digits[chosen, :, :, 0], int(rng.integers(SIDES[0], SIDES[1] + 1)))
        box = _free_place(ink.shape, canvas, placed, rng)
        if box:
            y0, x0, y1, x1 = box
            picture[y0:y1, x0:x1] = np.maximum(picture[y0:y1, x0:x1], ink)
            boxes[len(placed)] = np.array(box) / canvas
            found[len(placed)] = labels[chosen]
            placed.append(box)
    return {"inputs": picture[..., None], "boxes": boxes, "box_labels": found}


def _outline(digit: np.ndarray, side: int) -> np.ndarray:
    """The digit with its frame resized to `side` pixels, cropped to the pixels that have ink."""
    from PIL import Image

    small = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR))
    rows, columns = np.nonzero((small >= INK).any(1))[0], np.nonzero((small >= INK).any(0))[0]
    return small[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_place(shape, canvas: int, placed: list, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """A random box y0 x0 y1 x1 of this shape, away from the `placed` ones; None if twenty tries find none."""
    for _ in range(20):
        y0, x0 = (int(rng.integers(canvas - size + 1)) for size in shape)
        box = y0, x0, y0 + shape[0], x0 + shape[1]
        if all(
            box[0] - NEAREST >= other[2]
            or box[2] + NEAREST <= other[0]
            or box[1] - NEAREST >= other[3]
            or box[3] + NEAREST <= other[1]
            for other in placed
        ):
            return box
    return None
