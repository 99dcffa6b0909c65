"""The learning-rate range test (arXiv:1506.01186): the loss as the rate grows, and the rate that this suggests."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console

from deepseek_jax.config import AnyExperiment, ScheduleConfig
from deepseek_jax.errors import UserError
from deepseek_jax.figures import BLUE, ORANGE, STYLE, png, tidy
from deepseek_jax.train.setup import Setup, prepare
from deepseek_jax.train.start import first_state

DIVERGED = 1.5  # times the best loss; above this, larger rates need not be tried
SHOWN = 12  # points of the curve printed as text
MEMORY = 0.9  # weight of the previous value in the running mean
# Steps ignored at the start: the running mean of so few batches is noisy, and noise has the steepest slope.
SETTLED = round(1 / (1 - MEMORY))
WINDOW = 2 * SETTLED + 1  # steps over which a slope is taken


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """`losses`: running means.  `suggested`: the rate at which they fall fastest per log of the rate."""

    rates: np.ndarray
    losses: np.ndarray
    suggested: float

    def points(self) -> list[tuple[float, float]]:
        """(rate, loss) at up to SHOWN evenly spaced steps, including the last."""
        places = np.linspace(0, len(self.rates) - 1, min(SHOWN, len(self.rates))).round().astype(int)
        return list(zip(self.rates[places].tolist(), self.losses[places].tolist()))

    def picture(self) -> bytes:
        """A PNG: loss by learning rate, with the suggestion marked."""
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color=BLUE, linewidth=1.6)
        axes.axvline(self.suggested, color=ORANGE, linewidth=1.2)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate", **STYLE)
        axes.set_ylabel("loss, running mean", **STYLE)
        axes.set_title(f"suggested: {self.suggested:.2g}", loc="left", **STYLE)
        tidy(axes)
        return png(figure)


def range_test(experiment: AnyExperiment, low: float, high: float, steps: int, console: Console) -> RangeTest:
    """Trains the initial model while the rate grows from `low` to `high` by equal factors, or until the loss diverges.

    Raises UserError if the loss never falls.
    """
    rising = ScheduleConfig(name="range", final_ratio=low / high)
    experiment = dataclasses.replace(
        experiment,
        optimizer=dataclasses.replace(experiment.optimizer, peak_lr=high, schedule=rising),
        train=dataclasses.replace(experiment.train, steps=steps, ramp_start=0, on_nonfinite="skip"),
    )
    setup = prepare(experiment, console)
    rates, losses, mean = [], [], 0.0
    for step, measured in enumerate(_steps(setup, console.print), start=1):
        loss = float(measured[setup.task.shown.loss])
        if not math.isfinite(loss) or measured["skipped"]:
            break
        mean = MEMORY * mean + (1 - MEMORY) * loss
        rates.append(float(measured["learning_rate"]))
        losses.append(mean / (1 - MEMORY**step))
        if losses[-1] > DIVERGED * min(losses):
            break
    rates, losses = np.array(rates), np.array(losses)
    return RangeTest(rates, losses, steepest(rates, losses))


def _steps(setup: Setup, say: Callable[[str], None]) -> Iterator[dict]:
    """Yields the measurements of each step."""
    run, state = setup.compiled_step(), first_state(setup, say)
    for batch in setup.inputs():
        state, measured = run(state, batch)
        yield measured


def steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate at which the loss falls fastest, before its minimum; UserError if it never falls.

    Ignores the first SETTLED steps, but no more than half of those before the minimum.  Slopes are those of straight
    lines through WINDOW steps, as between single steps the noise of batches is steeper than any learning.
    """
    stop = int(np.argmin(losses)) + 1 if len(losses) else 0
    if stop < 3:
        raise UserError("the loss never fell: begin with a lower rate (--low), or look at the data.")
    first = min(SETTLED, stop // 2)
    width = max(2, min(WINDOW, (stop - first) // 2))
    around = np.arange(width) - (width - 1) / 2  # rates rise by equal factors, so that steps measure their log
    slopes = sliding_window_view(losses[first:stop], width) @ around
    return float(rates[first + int(np.argmin(slopes)) + (width - 1) // 2])
