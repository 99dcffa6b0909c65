"""What is sent first, where XLA does not see to it itself.

XLA's CPU runtime begins what a program sends in one order on all devices, and one thing that is sent by itself ends
before the next begins.  A loop or a conditional only has to begin, so what it sends may meet what is sent beside it.
As all that is sent inside of `jax.shard_map` has the same number, a device then stands twice at one meeting: XLA aborts
the process, or brings numbers of another array (seen with jax 0.10.2 and 0.12.0.1).
"""

import jax
import jax.numpy as jnp

from deepseek_jax.parallel.rules import platform


def after(x: jax.Array, *earlier: jax.Array) -> jax.Array:
    """x, on host devices as one that needs all of `earlier`, of shapes that broadcast to that of x.

    For two things that do not need each other, of which one sends inside of a loop.
    """
    if platform() == "cpu":
        for each in earlier:
            x = jnp.where(each < -jnp.inf, jnp.zeros_like(x), x)  # never, but that is more than XLA knows
    return x
