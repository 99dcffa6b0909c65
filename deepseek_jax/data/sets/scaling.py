"""Standardisation: fitted on the training split alone, stored with the checkpoint, undone for a model's predictions.

C channels, columns or numbers: the last dimension of inputs and of targets
"""

import dataclasses

import numpy as np

PIECE = 1 << 20  # rows processed together


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
        """Raw inputs [... C], standardised for the model, float32."""
        return _standardised(values, self.input_mean, self.input_deviation)

    def targets(self, values: np.ndarray) -> np.ndarray:
        """Raw targets [... C], standardised for the loss, float32."""
        return _standardised(values, self.target_mean, self.target_deviation)

    def undo_targets(self, values: np.ndarray) -> np.ndarray:
        """A model's predictions [... C], converted to the units of the data."""
        if not self.target_mean:
            return np.asarray(values, np.float32)
        return _float32(values * np.array(self.target_deviation) + np.array(self.target_mean))


def moments(values: np.ndarray, unit: float = 1.0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of [... C] / unit over all but the last dimension; a constant channel's deviation is 1."""
    rows = values.reshape(-1, values.shape[-1])
    # In float64, for the variance of numbers far from 0; in pieces, so that not all images are in float64 at once.
    pieces = range(0, len(rows), PIECE)
    mean = sum(rows[at : at + PIECE].sum(0, dtype=np.float64) for at in pieces) / len(rows)
    deviation = np.sqrt(sum(np.square(rows[at : at + PIECE] - mean).sum(0) for at in pieces) / len(rows))
    # Judged by minimum and maximum: numbers far from 0 (timestamps) may change by very little relative to their mean.
    low = rows.min(0)
    constant = (low == rows.max(0)) | (deviation == 0)
    mean, deviation = np.where(constant, low, mean), np.where(constant, unit, deviation)
    return tuple((mean / unit).tolist()), tuple((deviation / unit).tolist())


def _standardised(values: np.ndarray, mean: tuple[float, ...], deviation: tuple[float, ...]) -> np.ndarray:
    if not mean:
        return np.asarray(values, np.float32)
    # In float64: for numbers far from 0, float32 would leave few digits of the difference.
    return _float32((values - np.array(mean)) / np.array(deviation))


def _float32(values: np.ndarray) -> np.ndarray:
    """Clips to the range of float32, so that a held-out number far outside the training range does not become inf."""
    most = np.finfo(np.float32).max
    return np.clip(values, -most, most).astype(np.float32)
