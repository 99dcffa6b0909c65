"""Reads what steps measured a little after they were started, so that the device never waits for Python."""

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable

import jax

from deepseek_jax.config import AnyExperiment
from deepseek_jax.train.goodput import Goodput
from deepseek_jax.train.metrics import Clock, Taken, train_row
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
        experiment: AnyExperiment,
        task: Task,
        write: Callable[[dict], None],
        show: Callable[..., None],
        goodput: Goodput,
        skipped: int,
    ):
        """`skipped` steps were dropped before the run was resumed."""
        self._experiment, self._task, self._write, self._show = experiment, task, write, show
        self._goodput, self._skipped = goodput, skipped
        self._queue: collections.deque[tuple[Started, float]] = collections.deque()  # and its overhead, in seconds
        self._clock = Clock(task.shown.unit)
        self._compiles = True  # the step that is finished next: nothing of it counts
        self._worked = time.thread_time()
        self.last_row: dict = {}
        self._load: dict = {}
        self._ends = Ends()

    def follow(self, step: Started):
        """Queues a step; waits for the oldest when AHEAD others are under way."""
        before, self._worked = self._worked, time.thread_time()
        self._queue.append((step, self._worked - before - step.dispatch))
        self._ends.follow(step.measured["skipped"])
        if len(self._queue) > AHEAD:
            self._finish(*self._queue.popleft())

    def pause(self):
        """Waits until every step has finished; what follows, until `resume`, is not counted as training time."""
        while self._queue:
            self._finish(*self._queue.popleft())
        self._goodput.stop()

    def resume(self):
        self._worked = time.thread_time()
        if not self._compiles:
            self._start_clock(time.perf_counter())

    def last_load(self) -> dict:
        """The experts' loads in the last step that has ended, with a row or without."""
        return jax.device_get(self._load)

    def restart(self):
        """The step that follows compiles, as the first did; its batch is larger, and no means are over both sizes."""
        self.pause()
        self._clock, self._compiles = Clock(self._task.shown.unit), True

    def close(self):
        """Lets go of the thread, whatever is under way."""
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
            self._clock.step(Taken(ended, units, step.data_wait, step.dispatch, overhead))
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
        self.last_row |= row  # a row without timing leaves the last timing standing
        self._write(row)
        speed = f"{self.last_row[shown.speed]:,.0f} {shown.unit}/s" if shown.speed in self.last_row else ""
        dropped = f"  {row['skipped']} skipped" if row["skipped"] else ""
        self._show(step.number, f"loss {row[shown.loss]:.3f}  {speed}{dropped}")


class Ends:
    """When steps end, on time.perf_counter(), from a thread that waits for them in turn.

    The loop looks later: at a pause at several steps at once, and where data comes slowly when the next is there.
    """

    def __init__(self):
        self._begun, self._ended = queue.SimpleQueue(), queue.SimpleQueue()
        # No daemon: the interpreter may not end while a thread is inside XLA.
        threading.Thread(target=_wait_for_each, args=(self._begun, self._ended)).start()

    def follow(self, result: jax.Array):
        """Of a step under way."""
        self._begun.put(result)

    def next(self) -> float:
        """Of the first step that was not asked about yet; waits for it."""
        return self._ended.get()

    def close(self):
        self._begun.put(None)


def _wait_for_each(begun: queue.SimpleQueue, ended: queue.SimpleQueue):
    while (result := begun.get()) is not None:
        with contextlib.suppress(Exception):  # who reads the result of a step that failed is told
            result.block_until_ready()
        ended.put(time.perf_counter())
