"""The settings of a labelled set: which records, how they are split, and how they are prepared for the model."""

import dataclasses

from deepseek_jax import part_settings
from deepseek_jax.checking import at_least, choice, fraction
from deepseek_jax.errors import UserError

BALANCES = ("none", "weights", "sampling", "oversampling")


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """The columns of a user's .csv, .jsonl or .parquet.  Set one of text, image and features as the input, and one of
    label and targets as the target; with boxes, label is that of each box.  A series is both input and target.

    What is nested in .jsonl and .parquet is named by a dotted path, as in objects.bbox."""

    text: str = ""
    # Paths of image files, relative to the table's directory; in a .parquet also what such files hold, alone or in a
    # struct as {bytes, path}.
    image: str = ""
    features: tuple[str, ...] = ()  # numbers
    series: str = ""  # numbers, the values of one time series, one row per step
    boxes: str = ""  # a list of [left, top, right, bottom] per picture, in pixels of its file; label is a list too
    xywh: bool = False  # boxes are [left, top, width, height] instead, as in COCO
    label: str = ""
    classes: tuple[str, ...] = ()  # all classes; empty: the labels that occur
    targets: tuple[str, ...] = ()  # numbers
    split: str = ""  # train, val or test for each row; empty: split by `val` and `test`

    def __post_init__(self):
        for name in self.classes:
            if self.classes.count(name) > 1:
                raise UserError(f"dataset.columns.classes has {name!r} twice; name each class once.")

    @property
    def inputs(self) -> list[str]:
        """The kinds of input of which a column is named; a set has one."""
        named = {"series": self.series, "text": self.text, "image": self.image, "table": self.features}
        return [kind for kind, column in named.items() if column]


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
    """The size to which image files are resized; 0: that of the first file, which all must then have."""

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
    """A record of a time series: `window` known values and the `horizon` values that follow them."""

    window: int = 36
    horizon: int = 12
    season: int = 0  # period in steps, for the seasonal naive forecast; 0: the set's own, which for a file is 1

    def __post_init__(self):
        at_least("dataset.series", self, 0, "season")
        at_least("dataset.series", self, 1, "horizon")
        at_least("dataset.series", self, 2, "window")


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Pictures composed of real digits for detection."""

    count: int = 4000  # scenes of all splits together
    canvas: int = 64  # side in pixels
    most: int = 4  # most digits per scene; the fewest is 1

    def __post_init__(self):
        at_least("dataset.scenes", self, 10, "count")
        at_least("dataset.scenes", self, 40, "canvas")
        at_least("dataset.scenes", self, 1, "most")


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """`name`: digits, mnist5k, fashion, services, scenes, diabetes, co2, temperatures, tfds:NAME for a set of
    pictures or texts that tensorflow-datasets has prepared, or the path of a .csv, .jsonl or .parquet, or of a
    directory of such files."""

    name: str = "digits"
    directory: str = ""  # where prepared data lives; empty: $DEEPSEEK_JAX_DATA or ~/.cache/deepseek_jax
    val: float = 0.1  # share of the records for early stopping and tuning
    test: float = 0.2  # share for the final score only
    seed: int = 0  # of the split; that of training is train.seed
    exclude: str = ""  # path of a filter list: one id per line, of records to leave out of training
    standardise: bool = True  # scale inputs and numeric targets to mean 0 and deviation 1 on the training split
    # none; weights: weight classes in the loss; sampling: show classes equally often in an epoch of the same length;
    # oversampling: show every class as often as the largest, so that no record is left out.
    balance: str = "none"
    vocab_size: int = 4096  # text: entries of the tokenizer, which is trained on the training split
    length: int = 64  # text: the first so many tokens of a record are kept
    columns: ColumnsConfig = ColumnsConfig()
    images: ImagesConfig = ImagesConfig()
    series: SeriesConfig = SeriesConfig()
    scenes: ScenesConfig = ScenesConfig()
    parts: part_settings.Parts = part_settings.Parts()  # settings of a set that a plugin adds, from that section

    def __post_init__(self):
        object.__setattr__(self, "parts", part_settings.of([self.name], self.parts))
        fraction("dataset", self, "val", "test")
        if self.val + self.test >= 1:
            raise UserError(f"dataset.val ({self.val}) and dataset.test ({self.test}) leave nothing to train on.")
        choice("dataset.balance", self.balance, BALANCES)
        at_least("dataset", self, 1, "length", "vocab_size")
        at_least("dataset", self, 0, "seed")
