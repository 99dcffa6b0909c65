"""The library of kernels for GPUs: tokamax, where one is at hand and it is installed (extra `gpu`, Python 3.12)."""

import functools
import importlib
import importlib.util
import logging

import jax
import jax.numpy as jnp


def at_hand(dtype) -> bool:
    """Whether a GPU's kernels are to be asked.  What they can do depends on the GPU, so there must be one; they are for
    16 bits."""
    return jax.default_backend() == "gpu" and dtype in (jnp.bfloat16, jnp.float16)


def library(dtype):
    """The module, or None where XLA must do: its kernels ask the GPU while they are traced."""
    return _tokamax() if at_hand(dtype) else None


@functools.cache
def _tokamax():
    if importlib.util.find_spec("tokamax") is None:
        return None
    # Each kernel would say that nobody tuned it for just these shapes; it then goes by its own rules, which are good.
    logging.getLogger("absl").addFilter(lambda record: not record.getMessage().startswith("Autotuning cache miss"))
    return importlib.import_module("tokamax")
