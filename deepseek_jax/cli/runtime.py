"""What a verb sets up before jax computes anything."""

import os
from pathlib import Path

from deepseek_jax import host_memory


def prepare(cache: bool = True):
    """Call before jax is imported: keeps compiled programs between runs, memory between steps, and XLA's log quiet.

    What the environment already says stays as it is.
    """
    if cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "deepseek_jax" / "xla"))
    else:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    host_memory.keep()
