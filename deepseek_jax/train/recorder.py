"""Reads the measurements of a step some steps later, so that the device never waits for Python."""

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable

import jax

from deepseek_jax.config import AnyExperiment
from deepseek_jax.errors import LOG
from deepseek_jax.train.goodput import Goodput
from deepseek_jax.train.metrics import Clock, FinishedStep, train_row
from deepseek_jax.train.task import Task

AHEAD = 2  # steps queued on the device beyond the running one; more would only hold batches in memory


@dataclasses.dataclass(frozen=True)
class Started:
    """A step under way.  `number` counts from 1.

    Seconds: `data_wait`, wall time for its data; `dispatch`, CPU time of the loop's thread for handing it to XLA.
    """

    number: int
    batch: dict
    measured: dict
    data_wait: float
    dispatch: float


class NotFinite(Exception):
    """The loss or gradient of `step` is not finite, and train.on_nonfinite is "stop"."""

    def __init__(self, step: Started):
        super().__init__(f"step {step.number} is not finite")
        self.step = step


class Recorder:
    """Writes a row every `log.every` steps and updates the progress bar; raises NotFinite if the run is to stop."""

    def __init__(
        self,
        experiment: AnyExperiment,
        task: Task,
        write: Callable[[dict], None],
        show: Callable[..., None],
        goodput: Goodput,
        skipped: int,
    ):
        """`skipped`: steps that were dropped before the run was resumed."""
        self._experiment, self._task, self._write, self._show = experiment, task, write, show
        self._goodput, self._skipped = goodput, skipped
        self._queue: collections.deque[tuple[Started, float]] = collections.deque()  # (step, overhead in seconds)
        self._clock = Clock(task.shown.unit)
        self._compiles = True  # whether the next step to finish compiles, so that its time does not count
        self._worked = time.thread_time()
        self.last_row: dict = {}
        self._load: dict = {}
        self._ends = Ends()

    def follow(self, step: Started):
        """Queues a step; if AHEAD others were under way, waits for the oldest."""
        before, self._worked = self._worked, time.thread_time()
        self._queue.append((step, self._worked - before - step.dispatch))
        self._ends.follow(step.measured["skipped"])
        if len(self._queue) > AHEAD:
            self._finish(*self._queue.popleft())

    def pause(self):
        """Waits until every step has finished; the time until `resume` is not counted as training time."""
        while self._queue:
            self._finish(*self._queue.popleft())
        self._goodput.stop()

    def resume(self):
        self._worked = time.thread_time()
        if not self._compiles:
            self._start_clock(time.perf_counter())

    def last_load(self) -> dict:
        """The experts' loads in the last step that has finished, whether it got a row or not."""
        return jax.device_get(self._load)

    def restart(self):
        """Call before a step with a larger batch: it compiles like the first, and no mean may span both sizes."""
        self.pause()
        self._clock, self._compiles = Clock(self._task.shown.unit), True

    def close(self):
        """Ends the waiting thread once it has seen the steps under way."""
        self._ends.close()

    def _finish(self, step: Started, overhead: float):
        ended = self._ends.next()  # waits here for the step to end
        self._load = step.measured.get("router/load", {})
        skipped = int(step.measured["skipped"])
        failed, self._skipped = skipped > self._skipped, skipped
        if self._compiles:
            self._compiles = False
            self._start_clock(ended)
        else:
            units = self._task.size(step.batch)
            self._clock.step(FinishedStep(ended, units, step.data_wait, step.dispatch, overhead))
        stopping = failed and self._experiment.train.on_nonfinite == "stop"
        last = step.number == self._experiment.train.steps
        if step.number % self._experiment.log.every == 0 or step.number == 1 or last or failed:
            self._record(step)
        if stopping:
            raise NotFinite(step)
        self._show(step.number)

    def _start_clock(self, now: float):
        self._clock.start(now)
        self._goodput.start()

    def _record(self, step: Started):
        measured = jax.device_get(step.measured)
        timing, shown = self._clock.lap(), self._task.shown
        row = train_row(step.number, measured, timing) | self._task.row(measured, timing)
        row["goodput"] = self._goodput.share
        if step.number == 1 and measured.get("targets") == 0:
            LOG.warning("step 1 had nothing to learn from: no row of its batch has an answer, or a question that fits.")
        self.last_row |= row  # if the row has no timing, the bar keeps the last one
        self._write(row)
        speed = f"{self.last_row[shown.speed]:,.0f} {shown.unit}/s" if shown.speed in self.last_row else ""
        dropped = f"  {row['skipped']} skipped" if row["skipped"] else ""
        self._show(step.number, f"loss {row[shown.loss]:.3f}  {speed}{dropped}")


class Ends:
    """When steps end, by time.perf_counter(), as seen by a thread that waits for each in turn.

    The loop itself looks too late: at several steps at once before a pause, and after waiting for the next batch.
    """

    def __init__(self):
        self._begun, self._ended = queue.SimpleQueue(), queue.SimpleQueue()
        # No daemon: the interpreter must not exit while a thread is inside XLA.
        threading.Thread(target=_wait_for_each, args=(self._begun, self._ended)).start()

    def follow(self, result: jax.Array):
        """Adds a step under way; `result` is any array that it returns."""
        self._begun.put(result)

    def next(self) -> float:
        """The end of the oldest step not yet returned; blocks until that step has ended."""
        return self._ended.get()

    def close(self):
        self._begun.put(None)


def _wait_for_each(begun: queue.SimpleQueue, ended: queue.SimpleQueue):
    while (result := begun.get()) is not None:
        with contextlib.suppress(Exception):  # a failed step raises again where its result is read
            result.block_until_ready()
        ended.put(time.perf_counter())
