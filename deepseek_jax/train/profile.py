"""Traces some steps with jax.profiler, labelled by the architecture's named scopes."""

from pathlib import Path

import jax

from deepseek_jax.parallel import processes
from deepseek_jax.train.recorder import Recorder

DIRECTORY = "profile"  # below a run directory


def traces(workdir: str | Path) -> set[Path]:
    """The trace files in a run directory."""
    return set((Path(workdir) / DIRECTORY).rglob("*.xplane.pb"))


class Profile:
    """Traces a range of steps, in the leader process.

    The trace holds exactly these steps, and starting and stopping it does not count as their time.
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
