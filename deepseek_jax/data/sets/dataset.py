"""A labelled set in memory: its splits, the form of its records, and the checks that every set must pass.

N records  H height  W width  C channels  S steps  K classes  M boxes per picture
"""

import dataclasses
import functools
import hashlib

import numpy as np

from deepseek_jax.data.sets.scaling import Scaling
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.errors import UserError

SPLITS = ("train", "val", "test")
Records = dict[str, np.ndarray]
# ids int64 [N]: the position in the source, unique within a set
# inputs     image: uint8, or float32 in [0, 1] [N H W C]; series: float32 [N S C]; table: float32 [N C];
#            text: token ids int32 [N S], with lengths int32 [N], and the strings `texts` as objects [N]
# labels int32 [N] | targets float32 [N C], in the data's units
#            | boxes float32 [N M 4] (y0 x0 y1 x1 as shares of height and width) and box_labels int32 [N M] (-1: no box)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """`kind` is the kind of target (classes, numbers, boxes), `input` the kind of input (image, series, text, table).

    names: the columns of a table; target_names: the numbers to predict.
    scaling: of the inputs (for images, of values in [0, 1]) and the targets, fitted on the training split.
    season: period of a series in steps, for the naive forecast; 0 if there is none.
    notes: remarks for the user on how it was read, one sentence each.
    UserError for values that are not finite, invalid labels or boxes, a class without a training record, and a target
    that is the same in every training record.
    """

    name: str
    kind: str
    input: str
    splits: dict[str, Records]
    class_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    scaling: Scaling = Scaling()
    balance: str = "none"
    tokenizer: Tokenizer | None = None
    season: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if not len(self.splits["train"]["ids"]):
            raise UserError(f"{self.name}: the training split is empty.")
        for records in self.splits.values():
            _check_records(self, records)
        if self.kind == "boxes":
            _check_splits_have_boxes(self)
        if self.kind == "numbers":
            if self.balance != "none":
                raise UserError(f"dataset.balance is {self.balance}, but {self.name} asks for numbers, not classes.")
            _check_targets_change(self)
        else:
            _check_classes(self)

    @property
    def outputs(self) -> int:
        """The number of classes, or of numbers, that a model predicts."""
        return len(self.target_names) if self.kind == "numbers" else len(self.class_names)

    def shape(self) -> dict[str, int]:
        """The sizes of a record's input, under their names in HybridConfig."""
        sizes = self.splits["train"]["inputs"].shape[1:]
        names = {
            "image": ("height", "width", "channels"),
            "series": ("length", "channels"),
            "text": ("length",),
            "table": ("channels",),
        }[self.input]
        shape = dict(zip(names, sizes, strict=True))
        return shape | ({"vocab_size": self.tokenizer.vocab_size} if self.tokenizer else {})

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the training records (token ids included), class names, scaling and balance.

        Not of `ids`: they are line numbers, which a blank line in the file shifts.
        """
        seen = hashlib.blake2b(digest_size=8)
        for name, values in sorted(self.splits["train"].items()):
            if name != "ids" and values.dtype != object:  # texts: their token ids are hashed
                seen.update(f"{name}{values.dtype}{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        seen.update(repr((self.class_names, self.scaling, self.balance)).encode())
        return seen.hexdigest()


def as_unit(images: np.ndarray) -> np.ndarray:
    """The images as float32 in [0, 1]; uint8 is divided by 255, anything else is already in that range."""
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def _check_records(dataset: Dataset, records: Records):
    for column, names in (("inputs", dataset.names), ("targets", dataset.target_names)):
        values = records.get(column)
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0]
            what = f" in {names[place[-1]]}" if names else ""
            raise UserError(
                f"{dataset.name}: record {records['ids'][place[0]]} has {values[tuple(place)]}{what}; "
                "correct it or remove it."
            )
    _check_labels(dataset, records, records.get("labels"), 0)
    if "boxes" in records:
        _check_labels(dataset, records, records["box_labels"], -1)
        _check_boxes(dataset, records)


def _check_labels(dataset: Dataset, records: Records, labels: np.ndarray | None, low: int):
    if labels is None:
        return
    wrong = np.argwhere((labels < low) | (labels >= len(dataset.class_names)))
    if len(wrong):
        raise UserError(
            f"{dataset.name}: record {records['ids'][wrong[0][0]]} has label {labels[tuple(wrong[0])]}; "
            f"its {len(dataset.class_names)} classes are numbered from 0."
        )


def _check_boxes(dataset: Dataset, records: Records):
    boxes = records["boxes"]
    ordered = (boxes[..., :2] < boxes[..., 2:]).all(-1) & (boxes >= 0).all(-1) & (boxes <= 1).all(-1)
    wrong = np.argwhere((records["box_labels"] >= 0) & ~ordered)
    if len(wrong):
        raise UserError(
            f"{dataset.name}: record {records['ids'][wrong[0][0]]} has box {boxes[tuple(wrong[0])].tolist()}; "
            "it must be y0 x0 y1 x1 with 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1."
        )


def _check_splits_have_boxes(dataset: Dataset):
    """A split without any box has no score, which early stopping would mistake for a lack of progress."""
    for split, records in dataset.splits.items():
        if len(records["ids"]) and not (records["box_labels"] >= 0).any():
            raise UserError(
                f"{dataset.name}: no picture of the split {split} has a box to find; add some, or split with another "
                "dataset.seed."
            )


def _check_targets_change(dataset: Dataset):
    """Refuses constant targets.  A series' targets are relative to the window's last value: equal ones mean steady
    growth, and only zeros mean that it never changes."""
    targets = dataset.splits["train"]["targets"]
    if len(targets) < 2:  # a single record says nothing about change
        return
    constant = (targets == targets[0]).all(0)
    if dataset.input == "series":
        if not targets.any():
            raise UserError(
                f"{dataset.name}: {dataset.names[0]} never changes in training; there is nothing to forecast."
            )
    elif constant.any():
        column = int(constant.argmax())
        raise UserError(
            f"{dataset.name}: {dataset.target_names[column]} is {targets[0, column]:g} in every training record; take "
            "it out of dataset.columns.targets."
        )


def _check_classes(dataset: Dataset):
    train = dataset.splits["train"]
    labels = train["labels"] if dataset.kind == "classes" else train["box_labels"][train["box_labels"] >= 0]
    if dataset.kind == "boxes" and dataset.balance != "none":
        raise UserError(f"dataset.balance is {dataset.balance}, but a picture of {dataset.name} has many classes.")
    if len(dataset.class_names) < 2 and dataset.kind == "classes":
        raise UserError(f"{dataset.name}: a single class leaves nothing to tell apart.")
    counts = np.bincount(labels, minlength=len(dataset.class_names))
    if not counts.all():
        absent = dataset.class_names[int(np.argmin(counts))]
        raise UserError(
            f"{dataset.name}: no training record is of class {absent!r}; add some, take the class out of the other "
            "splits, or split with another dataset.seed."
        )
