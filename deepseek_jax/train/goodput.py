"""Goodput: the share of a run's wall time that went into steps which still count."""

import time


class Goodput:
    """Measures useful training time and its share of the wall time.

    Wall time runs from `began` (seconds since 1970), when the run directory was made, through every restart and the
    time in between.  Useful time is that of steps whose result a checkpoint keeps: what a killed run did after its last
    checkpoint is lost, and compiling, restoring, evaluating and waiting for a checkpoint never count.
    """

    def __init__(self, began: float, useful_seconds: float):
        """`useful_seconds`: as recorded in the checkpoint that this process resumes from."""
        self._began, self._before = began, useful_seconds
        self._since: float | None = None

    def start(self):
        """Call when training steps begin; does nothing if they are under way."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self):
        """Call when anything other than training steps begins."""
        self._before, self._since = self.useful_seconds, None

    @property
    def useful_seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def share(self) -> float:
        useful = self.useful_seconds
        return useful / max(time.time() - self._began, useful, 1e-9)  # the clock may have been set back since then
