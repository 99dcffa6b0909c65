"""Python programs in processes of their own: with several devices, connected to each other, or to be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests import xla_flags
from tests.paths import ROOT

PATIENCE = 600  # timeout in seconds of every wait here; a busy machine compiles slowly


def environment(devices: int = 1, flags: str = xla_flags.FAST_COMPILE) -> dict[str, str]:
    """This process's variables, with which a program finds the repository's modules and has `devices` host devices."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {
        "PYTHONPATH": path,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
    }


class Group:
    """`count` processes that run `python ARGUMENTS`, each with `devices` devices; output goes to files in `directory`.

    They are started as a scheduler would start them: one command, and JAX_* variables if there are several.  A context
    manager that kills the processes on exit.
    """

    def __init__(
        self, directory: Path, *arguments: str, count: int = 1, devices: int = 1, variables: Mapping[str, str] = {}
    ):
        common = environment(devices) | variables
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

    def wait_until(self, condition: Callable[[], bool], pause: float = 0.02):
        """Asks every `pause` seconds; a process that ends before fails the test."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            ended = [number for number, process in enumerate(self._processes) if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, self.output(ended[0] if ended else 0)
            time.sleep(pause)

    def send(self, number: int, how: signal.Signals):
        self._processes[number].send_signal(how)

    def finish(self, *numbers: int) -> list[int]:
        """Waits for the processes with these numbers (by default all) to end, and returns their exit statuses."""
        waited = [self._processes[number] for number in numbers] or self._processes
        return [process.wait(timeout=PATIENCE) for process in waited]

    def output(self, number: int = 0) -> str:
        return self._outputs[number].read_text(errors="replace")

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.wait()


def to_end(group: Group, status: int = 0) -> str:
    """Waits for all processes to end, each with this exit status, and returns the output of the first."""
    with group:
        statuses = group.finish()
        assert set(statuses) == {status}, "\n".join(map(group.output, range(len(statuses))))
        return group.output()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
