"""The sections of an experiment that configure compression during training: prune, quantize and arithmetic."""

import dataclasses
import math
import re

from deepseek_jax.checking import at_least, choice, fraction, pattern
from deepseek_jax.errors import UserError

UNITS = ("heads", "hidden", "expert-hidden", "units", "channels")
METHOD_NAMES = ("magnitude", "wanda", *UNITS, "experts", "merge-experts")
SCOPES = ("layer", "output", "global")
STORED = ("none", "int8", "int4", "fp8", "fp4")


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Pruning: weights that are held at zero.

    method  zeros      weights that are zero in the initial model (start.checkpoint) stay zero
            magnitude  a growing share of the smallest weights, by a cubic schedule (arXiv:1710.01878, equation 1)
    scope   where the share `sparsity` is taken: in each matrix ("layer"), each output of each matrix ("output"), or
            among the weights of all matrices together ("global")
    """

    method: str = "none"  # none, zeros, magnitude
    sparsity: float = 0.5  # share of the weights that are zero at the end
    # "2:4": of every 4 consecutive inputs 2 stay, in training all from `begin` on; `sparsity`, `scope` and `every` are
    # then ignored.
    pattern: str = ""
    scope: str = "layer"
    paths: str = ""  # regular expression: prune matrices whose path matches; empty: all but embedding and head
    begin: float = 0.0  # share of the run after which pruning begins
    end: float = 0.6  # share of the run at which `sparsity` is reached; the masks are fixed from then on
    every: int = 10  # steps between updates of the masks

    def __post_init__(self):
        choice("prune.method", self.method, ("none", "zeros", "magnitude"))
        choice("prune.scope", self.scope, SCOPES)
        fraction("prune", self, "begin", "end")
        at_least("prune", self, 1, "every")
        check_sparsity("prune.sparsity", self.sparsity)
        pattern("prune.paths", self.paths)
        if self.pattern:
            parse_pattern("prune.pattern", self.pattern)
        if self.begin > self.end:
            raise UserError(
                f"prune.begin is {self.begin} and prune.end {self.end}; pruning must not end before it begins."
            )


def check_sparsity(key: str, sparsity: float):
    if not 0 < sparsity < 1:
        raise UserError(f"{key} is {sparsity}; it must lie between 0 and 1, both excluded, as 0.5 does.")


def parse_pattern(key: str, text: str) -> tuple[int, int]:
    """(n, m) of "n:m": of every m consecutive inputs n stay.

    >>> parse_pattern("prune.pattern", "2:4")
    (2, 4)
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise UserError(f"{key} is {text!r}; write N:M, as in 2:4, to keep N of every M consecutive inputs.")
    return int(match[1]), int(match[2])


def removed_by(pattern: str) -> float:
    """The share of weights that a pattern removes.

    >>> removed_by("1:4")
    0.75
    """
    n, m = parse_pattern("pattern", pattern)
    return 1 - n / m


@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
    """Weight matrices in low precision.

    weights      int8, int4 (one scale per output or per group of its inputs), fp8 (e4m3, one per block of 128 x 128),
                 fp4 (e2m1, one per group of 32 inputs)
    trained      true: float32 weights are trained and rounded in each forward pass (straight-through gradients,
                 arXiv:1308.3432); false: the matrices are stored rounded, and only the other parameters are trained
    """

    weights: str = "none"  # none, int8, int4, fp8, fp4
    group: int = 0  # int8 and int4: how many inputs share a scale; 0: all inputs of an output
    # Regular expression: matrices whose path matches; empty: all, except embedding and head for fp8 and fp4.
    paths: str = ""
    trained: bool = False

    def __post_init__(self):
        choice("quantize.weights", self.weights, STORED)
        at_least("quantize", self, 0, "group")
        pattern("quantize.paths", self.paths)
        if self.group and self.weights not in ("int8", "int4"):
            raise UserError(
                f"quantize.group is {self.group}, which is for int8 and int4; quantize.weights is {self.weights}."
            )


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig:
    """How products of activations and weights are computed, in training and afterwards.

    kind  plain   in train.dtype
          fp8     DeepSeek-V3's training, simulated: e4m3 in tiles of 128 (activations, gradients) and blocks of
                  128 x 128 (weights), summed in float32; embedding, heads, routers, norms and attention core are plain
          int8    inputs rounded to int8, over the range in `ranges` or else up to each row's largest magnitude
    """

    kind: str = "plain"
    paths: str = ""  # regular expression: matrices whose path matches; empty: all but heads and routers
    ranges: tuple[str, ...] = ()  # "PATH=LARGEST": the largest input of a matrix; `quantize --activations` fills it in

    def __post_init__(self):
        choice("arithmetic.kind", self.kind, ("plain", "fp8", "int8"))
        pattern("arithmetic.paths", self.paths)
        for each in self.ranges:
            match = re.fullmatch(r"[^=]+=((\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", each)
            if not match or not 0 < float(match[1]) < math.inf:
                raise UserError(f"arithmetic.ranges has {each!r}; write a path and its largest input, as in 'out=3.5'.")
