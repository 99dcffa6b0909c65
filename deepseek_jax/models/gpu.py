"""The library of kernels for GPUs: tokamax, where one is at hand and it is installed (extra `gpu`, Python 3.12)."""

import functools
import importlib
import importlib.util
import logging

import jax
import jax.numpy as jnp


def library(dtype):
    """The module, or None where XLA must do.

    Its kernels ask the GPU what it can do while they are traced, so there must be one.  They are for 16 bits.
    """
    return _tokamax() if dtype in (jnp.bfloat16, jnp.float16) and jax.default_backend() == "gpu" else None


@functools.cache
def _tokamax():
    if importlib.util.find_spec("tokamax") is None:
        return None
    # Each kernel would say that nobody tuned it for just these shapes; it then goes by its own rules, which are good.
    logging.getLogger("absl").addFilter(lambda record: not record.getMessage().startswith("Autotuning cache miss"))
    return importlib.import_module("tokamax")
