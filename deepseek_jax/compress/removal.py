"""The interface of pruning methods: their inputs and results."""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float

from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.train.checkpoints.restore import Trained

Moments = dict[str, Float[Array, "N I"]]  # sums of squares of each matrix's inputs (compress/calibrate.py)


@dataclasses.dataclass(frozen=True)
class Removed:
    """A pruned model.

    left   by path of each pruned array: (how many of its numbers stay, how many there were)
    share  the share of the candidate weights or units that was removed; whole units only approximate the sparsity asked
    """

    source: Trained
    left: dict[str, tuple[int, int]]
    share: float


@dataclasses.dataclass(frozen=True)
class Method:
    """remove(given, settings, moments) -> Removed; `settings.sparsity` is the share to remove.

    `calibrated`: whether `remove` needs `moments`; if not, they are None.  `check(given, settings)` raises UserError
    for whatever `remove` would refuse, so that this is known before the calibration.
    """

    remove: Callable[[Trained, PruneConfig, Moments | None], Removed]
    calibrated: bool = False
    check: Callable[[Trained, PruneConfig], object] = lambda given, settings: None
