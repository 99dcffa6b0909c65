"""Several processes on this machine that train one run, started as a scheduler would: one command, JAX_* variables."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests import xla_flags
from tests.paths import ROOT

PATIENCE = 600  # timeout in seconds of every wait here; a busy machine compiles slowly
TRAIN = ("-m", "deepseek_jax", "train", "--config", str(ROOT / "tests" / "multiprocess" / "experiment.py"))


class Group:
    """`count` processes that run `python ARGUMENTS`, each with `devices` devices; output goes to files in `directory`.

    A context manager that kills the processes on exit.
    """

    def __init__(
        self, directory: Path, *arguments: str, count: int, devices: int = 2, environment: Mapping[str, str] = {}
    ):
        flags = f"{xla_flags.FAST_COMPILE} --xla_force_host_platform_device_count={devices}"
        common = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "TINY": str(directory)} | environment
        if count > 1:
            common |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_port()}", "JAX_NUM_PROCESSES": str(count)}
        self._processes, self._outputs = [], []
        for number in range(count):
            path = directory / f"{time.monotonic_ns()}.{number}.txt"
            with path.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=directory,
                    env=common | ({"JAX_PROCESS_ID": str(number)} if count > 1 else {}),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self._processes.append(process)
            self._outputs.append(path)

    def wait_until(self, condition: Callable[[], bool]):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            ended = [number for number, process in enumerate(self._processes) if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, self.output(ended[0] if ended else 0)
            time.sleep(0.02)

    def send(self, number: int, how: signal.Signals):
        self._processes[number].send_signal(how)

    def finish(self, *numbers: int) -> list[int]:
        """Waits for the processes with these numbers (by default all) to end, and returns their exit statuses."""
        waited = [self._processes[number] for number in numbers] or self._processes
        return [process.wait(timeout=PATIENCE) for process in waited]

    def output(self, number: int) -> str:
        return self._outputs[number].read_text(errors="replace")

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.wait()


def start_training(
    directory: Path, workdir: str, *overrides: str, options: Sequence[str] = (), count: int = 1, **how
) -> Group:
    """Starts `deepseek-jax train`.  `options`: of the verb; `how`: devices and environment, as for Group."""
    settings = [f"--config.{override}" for override in overrides]
    return Group(directory, *TRAIN, "--workdir", workdir, *options, *settings, count=count, **how)


def train_to_end(directory: Path, workdir: str, *overrides: str, **size: int) -> str:
    """Trains to the end, which must succeed, and returns the output of the leader process."""
    with start_training(directory, workdir, *overrides, **size) as group:
        assert not any(group.finish()), "\n".join(group.output(n) for n in range(size.get("count", 1)))
        return group.output(0)


def rows(workdir: Path) -> list[dict]:
    """The training steps' rows of metrics.jsonl that have been written so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in (json.loads(line) for line in lines if line.endswith("}")) if "loss/next" in row]


def last_step(workdir: Path) -> int:
    return max((row["step"] for row in rows(workdir)), default=0)


def curve(workdir: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss/total"], row["grad_norm"]) for row in rows(workdir)]


def load_entropies(workdir: Path) -> list[dict]:
    """A metric of expert loads alone: as loads are counts, it is exactly equal unless some router chose differently."""
    return [row["router/load_entropy"] for row in rows(workdir)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
