"""Goodput: the share of a run's wall time that went into steps which still count."""

import time


class Goodput:
    """A stopwatch of training, beside the clock on the wall.

    Wall time runs from `began`, seconds since 1970 when the run directory was made, through every restart and the time
    in between.  Useful time is that of the steps whose result a checkpoint keeps: what a killed run did after its last
    one is lost, and compiling, restoring, evaluating and waiting for a checkpoint never count.
    """

    def __init__(self, began: float, useful_seconds: float):
        """`useful_seconds` is of the steps that the checkpoint holds which this process goes on from."""
        self._began, self._before = began, useful_seconds
        self._since: float | None = None

    def start(self):
        """Nothing but steps is done from here on."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self):
        """Something else is."""
        self._before, self._since = self.useful_seconds, None

    @property
    def useful_seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def share(self) -> float:
        return self.useful_seconds / max(time.time() - self._began, 1e-9)
