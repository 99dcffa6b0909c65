"""Loss curves of several seeds as one, and what a better loss is worth in time."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from deepseek_jax import fields
from deepseek_jax.config import AnyExperiment
from deepseek_jax.record import NOT_LEARNED

POINTS = 64  # at which curves are compared
REACH = 2  # neighbours on either side over which a curve is smoothed: a batch's loss wavers


# What training losses are of; where one differs, the better model may have the higher one.  Dropout and augmentation
# act in training alone.  A language model's curve is of the next token's loss, whatever else is minimised (`loss.`).
OF_LOSS = ("data.", "dataset.", "augment.", "objective.", "model.dropout", "model.drop_path", "model.vocab_size")

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # spent, mean loss, standard deviation over seeds


def mean_curve(curves: Sequence[Sequence]) -> Curve:
    """Smoothed, of the curves [[spent, loss], ...] of several seeds."""
    spent = np.linspace(max(c[0][0] for c in curves), min(c[-1][0] for c in curves), POINTS)
    losses = np.array([np.interp(spent, *_smooth(np.array(curve, float))) for curve in curves])
    with np.errstate(invalid="ignore"):  # of a curve that became infinite
        deviation = losses.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(POINTS)
    return spent, losses.mean(axis=0), deviation


def _smooth(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spent, loss = curve.T
    windows = (loss[max(0, i - REACH) : i + REACH + 1] for i in range(len(loss)))
    return spent, np.array([window.mean() for window in windows])


def by_variant(results: Mapping) -> dict[str, Curve]:
    curves: dict[str, list] = {}
    for run in results["runs"]:
        if len(run["curve"]) > REACH + 1:  # of fewer points each smoothed one is the mean of all
            curves.setdefault(run["variant"], []).append(run["curve"])
    return {name: mean_curve(found) for name, found in curves.items()}


def comparable(experiment: AnyExperiment, other: AnyExperiment) -> bool:
    """Whether the training losses of two experiments are of the same data, seen and scored alike."""
    return _of_loss(experiment) == _of_loss(other)


def _of_loss(experiment: AnyExperiment) -> dict:
    flat = fields.flatten(dataclasses.asdict(experiment))
    return {key: value for key, value in flat.items() if key.startswith(OF_LOSS) and not key.startswith(NOT_LEARNED)}


def speed_up(base: Curve, other: Curve, base_speed: float, speed: float) -> float:
    """How many times sooner `other` is where the base ends, by training loss and throughput; below 1: later.

    Of the two, the one that ends lower is asked how much it had spent when it was where the other ends.  The rate of
    its schedule was then not yet low, so this leans towards 1.  NaN where a curve ends in no number.
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
    """What was spent when the curve first came to `target`; it does come there."""
    place = int(np.argmax(loss <= target))
    if place == 0:
        return float(spent[0])
    before, after = loss[place - 1], loss[place]
    share = (before - target) / (before - after) if before > after else 1.0
    return float(spent[place - 1] + share * (spent[place] - spent[place - 1]))
