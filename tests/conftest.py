"""Settings and fixtures of the whole suite.  pytest loads this file before any test imports jax."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

import pytest

from deepseek_jax import host_memory
from deepseek_jax.cli.runtime import threads_of
from deepseek_jax.errors import LOG
from tests import call, processes, xla_flags
from tests.paths import ROOT

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the tests' tolerances assume float32 on a CPU
os.environ.setdefault("XLA_FLAGS", xla_flags.FAST_COMPILE)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that a shell starts with & ignores Ctrl-C


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """Returns run_python(*arguments, devices=1), which runs `python ARGUMENTS` in a new process and empty directory.

    `flags` go into XLA_FLAGS, in addition to the number of host devices; with "" XLA compiles as it does for users.
    """

    def run(*arguments: str, devices: int = 1, flags: str = xla_flags.FAST_COMPILE) -> subprocess.CompletedProcess:
        threads = {"PJRT_NPROC": threads_of(devices)} if devices > 1 else {}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path_factory.mktemp("python"),
            env=processes.environment(devices, flags) | threads,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def on_devices(run_python):
    """Returns on_devices(count, function, *arguments): what the function returns in a process with `count` devices.

    It has to stand in a module beside the tests, as the process imports it.  What it is given and returns is JSON.
    """

    def run(count: int, function: Callable, *arguments, flags: str = xla_flags.FAST_COMPILE):
        result = run_python(*call.words(function, *arguments), devices=count, flags=flags)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


@pytest.fixture(autouse=True)
def propagate_logs(monkeypatch):
    """Lets log records propagate again, which a verb run by an earlier test turns off for the command line."""
    monkeypatch.setattr(LOG, "propagate", True)


@pytest.fixture(scope="module", autouse=True)
def free_compiled_programs():
    """Frees compiled programs after each module: a worker that keeps those of the whole suite dies with SIGSEGV."""
    yield
    host_memory.free_programs()


@pytest.fixture
def run_command(capsys):
    """Returns run_command(*argv), which runs the command line in this process: (exit status, stdout, stderr).

    After the test, the environment is as before: some verbs change it for the process that they expect to have alone.
    """
    from deepseek_jax.__main__ import main

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            status = main(list(argv))
        except SystemExit as stopped:  # argparse, after --help
            status = stopped.code
        return status, *capsys.readouterr()

    with mock.patch.dict(os.environ):
        yield run
