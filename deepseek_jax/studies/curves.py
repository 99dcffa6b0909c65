"""The mean of several seeds' loss curves, and speed-ups: how much sooner a variant reaches a loss."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from deepseek_jax import fields
from deepseek_jax.config import AnyExperiment
from deepseek_jax.record import NOT_LEARNED

POINTS = 64  # of a mean curve
REACH = 2  # neighbours on either side over which a curve is smoothed, as the losses of batches are noisy


# Prefixes of settings that change what a training loss measures: if one differs, the better model may have the higher
# loss.  Dropout and augmentation act only in training.  `loss.` is not among them: a language model's curve is always
# of the next-token loss, whatever else is minimised.
LOSS_SETTINGS = ("data.", "dataset.", "augment.", "objective.", "model.dropout", "model.drop_path", "model.vocab_size")

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens or records spent, mean loss, standard deviation over seeds


def mean_curve(curves: Sequence[Sequence]) -> Curve:
    """The smoothed mean of several seeds' curves [[spent, loss], ...], over the range that all of them cover."""
    spent = np.linspace(max(c[0][0] for c in curves), min(c[-1][0] for c in curves), POINTS)
    losses = np.array([np.interp(spent, *_smooth(np.array(curve, float))) for curve in curves])
    with np.errstate(invalid="ignore"):  # a curve may have become infinite
        deviation = losses.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(POINTS)
    return spent, losses.mean(axis=0), deviation


def _smooth(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spent, loss = curve.T
    windows = (loss[max(0, i - REACH) : i + REACH + 1] for i in range(len(loss)))
    return spent, np.array([window.mean() for window in windows])


def by_variant(results: Mapping) -> dict[str, Curve]:
    """Each variant's mean curve, of its runs that are long enough to smooth."""
    curves: dict[str, list] = {}
    for run in results["runs"]:
        if len(run["curve"]) > REACH + 1:  # with fewer points, each smoothed one is the mean of all
            curves.setdefault(run["variant"], []).append(run["curve"])
    return {name: mean_curve(found) for name, found in curves.items()}


def comparable(experiment: AnyExperiment, other: AnyExperiment) -> bool:
    """Whether the training losses of two experiments measure the same (LOSS_SETTINGS), so that lower is better."""
    return _of_loss(experiment) == _of_loss(other)


def _of_loss(experiment: AnyExperiment) -> dict:
    flat = fields.flatten(dataclasses.asdict(experiment))  # with copies of `parts`: in data, those of the data
    return {
        key: value for key, value in flat.items() if key.startswith(LOSS_SETTINGS) and not key.startswith(NOT_LEARNED)
    }


def speed_up(base: Curve, other: Curve, base_speed: float, speed: float) -> float:
    """How many times sooner `other` reaches the higher of the two final losses than `base` does; below 1: later.

    Time is tokens or records spent over throughput.  The curve that ends lower passes that loss before its learning
    rate has decayed, so the estimate is biased towards 1.  NaN if a curve ends in NaN or infinity.
    """
    (spent, loss, _), (other_spent, other_loss, _) = base, other
    if not np.isfinite([loss[-1], other_loss[-1]]).all():
        return math.nan
    if other_loss[-1] <= loss[-1]:
        gain = spent[-1] / reached(other_spent, other_loss, loss[-1])
    else:
        gain = reached(spent, loss, other_loss[-1]) / other_spent[-1]
    return gain * speed / base_speed


def reached(spent: np.ndarray, loss: np.ndarray, target: float) -> float:
    """What was spent when the curve first reached `target`, interpolated.  It must reach it."""
    place = int(np.argmax(loss <= target))
    if place == 0:
        return float(spent[0])
    before, after = loss[place - 1], loss[place]
    share = (before - target) / (before - after) if before > after else 1.0
    return float(spent[place - 1] + share * (spent[place] - spent[place - 1]))
