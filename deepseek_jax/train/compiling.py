"""How programs are traced and how hard XLA works on them."""

import functools
import os
from collections.abc import Callable

import jax
from jax.sharding import Mesh

LEVEL = "xla_backend_optimization_level"


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
    platform = mesh.devices.flat[0].platform
    named = LEVEL in os.environ.get("XLA_FLAGS", "")
    return {LEVEL: 2} if platform == "cpu" and not named else None
