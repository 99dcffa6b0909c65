"""What a way of pruning is given and what it gives."""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float

from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.compress.source import Source

Moments = dict[str, Float[Array, "N I"]]  # sums of squares of each matrix's inputs (compress/calibrate.py)


@dataclasses.dataclass(frozen=True)
class Removed:
    """A smaller model.

    left   of each array that lost something how many numbers stay, and of how many
    share  of the single weights, or units, among which was chosen: what went, which whole units only come near to
    """

    source: Source
    left: dict[str, tuple[int, int]]
    share: float


@dataclasses.dataclass(frozen=True)
class Method:
    """remove(given, settings, moments) -> Removed; `settings.sparsity` is the share of what goes.

    `calibrated`: whether it looks at `moments`, which are None else.  `check` raises UserError for what `remove` would
    refuse of (given, settings), before anything is calibrated.
    """

    remove: Callable[[Source, PruneConfig, Moments | None], Removed]
    calibrated: bool = False
    check: Callable[[Source, PruneConfig], object] = lambda given, settings: None
