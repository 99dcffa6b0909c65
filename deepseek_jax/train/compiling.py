"""How hard XLA works on a program."""

from jax.sharding import Mesh


def compiler_options(mesh: Mesh) -> dict | None:
    """For `jax.jit`.  On CPUs LLVM's level 3 takes up to four times as long as level 2 and gives the same numbers."""
    platform = mesh.devices.flat[0].platform
    return {"xla_backend_optimization_level": 2} if platform == "cpu" else None
