"""How programs are traced, and with what options XLA compiles them."""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

LEVEL = "xla_backend_optimization_level"
# By default XLA schedules CPU programs for many threads: whatever can start does, and all the results take memory.
LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def under(mesh: Mesh, function: Callable) -> Callable:
    """`function`, traced with `mesh` as the current mesh, which models look up (parallel/current.py)."""

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def compiler_options(mesh: Mesh) -> dict | None:
    """Options for `jax.jit`.  On CPUs, LLVM's level 3 compiles up to four times as long as level 2, for equal results.

    A level set in XLA_FLAGS is left alone.
    """
    return _options(mesh.devices.flat[0].platform)


def _options(platform: str) -> dict | None:
    named = LEVEL in os.environ.get("XLA_FLAGS", "")
    return {LEVEL: 2} if platform == "cpu" and not named else None


def jit(static_argnums: int | tuple[int, ...], least_memory: bool = False) -> Callable:
    """A decorator like `jax.jit`, with compiler options for the platform in use when the function is called.

    If all arrays are on one device, it is traced for that one, so that only its platform's kernels are.
    `least_memory`: on CPUs, compute one part after another, for programs with many large independent parts.

    Looking up the platform at import would start jax before XLA_FLAGS and jax.distributed are set.  Inside another jit
    no options are passed: XLA uses those of the outermost.
    """

    def decorate(function):
        @functools.cache
        def on(platform, device):
            options = _options(platform)
            if least_memory and platform == "cpu":
                options = LEAST_MEMORY | (options or {})
            traced = under(Mesh(np.array([device]), ("alone",)), function) if device else function
            return jax.jit(traced, static_argnums=static_argnums, compiler_options=options)

        @functools.wraps(function)
        def call(*args):
            leaves = jax.tree.leaves(args)
            if _inside_another(leaves):
                return on("", None)(*args)
            return on(jax.default_backend(), _only_device(leaves))(*args)

        return call

    return decorate


def _only_device(leaves) -> jax.Device | None:
    """The device that holds all of the arrays; None if there are several."""
    held = set().union(*(leaf.devices() for leaf in leaves if isinstance(leaf, jax.Array)))
    return held.pop() if len(held) == 1 else None


def _inside_another(leaves) -> bool:
    """Whether a transform traces the call: jax.jit makes even a constant a tracer, jax.grad only its arguments."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in (*leaves, jnp.zeros(())))
