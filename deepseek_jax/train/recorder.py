"""Reads what steps measured a little after they were started, so that the device never waits for Python."""

import collections
import dataclasses
from collections.abc import Callable

import jax

from deepseek_jax.config import Experiment
from deepseek_jax.train.metrics import Clock, train_row

AHEAD = 2  # steps queued on the device beyond the one that runs; more would only hold batches in memory


@dataclasses.dataclass(frozen=True)
class Started:
    """A step under way.  `number` counts from 1; `data_wait` is how many seconds it waited for its data."""

    number: int
    batch: dict
    measured: dict
    data_wait: float

    @property
    def places(self) -> int:
        """Token places of the batch [K, M, S], padding included: what throughput is counted in."""
        return self.batch["tokens"].size


class NotFinite(Exception):
    """A step whose loss or gradient is not finite, in a run that is to stop there."""

    def __init__(self, step: Started):
        super().__init__(f"step {step.number} is not finite")
        self.step = step


class Recorder:
    """Writes a row every `log.every` steps and tells the progress bar; raises NotFinite where the run is to stop."""

    def __init__(self, experiment: Experiment, write: Callable[[dict], None], show: Callable[..., None], skipped: int):
        """`skipped` steps were dropped before the run was resumed."""
        self._experiment, self._write, self._show, self._skipped = experiment, write, show, skipped
        self._queue: collections.deque[Started] = collections.deque()
        self._clock: Clock | None = None  # starts after the first step, which compiles
        self.last_row: dict = {}
        self.last_load: dict = {}

    def follow(self, step: Started):
        """Queues a step; waits for the oldest when AHEAD others are under way."""
        self._queue.append(step)
        if len(self._queue) > AHEAD:
            self._finish(self._queue.popleft())

    def catch_up(self):
        """Until every step has finished."""
        while self._queue:
            self._finish(self._queue.popleft())

    def pause(self):
        """Time until the next step is not counted as training time."""
        self._clock = None

    def _finish(self, step: Started):
        skipped = int(step.measured["skipped"])  # waits here for the step to end
        failed, self._skipped = skipped > self._skipped, skipped
        if self._clock is None:
            self._clock = Clock()
        else:
            self._clock.step(step.places, step.data_wait)
        stopping = failed and self._experiment.train.on_nonfinite == "stop"
        last = step.number == self._experiment.train.steps
        if step.number % self._experiment.log.every == 0 or step.number == 1 or last or failed:
            self._record(step)
        if stopping:
            raise NotFinite(step)
        self._show(step.number)

    def _record(self, step: Started):
        measured = jax.device_get(step.measured)
        self.last_load = measured["router/load"]
        row = train_row(step.number, measured, self._clock.lap(), self._experiment.model)
        self.last_row |= row  # a row without timing leaves the last timing standing
        self._write(row)
        speed = f"{self.last_row['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in self.last_row else ""
        dropped = f"  {row['skipped']} skipped" if row["skipped"] else ""
        self._show(step.number, f"loss {row['loss/next']:.3f}  {speed}{dropped}")
