"""Reads what steps measured a little after they were started, so that the device never waits for Python."""

import collections
import dataclasses
from collections.abc import Callable

import jax

from deepseek_jax.config import Experiment
from deepseek_jax.train.goodput import Goodput
from deepseek_jax.train.metrics import Clock, train_row
from deepseek_jax.train.task import Task

AHEAD = 2  # steps queued on the device beyond the one that runs; more would only hold batches in memory


@dataclasses.dataclass(frozen=True)
class Started:
    """A step under way.  `number` counts from 1.

    Seconds: `data_wait`, on the wall, for its data; `dispatch`, of the loop's thread, for handing it to XLA.
    """

    number: int
    batch: dict
    measured: dict
    data_wait: float
    dispatch: float


class NotFinite(Exception):
    """A step whose loss or gradient is not finite, in a run that is to stop there."""

    def __init__(self, step: Started):
        super().__init__(f"step {step.number} is not finite")
        self.step = step


class Recorder:
    """Writes a row every `log.every` steps and tells the progress bar; raises NotFinite where the run is to stop."""

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        write: Callable[[dict], None],
        show: Callable[..., None],
        goodput: Goodput,
        skipped: int,
    ):
        """`skipped` steps were dropped before the run was resumed."""
        self._experiment, self._task, self._write, self._show = experiment, task, write, show
        self._goodput, self._skipped = goodput, skipped
        self._queue: collections.deque[Started] = collections.deque()
        self._clock: Clock | None = None  # starts after the first step, which compiles
        self.last_row: dict = {}
        self.last_load: dict = {}

    def follow(self, step: Started):
        """Queues a step; waits for the oldest when AHEAD others are under way."""
        self._queue.append(step)
        if len(self._queue) > AHEAD:
            self._finish(self._queue.popleft())

    def pause(self):
        """Waits until every step has finished; what follows, until `resume`, is not counted as training time."""
        while self._queue:
            self._finish(self._queue.popleft())
        self._goodput.stop()

    def resume(self):
        if self._clock is not None:
            self._start_clock()

    def _finish(self, step: Started):
        skipped = int(step.measured["skipped"])  # waits here for the step to end
        failed, self._skipped = skipped > self._skipped, skipped
        if self._clock is None:
            self._start_clock()
        else:
            self._clock.step(self._task.size(step.batch), step.data_wait, step.dispatch)
        stopping = failed and self._experiment.train.on_nonfinite == "stop"
        last = step.number == self._experiment.train.steps
        if step.number % self._experiment.log.every == 0 or step.number == 1 or last or failed:
            self._record(step)
        if stopping:
            raise NotFinite(step)
        self._show(step.number)

    def _start_clock(self):
        self._clock = Clock(self._task.shown.unit)
        self._goodput.start()

    def _record(self, step: Started):
        measured = jax.device_get(step.measured)
        self.last_load = measured.get("router/load", {})
        timing, shown = self._clock.lap(), self._task.shown
        row = train_row(step.number, measured, timing) | self._task.row(measured, timing)
        row["goodput"] = self._goodput.share
        self.last_row |= row  # a row without timing leaves the last timing standing
        self._write(row)
        speed = f"{self.last_row[shown.speed]:,.0f} {shown.unit}/s" if shown.speed in self.last_row else ""
        dropped = f"  {row['skipped']} skipped" if row["skipped"] else ""
        self._show(step.number, f"loss {row[shown.loss]:.3f}  {speed}{dropped}")
