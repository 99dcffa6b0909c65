"""HybridConfig: sizes and choices of the hybrid network of convolution, recurrence and attention."""

import dataclasses
import math

from deepseek_jax.checking import at_least, choice, fraction
from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid import efficientnet
from deepseek_jax.models.hybrid.feature_norms import channels_together


@dataclasses.dataclass(frozen=True)
class ConvolutionConfig:
    """A sequence of blocks: convolutions, each with norm and activation, then a pooling layer.

    `kind` efficientnet_lite0 is a different extractor, for images only (models/hybrid/efficientnet.py).  It uses only
    `stages` and `enlarge`, and is left out if `filters` is ().
    """

    filters: tuple[int, ...] = (32,)  # channels of each block; () leaves the convolution out
    kernel_size: int = 3
    convs_per_block: int = 1
    norm: str = "none"  # batch, group, layer, none
    activation: str = "relu"  # relu, gelu, silu, tanh
    pool: str = "max"  # max, average, none
    pool_size: int = 2
    residual: bool = False
    kind: str = "blocks"  # or efficientnet_lite0
    stages: int = 4  # how many of efficientnet_lite0's seven
    enlarge: int = 1  # factor by which efficientnet_lite0 enlarges images first

    def __post_init__(self):
        section = "model.convolution"
        choice(f"{section}.kind", self.kind, ("blocks", "efficientnet_lite0"))
        at_least(section, self, 1, "stages", "enlarge")
        if self.stages > len(efficientnet.STAGES):
            raise UserError(f"{section}.stages is {self.stages}; there are {len(efficientnet.STAGES)}.")
        if any(size < 1 for size in self.filters):
            raise UserError(f"{section}.filters is {self.filters}; each block needs at least 1.")
        at_least(section, self, 1, "kernel_size", "convs_per_block", "pool_size")
        choice(f"{section}.norm", self.norm, ("batch", "group", "layer", "none"))
        choice(f"{section}.activation", self.activation, ("relu", "gelu", "silu", "tanh"))
        choice(f"{section}.pool", self.pool, ("max", "average", "none"))

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        lite = self.kind == "efficientnet_lite0"
        return efficientnet.STAGES[self.stages - 1].channels if lite else self.filters[-1]

    @property
    def resizing(self) -> tuple[int, int]:
        """(times, by): the convolution multiplies height and width by the first and divides them by the second."""
        if self.filters and self.kind == "efficientnet_lite0":
            return self.enlarge, efficientnet.reduction(self.stages)
        return 1, self.pool_size ** len(self.filters) if self.pool != "none" else 1

    @property
    def has_batch_norms(self) -> bool:
        return bool(self.filters) and (self.norm == "batch" or self.kind == "efficientnet_lite0")


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    kind: str = "lstm"  # lstm, gru, none
    hidden_size: int = 64  # of each direction
    layers: int = 1
    bidirectional: bool = False

    def __post_init__(self):
        choice("model.recurrent.kind", self.kind, ("lstm", "gru", "none"))
        at_least("model.recurrent", self, 1, "hidden_size", "layers")

    @property
    def reads_both_ways(self) -> bool:
        return self.bidirectional and self.kind != "none"


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    num_heads: int = 4  # 0 leaves attention out
    key_dim: int = 64  # of each head's queries, keys and values
    residual: bool = False
    norm: bool = False  # layer norm before attention

    def __post_init__(self):
        at_least("model.attention", self, 0, "num_heads")
        at_least("model.attention", self, 1, "key_dim")


HEADS = {"classes": "classes", "numbers": "numbers", "boxes": "boxes"}  # each head's name and kind of output
NEEDED = {  # the sizes that each kind of input must have
    "image": ("channels", "height", "width"),
    "series": ("channels", "length"),
    "text": ("vocab_size", "embed_dim", "length"),
    "table": ("channels",),
}


@dataclasses.dataclass(frozen=True)
class HybridConfig:
    """The parts in order: input, convolution, its output as a sequence, recurrence, attention, head.

    Defaults are the reference network for 28 x 28 images: 32 filters of 3 x 3, 2 x 2 pooling, an LSTM of width 64,
    attention with 4 heads of width 64, classes from the last step.

    input     image   [height, width, channels]
              series  up to `length` steps of `channels` numbers
              text    up to `length` tokens of `vocab_size`, embedded in `embed_dim` numbers
              table   `channels` columns: a series of one step, where convolutions act as dense layers
    sequence  how an image's feature map becomes steps: "cells", one step per cell, or "rows", one step per row
    readout   what the head sees of the sequence: the "last" real step (without attention, the last step that each
              direction of a bidirectional recurrence reads), or the "mean" or "max" of the real steps
    head      classes   `outputs` logits
              numbers   `outputs` numbers
              boxes     objects of `outputs` classes, at most one centre per cell of the feature map
    """

    input: str = "image"
    channels: int = 1
    height: int = 28
    width: int = 28
    vocab_size: int = 0
    embed_dim: int = 64
    length: int = 0
    convolution: ConvolutionConfig = ConvolutionConfig()
    sequence: str = "rows"
    recurrent: RecurrentConfig = RecurrentConfig()
    attention: AttentionConfig = AttentionConfig()
    readout: str = "last"
    head: str = "classes"
    outputs: int = 10
    dropout: float = 0.0  # share of the features zeroed after convolution, each recurrent layer and attention
    drop_path: float = 0.0  # share of the records for which a residual branch is left out

    def __post_init__(self):
        choice("model.input", self.input, tuple(NEEDED))
        choice("model.sequence", self.sequence, ("cells", "rows"))
        choice("model.readout", self.readout, ("last", "mean", "max"))
        choice("model.head", self.head, tuple(HEADS))
        at_least("model", self, 1, *NEEDED[self.input], "outputs")
        fraction("model", self, "dropout", "drop_path")
        self._check_branches()
        if self.input == "table":
            self._check_norms()
        if self.head == "boxes":
            self._check_boxes()

    def _check_branches(self):
        if self.convolution.kind == "efficientnet_lite0" and self.input != "image":
            raise UserError(
                f"model.convolution.kind is efficientnet_lite0; it needs images, but input is {self.input}."
            )
        if self.dropout == 1:
            raise UserError("model.dropout is 1.0, which leaves nothing; make it less than 1.")
        blocks = self.convolution.kind == "blocks" and self.convolution.filters
        branches = (blocks and self.convolution.residual) or (self.attention.num_heads and self.attention.residual)
        if self.drop_path and not branches:
            raise UserError(
                f"model.drop_path is {self.drop_path}, but no branch is residual; set model.convolution.residual or "
                "model.attention.residual to true, or model.drop_path to 0."
            )

    def _check_norms(self):
        """Rejects norms over a single number, which always return 0: a table has only one position to average over."""
        norm = self.convolution.norm
        for size in self.convolution.filters:
            if channels_together(norm, size) == 1:
                raise UserError(
                    f"model.convolution.filters has {size}: {norm} norm would take the mean of each number of a table "
                    "by itself, which leaves 0; make it a multiple of 16, or choose another model.convolution.norm."
                )

    def _check_boxes(self):
        if self.input != "image":
            raise UserError(f"model.head is 'boxes', which needs images; model.input is {self.input!r}.")
        if self.sequence == "rows" and (self.recurrent.kind != "none" or self.attention.num_heads):
            raise UserError(
                "model.head is 'boxes', which needs an output for each cell of the map; set model.sequence to 'cells', "
                "or leave out recurrence (model.recurrent.kind 'none') and attention (model.attention.num_heads 0)."
            )
        times, by = self.convolution.resizing
        step = by // math.gcd(times, by)
        for name in ("height", "width"):
            if getattr(self, name) % step:
                raise UserError(
                    f"model.{name} is {getattr(self, name)}; make it a multiple of {step}, by which it is reduced, "
                    "so that the cells of the feature map tile the image and boxes are placed correctly."
                )

    @property
    def map_size(self) -> tuple[int, int]:
        """(rows, columns) of an image's feature map after the convolution; pooling rounds up."""
        times, by = self.convolution.resizing
        return -(-self.height * times // by), -(-self.width * times // by)

    @property
    def steps(self) -> int:
        """Length of the sequence after the convolution."""
        if self.input == "table":
            return 1
        if self.input == "image":
            rows, columns = self.map_size
            return rows * columns if self.sequence == "cells" else rows
        return -(-self.length // self.convolution.resizing[1])

    @property
    def reads_one_step_of_many(self) -> bool:
        """Whether the head sees only the last of several steps, with neither recurrence nor attention before it."""
        carried = self.recurrent.kind != "none" or self.attention.num_heads > 0
        return self.readout == "last" and self.head != "boxes" and not carried and self.steps > 1
