"""Whether an augmentation can serve a set, said before training begins."""

import numpy as np

from deepseek_jax.data.augment.config import AugmentConfig
from deepseek_jax.data.augment.draws import Draws
from deepseek_jax.data.augment.geometry import keeping_boxes
from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.errors import UserError

PROBED = 128  # pictures looked at
UNMOVED = 0.5  # share of them that may have to stay as they are


def check(config: AugmentConfig, dataset: Dataset, seed: int):
    """UserError where `config` asks for what the set's input or labels do not allow.

    That is also a geometry that pushes every box out of most pictures: those would train unaugmented, and the setting
    would not do what it says.
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
