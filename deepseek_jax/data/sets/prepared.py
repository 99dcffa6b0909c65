"""Sets that tensorflow-datasets has prepared as array_record: pictures or texts with one class each."""

import numpy as np

from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.images import decode, losses, stack
from deepseek_jax.data.sets.source import Source, numbered
from deepseek_jax.errors import UserError

SPLIT_OF = {"train": "train", "validation": "val", "test": "test"}  # names there -> names here


def read(config: DatasetConfig) -> Source:
    """The set `tfds:NAME`: its feature image, or else text, and its label.  UserError if it is not prepared."""
    import tensorflow_datasets as tfds

    name = config.name.removeprefix("tfds:")
    try:
        builder = tfds.builder(name, data_dir=config.directory or None)
    except ValueError:  # also raised for an invalid name
        raise UserError(f"tensorflow-datasets knows no set {name!r}, and none of that name is prepared.") from None
    features = builder.info.features
    if not builder.info.splits:
        raise UserError(
            f"{config.name} is not prepared in {builder.data_dir}: run tfds.builder({name!r}, "
            "file_format='array_record').download_and_prepare() once, where its source can be reached."
        )
    column = "image" if "image" in features else "text"
    if not {column, "label"} <= set(features) or not isinstance(features["label"], tfds.features.ClassLabel):
        raise UserError(
            f"{config.name} has features {', '.join(sorted(features))}; a set with image or text, and a class as its "
            "label, is needed."
        )
    # Undecoded: tensorflow-datasets would decode with OpenCV or to another size.
    decoders = {"image": tfds.decode.SkipDecoding()} if column == "image" else None
    values, labels, given, places = [], [], [], []
    for split, ours in SPLIT_OF.items():
        if split in builder.info.splits:
            for record in builder.as_data_source(split, decoders=decoders):
                values.append(record[column])
                labels.append(record["label"])
                given.append(ours)
                places.append(f"{split} {len(places)}")
    inputs, notes = _pictures(values, places, config) if column == "image" else (_texts(values), ())
    return Source(
        name=config.name,
        kind="classes",
        input=column,
        records={"ids": numbered(len(labels)), "inputs": inputs, "labels": np.array(labels, np.int32)},
        class_names=tuple(features["label"].names),
        given=np.array(given),
        notes=notes,
    )


def _pictures(files: list[bytes], places: list[str], config: DatasetConfig) -> tuple[np.ndarray, tuple[str, ...]]:
    """(uint8 [N H W C], notes for the user)."""
    images = [decode(data, f"{config.name} {place}", config) for data, place in zip(files, places, strict=True)]
    return stack(images, places, config), losses(files, config)


def _texts(values: list[bytes | str]) -> np.ndarray:
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    return np.array(texts, object)
