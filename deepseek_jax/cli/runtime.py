"""What a verb sets up before jax computes anything."""

import logging
import os
import re
import sys
from pathlib import Path

from deepseek_jax import full_disk, host_memory
from deepseek_jax.errors import LOG


def prepare(cache: bool = True):
    """Call before jax is imported: keeps compiled programs between runs, memory between steps, and libraries quiet.

    What the environment already says stays as it is, but for the compilation cache where `cache` is false.
    """
    if cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "deepseek_jax" / "xla"))
    else:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    if host_devices := re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")):
        os.environ.setdefault("PJRT_NPROC", threads_of(int(host_devices[1])))
    host_memory.keep()
    full_disk.say_once()
    if not LOG.handlers:
        LOG.addHandler(_Said())
    LOG.propagate = False  # libraries give the root logger handlers, which would say it again


def warn(sentence: str):
    """A warning: the work went on, but the user should know."""
    print(f"deepseek-jax: {sentence}", file=sys.stderr)


class _Said(logging.Handler):
    """Warnings of the rooms below look as what else the command line says."""

    def emit(self, record: logging.LogRecord):
        warn(record.getMessage())


def threads_of(host_devices: int) -> str:
    """Threads of XLA's pool, for PJRT_NPROC.

    Devices wait for each other inside of the pool, in several collectives at once.  XLA makes a thread for each device;
    when all of them wait, nobody can arrive, and after 40 s XLA ends the process.
    """
    return str(4 * host_devices)
