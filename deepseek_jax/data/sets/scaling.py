"""Standardisation: fitted on the training split alone, kept with the checkpoint, undone on what a model answers.

C channels, columns or numbers: the last dimension of inputs and of targets
"""

import dataclasses

import numpy as np

PIECE = 1 << 20  # rows looked at together


@dataclasses.dataclass(frozen=True)
class Scaling:
    """(value - mean) / deviation for each of C channels of the inputs and of the targets; empty tuples change nothing.

    A trained model is used as `targets = scaling.undo_targets(model(scaling.inputs(raw)))`.
    """

    input_mean: tuple[float, ...] = ()
    input_deviation: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_deviation: tuple[float, ...] = ()

    def inputs(self, values: np.ndarray) -> np.ndarray:
        """float32 [... C] as the model is to see it."""
        return _standardised(values, self.input_mean, self.input_deviation)

    def targets(self, values: np.ndarray) -> np.ndarray:
        """float32 [... C] as the loss is to see it."""
        return _standardised(values, self.target_mean, self.target_deviation)

    def undo_targets(self, values: np.ndarray) -> np.ndarray:
        """What a model answers, in the units of the data."""
        if not self.target_mean:
            return np.asarray(values, np.float32)
        return _float32(values * np.array(self.target_deviation) + np.array(self.target_mean))


def moments(values: np.ndarray, unit: float = 1.0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of [... C] / unit over all but the last dimension; of a channel that never changes, 1."""
    rows = values.reshape(-1, values.shape[-1])
    # float64, as the variance of numbers far from 0 needs, in pieces, so that images are never whole in float64.
    pieces = range(0, len(rows), PIECE)
    mean = sum(rows[at : at + PIECE].sum(0, dtype=np.float64) for at in pieces) / len(rows)
    deviation = np.sqrt(sum(np.square(rows[at : at + PIECE] - mean).sum(0) for at in pieces) / len(rows))
    # Told by its values: of numbers far from 0, timestamps, a deviation is small beside the mean though they change.
    low = rows.min(0)
    constant = (low == rows.max(0)) | (deviation == 0)
    mean, deviation = np.where(constant, low, mean), np.where(constant, unit, deviation)
    return tuple((mean / unit).tolist()), tuple((deviation / unit).tolist())


def _standardised(values: np.ndarray, mean: tuple[float, ...], deviation: tuple[float, ...]) -> np.ndarray:
    if not mean:
        return np.asarray(values, np.float32)
    # Subtracted in float64: of a number far from 0, float32 would keep few digits of what is left.
    return _float32((values - np.array(mean)) / np.array(deviation))


def _float32(values: np.ndarray) -> np.ndarray:
    """A held-out number far outside of the training ones may come to more than float32 holds: to its most, not inf."""
    most = np.finfo(np.float32).max
    return np.clip(values, -most, most).astype(np.float32)
