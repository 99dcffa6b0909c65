"""What holds for the whole suite.  This file is read before any test imports jax."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_jax import host_memory
from deepseek_jax.cli.runtime import threads_of
from deepseek_jax.errors import LOG
from tests import quickly

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tolerances are for float32 on a CPU
os.environ.setdefault("XLA_FLAGS", quickly.FLAGS)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Runs `python ARGUMENTS` in another process, in an empty directory: python(*arguments, devices=1).

    `flags` are XLA's; "" compiles as users do.
    """

    def run(*arguments: str, devices: int = 1, flags: str = quickly.FLAGS) -> subprocess.CompletedProcess:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        flags = f"{flags} --xla_force_host_platform_device_count={devices}"
        threads = {"PJRT_NPROC": threads_of(devices)} if devices > 1 else {}
        environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags} | threads
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=tmp_path_factory.mktemp("python"), env=environment, capture_output=True, text=True
        )

    return run


@pytest.fixture(autouse=True)
def logs(monkeypatch):
    """Each test begins with the logger of a program, which verbs of an earlier one took for the command line."""
    monkeypatch.setattr(LOG, "propagate", True)


@pytest.fixture(scope="module", autouse=True)
def room_for_code():
    """A worker that keeps the programs of the whole suite ends with SIGSEGV."""
    yield
    host_memory.free_programs()


@pytest.fixture
def deepseek_jax(capsys):
    """Runs the command line in this process: (exit status, standard output, standard error)."""
    from deepseek_jax.__main__ import main

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            status = main(list(argv))
        except SystemExit as stopped:  # argparse, after --help
            status = stopped.code
        return status, *capsys.readouterr()

    return run
