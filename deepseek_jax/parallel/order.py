"""Forces the order of collectives on host (CPU) devices, which XLA does not guarantee by itself.

XLA's CPU runtime runs stand-alone collectives in the same order on all devices.  Those inside a loop or conditional may
overlap with those outside, and all within one `jax.shard_map` share a channel id: a device can then join one rendezvous
twice, and XLA aborts, or returns another array's data (seen with jax 0.10.2 and 0.12.0.1).  On host devices only, we
therefore add artificial data dependencies.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from deepseek_jax.parallel.current import on_host_devices


def after(x: jax.Array, *earlier: jax.Array) -> jax.Array:
    """x unchanged, but on host devices dependent on all of `earlier`, whose shapes must broadcast to that of x."""
    if on_host_devices():
        for each in earlier:
            x = jnp.where(each < -jnp.inf, jnp.zeros_like(x), x)  # never true, but XLA does not know that
    return x


def available_together(tree, specs, on_devices: Callable):
    """The arrays of `tree`, sharded by `specs`, unchanged but made available only once all are; gradients likewise.

    Gathering weights then waits for activations, and gradients of activations for those of weights.  `on_devices` is
    `jax.shard_map` with its other options set.
    """
    leaves, structure = jax.tree.flatten(tree)
    specs = jax.tree.leaves(jax.tree.broadcast(specs, tree))
    floats = [place for place, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size]
    if len(floats) < 2:
        return tree
    specs = tuple(specs[place] for place in floats)
    each = on_devices(_each_needs_all, in_specs=specs, out_specs=specs)
    for place, leaf in zip(floats, _with_gradients(each, *(leaves[place] for place in floats))):
        leaves[place] = leaf
    return jax.tree.unflatten(structure, leaves)


def _each_needs_all(*arrays):
    never = functools.reduce(jnp.logical_or, (x[(0,) * x.ndim] < -jnp.inf for x in arrays))
    return tuple(jnp.where(never, jnp.zeros_like(x), x) for x in arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_gradients(each, *arrays):
    return each(*arrays)


_with_gradients.defvjp(lambda each, *arrays: (each(*arrays), None), lambda each, _, darrays: each(*darrays))
