"""The schema of a labelled set: which records, how they are split, and what is done to them before the model."""

import dataclasses

from deepseek_jax.checking import at_least, choice, fraction
from deepseek_jax.errors import UserError

BALANCES = ("none", "weights", "sampling", "oversampling")


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """What the columns of a user's .csv or .jsonl are.  One of text, image and features is the input; one of label and
    targets is asked for; with boxes, the label of each is.  A series is both by itself."""

    text: str = ""
    image: str = ""  # paths of image files, from the directory of the table
    features: tuple[str, ...] = ()  # numbers
    series: str = ""  # numbers, the values of one series, a row for each step of time
    boxes: str = ""  # in a picture, a list of [left, top, right, bottom] in pixels of its file; label has a list too
    label: str = ""
    classes: tuple[str, ...] = ()  # all labels; empty: those that occur
    targets: tuple[str, ...] = ()  # numbers
    split: str = ""  # train, val or test for each row; empty: split by `val` and `test`

    def __post_init__(self):
        for name in self.classes:
            if self.classes.count(name) > 1:
                raise UserError(f"dataset.columns.classes has {name!r} twice; name each class once.")


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
    """The size that image files are brought to; 0: that of the first file, which all must have."""

    height: int = 0
    width: int = 0
    channels: int = 1  # 1: grey, 3: red, green and blue

    def __post_init__(self):
        at_least("dataset.images", self, 0, "height", "width")
        if (self.height == 0) != (self.width == 0):
            raise UserError("dataset.images: give height and width, or leave both 0.")
        if self.channels not in (1, 3):
            raise UserError(f"dataset.images.channels is {self.channels}; it must be 1 (grey) or 3 (colour).")


@dataclasses.dataclass(frozen=True)
class SeriesConfig:
    """A record of a series: `window` known values and the `horizon` values that follow them."""

    window: int = 36
    horizon: int = 12
    season: int = 0  # period in steps, for the seasonal naive forecast; 0: the set's own, 1 for a file

    def __post_init__(self):
        at_least("dataset.series", self, 0, "season")
        at_least("dataset.series", self, 1, "horizon")
        at_least("dataset.series", self, 2, "window")


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Pictures composed of real digits for detection."""

    count: int = 4000  # scenes of all splits together
    canvas: int = 64  # pixels a side
    most: int = 4  # digits a scene, from 1 up

    def __post_init__(self):
        at_least("dataset.scenes", self, 10, "count")
        at_least("dataset.scenes", self, 40, "canvas")
        at_least("dataset.scenes", self, 1, "most")


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """`name`: digits, mnist5k, fashion, services, scenes, diabetes, co2, temperatures, tfds:NAME for a set of
    pictures or texts that tensorflow-datasets has prepared, or the path of a .csv or .jsonl."""

    name: str = "digits"
    directory: str = ""  # where prepared data lives; empty: $DEEPSEEK_JAX_DATA or ~/.cache/deepseek_jax
    val: float = 0.1  # share of the records that early stopping and tuning look at
    test: float = 0.2  # share that only the last score looks at
    seed: int = 0  # of the split; the seed of training is another
    exclude: str = ""  # path of a filter list: the ids, one a line, of records that training leaves out
    standardise: bool = True  # inputs and numeric targets to mean 0 and deviation 1 of the training split
    # none; weights: in the loss; sampling: epochs of equal length, classes equally often; oversampling: every class as
    # often as the largest, so that no record is left out.
    balance: str = "none"
    vocab_size: int = 4096  # text: entries of the tokenizer, which is trained on the training split
    length: int = 64  # text: tokens of a record that are kept, from its beginning
    columns: ColumnsConfig = ColumnsConfig()
    images: ImagesConfig = ImagesConfig()
    series: SeriesConfig = SeriesConfig()
    scenes: ScenesConfig = ScenesConfig()

    def __post_init__(self):
        fraction("dataset", self, "val", "test")
        if self.val + self.test >= 1:
            raise UserError(f"dataset.val ({self.val}) and dataset.test ({self.test}) leave nothing to train on.")
        choice("dataset.balance", self.balance, BALANCES)
        at_least("dataset", self, 1, "length", "vocab_size")
        at_least("dataset", self, 0, "seed")
