"""How many records, or boxes, each class has in each split."""

import numpy as np

from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.sets.dataset import Dataset, Records


def class_balance(dataset: Dataset) -> Finding | None:
    """The class counts of each split; None if a set's targets are numbers, which have no classes."""
    if dataset.kind == "numbers":
        return None
    splits = {name: records for name, records in dataset.splits.items() if len(records["ids"])}
    counts = np.array(
        [np.bincount(_labels(records), minlength=len(dataset.class_names)) for records in splits.values()]
    )
    train = counts[list(splits).index("train")]
    few, many = int(train.argmin()), int(train.argmax())
    ratio = train[many] / max(train[few], 1)
    things = "boxes" if dataset.kind == "boxes" else "records"
    return Finding(
        title="Class balance",
        sentence=f"the largest class of the training split, {dataset.class_names[many]}, has {train[many]:,} {things}, "
        f"{ratio:.1f} times as many as the smallest, {dataset.class_names[few]}",
        heads=("class", *splits, "share of train"),
        rows=tuple(
            (name, *of.tolist(), f"{100 * share / train.sum():.1f}%")
            for name, of, share in zip(dataset.class_names, counts.T, train, strict=True)
        ),
    )


def _labels(records: Records) -> np.ndarray:
    """The labels of the records, or of all boxes in them."""
    if "labels" in records:
        return records["labels"]
    labels_NM = records["box_labels"]
    return labels_NM[labels_NM >= 0]
