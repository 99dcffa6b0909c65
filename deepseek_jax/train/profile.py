"""A trace of some steps by jax.profiler, with the named scopes of the architecture."""

from pathlib import Path

import jax

from deepseek_jax.parallel import processes
from deepseek_jax.train.recorder import Recorder

DIRECTORY = "profile"  # below a run directory


def traces(workdir: str | Path) -> set[Path]:
    """What was traced in a run directory so far."""
    return set((Path(workdir) / DIRECTORY).rglob("*.xplane.pb"))


class Profile:
    """Traces the steps of a range, in the one process that writes.

    The trace holds those steps whole and no others, and the time it takes is not counted as theirs.
    """

    def __init__(self, steps: range, workdir: Path, recorder: Recorder):
        self._steps = steps if processes.is_leader() else range(0)
        self._directory, self._recorder, self._running = workdir / DIRECTORY, recorder, False

    def before(self, step: int):
        if step in self._steps and not self._running:
            self._recorder.pause()
            jax.profiler.start_trace(self._directory)
            self._running = True
            self._recorder.resume()

    def after(self, step: int):
        if self._running and step + 1 not in self._steps:
            self._recorder.pause()
            self._stop()
            self._recorder.resume()

    def close(self):
        """Ends a trace that the end of the run cuts short."""
        if self._running:
            self._stop()

    def _stop(self):
        self._running = False
        jax.profiler.stop_trace()
