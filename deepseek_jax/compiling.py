"""How programs are traced and how hard XLA works on them."""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

LEVEL = "xla_backend_optimization_level"
# On CPUs XLA orders a program for its threads: what could be computed at once is begun at once, and lies in memory.
LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def under(mesh: Mesh, function: Callable) -> Callable:
    """`function` with `mesh` as the current one of its trace, which is what models ask for (parallel/rules.py).

    The function itself where the mesh has one device: its program is then the same as without a mesh.
    """
    if mesh.size == 1:
        return function

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def compiler_options(mesh: Mesh) -> dict | None:
    """For `jax.jit`.  On CPUs LLVM's level 3 takes up to four times as long as level 2 and gives the same numbers.

    A level that XLA_FLAGS names stays.
    """
    return _options(mesh.devices.flat[0].platform)


def _options(platform: str) -> dict | None:
    named = LEVEL in os.environ.get("XLA_FLAGS", "")
    return {LEVEL: 2} if platform == "cpu" and not named else None


def jit(static_argnums: int | tuple[int, ...], least_memory: bool = False) -> Callable:
    """Decorates as `jax.jit`, with the options of the platform that jax computes on when the function is called.

    `least_memory`: one thing after the other on CPUs, for programs whose parts are many, large and independent.

    Asking for the platform when a file is imported would start jax before XLA_FLAGS and jax.distributed are set.
    Inside another jit no options are given: XLA takes those of the outermost.
    """

    def decorate(function):
        @functools.cache
        def on(platform):
            options = _options(platform)
            if least_memory and platform == "cpu":
                options = LEAST_MEMORY | (options or {})
            return jax.jit(function, static_argnums=static_argnums, compiler_options=options)

        @functools.wraps(function)
        def call(*args):
            return on("" if _inside_another(args) else jax.default_backend())(*args)

        return call

    return decorate


def _inside_another(args) -> bool:
    """Under jax.jit even a constant is a tracer; under jax.grad only what is differentiated is."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in (*jax.tree.leaves(args), jnp.zeros(())))
