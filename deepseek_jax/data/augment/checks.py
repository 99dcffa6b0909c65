"""Checks, before training begins, that the augmentation settings fit the set."""

import numpy as np

from deepseek_jax.data.augment.config import AugmentConfig
from deepseek_jax.data.augment.draws import Draws
from deepseek_jax.data.augment.geometry import keeping_boxes
from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.errors import UserError

PROBED = 128  # pictures tried
UNMOVED = 0.5  # largest acceptable share of them for which no move keeps a box


def check(config: AugmentConfig, dataset: Dataset, seed: int):
    """UserError if `config` asks for something that the set's input or labels do not allow.

    This includes geometric changes that push every box out of most pictures: these would be trained on unaugmented,
    and the setting would have almost no effect.
    """
    for kind, section in (("image", config.image), ("text", config.text)):
        if section.active and dataset.input != kind:
            raise UserError(f"augment.{kind} is set, but {dataset.name} is of kind {dataset.input}; leave it out.")
    if config.image.mixes and dataset.kind != "classes":
        raise UserError(
            f"augment.image.mixup and cutmix blend labels of classes, and {dataset.name} has {dataset.kind}; set both "
            "to 0."
        )
    if config.image.moves and dataset.kind == "boxes":
        _check_boxes(config, dataset, seed)


def _check_boxes(config: AugmentConfig, dataset: Dataset, seed: int):
    train = dataset.splits["train"]
    index = np.arange(min(PROBED, len(train["ids"])))
    batch = {name: train[name][index] for name in ("inputs", "boxes", "box_labels")}
    _, unmoved = keeping_boxes(batch, config.image, Draws(seed, index, np.zeros_like(index), np.zeros_like(index)))
    if unmoved.mean() > UNMOVED:
        raise UserError(
            f"augment.image pushes every box out of {unmoved.sum()} of {len(index)} pictures of {dataset.name}; set "
            "rotate, scale, crop or keep_box lower."
        )
