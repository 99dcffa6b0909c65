"""Access to tokamax, a library of GPU kernels: used on GPUs if it is installed (extra `gpu`, Python 3.12)."""

import functools
import importlib
import importlib.util
import logging

import jax
import jax.numpy as jnp


def kernels_available(dtype) -> bool:
    """Whether to use GPU kernels: there must be a GPU, which determines what they support, and a 16-bit `dtype`."""
    return jax.default_backend() == "gpu" and dtype in (jnp.bfloat16, jnp.float16)


def library(dtype):
    """The tokamax module, or None to leave the work to XLA.  Its kernels query the GPU already at trace time."""
    return _tokamax() if kernels_available(dtype) else None


@functools.cache
def _tokamax():
    if importlib.util.find_spec("tokamax") is None:
        return None
    # Silences a warning per kernel that no tuned configuration exists for these shapes; tokamax's heuristics do well.
    logging.getLogger("absl").addFilter(lambda record: not record.getMessage().startswith("Autotuning cache miss"))
    return importlib.import_module("tokamax")
