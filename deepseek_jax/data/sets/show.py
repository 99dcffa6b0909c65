"""A page that shows a set: its splits and classes, some records, and the effect of each augmentation on them."""

import dataclasses
import html
import pathlib
from collections.abc import Iterator

import numpy as np

from deepseek_jax.data.augment import checks
from deepseek_jax.data.augment.config import AugmentConfig, ImageAugmentConfig, TextAugmentConfig
from deepseek_jax.data.augment.draws import Draws
from deepseek_jax.data.sets import pictures
from deepseek_jax.data.sets.batches import BatchMaker, raw_batch
from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.errors import UserError
from deepseek_jax.html_page import document, heading, image, table

RECORDS = 8  # number of records shown
EPOCHS = 3  # showings of each record under an augmentation
SEARCHED = 200  # texts from which those to show are chosen
# Strong enough to be visible; training uses its own config instead.
SHOWN = {
    "image": AugmentConfig(
        ImageAugmentConfig(
            rotate=20, scale=0.2, crop=0.25, flip=0.5, brightness=0.4, noise=0.1, cutout=0.35, mixup=0.5, cutmix=1.0
        )
    ),
    "text": AugmentConfig(text=TextAugmentConfig(reorder=1.0, synonyms=0.3, insert=0.2, swap=0.2, delete=0.2)),
}


def shown_augmentation(dataset: Dataset) -> AugmentConfig:
    """Every augmentation that fits the set, strong enough to be visible; UserError if none does."""
    if dataset.input not in SHOWN:
        raise UserError(f"augmentations are for images and texts; {dataset.name} is of kind {dataset.input}.")
    augment = SHOWN[dataset.input]
    if dataset.kind != "classes":  # blending needs labels of classes
        augment = dataclasses.replace(augment, image=dataclasses.replace(augment.image, mixup=0.0, cutmix=0.0))
    return augment


def write(path: pathlib.Path, dataset: Dataset, augment: AugmentConfig | None = None):
    """Writes the page; with `augment`, also records before and after each of its active augmentations, and all."""
    sections = [heading(dataset.name), _facts(dataset), "<h2>Records of the training split</h2>", _records(dataset)]
    if augment:
        checks.check(augment, dataset, seed=0)
        sections += _augmentations(dataset, augment)
    path.write_text(document(dataset.name, sections), "utf-8")


def alone(augment: AugmentConfig) -> Iterator[tuple[str, AugmentConfig]]:
    """Yields (name, config) for each active augmentation with all others off, and last for all together."""
    for kind in ("image", "text"):
        section = getattr(augment, kind)
        off = type(section)()
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            only = dataclasses.replace(off, **{field.name: value})
            if only.active:
                yield f"{field.name} {value:g}", dataclasses.replace(AugmentConfig(), **{kind: only})
    yield "all together", augment


def _augmentations(dataset: Dataset, augment: AugmentConfig) -> Iterator[str]:
    show = _pictures_before_and_after if dataset.input == "image" else _texts_before_and_after
    for name, config in alone(augment):
        yield f"<h2>{html.escape(name)}</h2>"
        yield show(BatchMaker(dataset, config, seed=0), name)


def _pictures_before_and_after(maker: BatchMaker, name: str) -> str:
    index = _chosen(maker.dataset)
    rows = {"before": raw_batch(maker.dataset, "train", index)}
    rows |= {f"epoch {epoch}": maker.augmented(index, _draws(index, epoch)) for epoch in range(EPOCHS)}
    return image(pictures.grid(rows, maker.dataset.class_names), name)


def _texts_before_and_after(maker: BatchMaker, name: str) -> str:
    """A table of those among the first texts that change, as few have clauses to exchange."""
    texts = maker.dataset.splits["train"]["texts"][:SEARCHED]
    index = np.arange(len(texts))
    showings = [maker.texts(index, _draws(index, epoch)) for epoch in range(EPOCHS)]
    changed = [row for row in zip(texts, *showings, strict=True) if len(set(row)) > 1]
    return table(["before", *(f"epoch {epoch}" for epoch in range(EPOCHS))], changed[:RECORDS])


def _draws(index: np.ndarray, epoch: int) -> Draws:
    return Draws(0, index, np.full_like(index, epoch), np.zeros_like(index))


def _records(dataset: Dataset) -> str:
    index, train = _chosen(dataset), dataset.splits["train"]
    if dataset.input == "image":
        return image(pictures.grid({"": raw_batch(dataset, "train", index)}, dataset.class_names), "records")
    if dataset.input == "series":
        return image(pictures.curves(train["inputs"][index[:4]], train["targets"][index[:4]]), "windows")
    if dataset.kind == "classes":
        asked, heads = [[dataset.class_names[label]] for label in train["labels"][index]], ["class"]
    else:
        asked, heads = train["targets"][index].tolist(), list(dataset.target_names)
    if dataset.input == "text":
        given, names = [[text] for text in train["texts"][index]], ["text"]
    else:
        given, names = train["inputs"][index].tolist(), list(dataset.names)
    return table([*heads, *names], ([*a, *g] for a, g in zip(asked, given, strict=True)))


def _chosen(dataset: Dataset) -> np.ndarray:
    count = len(dataset.splits["train"]["ids"])
    return np.linspace(0, count - 1, min(RECORDS, count)).astype(int)


def _facts(dataset: Dataset) -> str:
    splits = ((name, f"{len(records['ids']):,}") for name, records in dataset.splits.items())
    shape = ", ".join(f"{name} {size:,}" for name, size in dataset.shape().items())
    facts = f"<p>{dataset.input} ({shape}), asked for {dataset.kind} ({dataset.outputs})</p>"
    facts += table(["split", "records"], splits)
    if dataset.kind == "numbers":
        return facts
    labels = {name: records.get("labels", records.get("box_labels")) for name, records in dataset.splits.items()}
    counts = [np.bincount(of[of >= 0].ravel(), minlength=dataset.outputs) for of in labels.values()]
    return facts + "<h2>Classes</h2>" + table(["class", *labels], zip(dataset.class_names, *counts, strict=True))
