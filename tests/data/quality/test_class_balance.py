"""The class balance table: counts of each class, of records and of boxes."""

import numpy as np

from deepseek_jax.data.quality.balance import class_balance
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.data.sets.registry import open_set


def test_records_of_each_class_are_counted(digits):
    train, test = (np.bincount(digits.splits[name]["labels"]) for name in ("train", "test"))
    found = class_balance(digits)
    assert found.heads == ("class", "train", "val", "test", "share of train")
    assert [row[1] for row in found.rows] == train.tolist() and [row[3] for row in found.rows] == test.tolist()
    assert f"has {train.max()} records, {train.max() / train.min():.1f} times as many as the smallest" in found.sentence
    assert class_balance(open_set(DatasetConfig(name="diabetes"))) is None


def test_boxes_of_each_class_are_counted():
    """Pictures with up to two boxes; the label -1 means no box."""

    def records(box_labels: list) -> dict:
        boxes = np.tile(np.float32([0, 0, 1, 1]), (len(box_labels), 2, 1))
        columns = {"inputs": np.zeros((len(box_labels), 4, 4, 1), np.uint8), "boxes": boxes}
        return columns | {"ids": np.arange(len(box_labels)), "box_labels": np.array(box_labels).reshape(-1, 2)}

    splits = {"train": records([[0, 0], [0, 1], [-1, -1]]), "val": records([]), "test": records([[1, -1]])}
    found = class_balance(Dataset("street", "boxes", "image", splits, class_names=("car", "cat")))
    assert found.rows == (("car", 3, 0, "75.0%"), ("cat", 1, 1, "25.0%"))
    assert found.sentence == (
        "the largest class of the training split, car, has 3 boxes, 3.0 times as many as the smallest, cat"
    )
