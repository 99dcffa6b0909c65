"""A program for two devices, with collectives in loops and conditionals beside each other and after each other."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from deepseek_jax.parallel.order import after
from tests.parallel.order import unordered


def swap(v):
    return jax.lax.all_to_all(v, "x", 0, 0, tiled=True)


def loop(v):
    return jax.lax.scan(lambda sum, _: (sum + swap(sum), None), v, None, length=9)[0]


def choose(v):
    return jax.lax.cond(v[0, 0] > 0, lambda v: jnp.sin(swap(v)), lambda v: jnp.cos(swap(v)), v)


def ordered(first):
    def f(x, y):
        found = first(x)
        return found, loop(after(y, found))

    return f


def found() -> dict[str, list[str]]:
    """What `unordered` finds in each."""
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,))

    def of(f):
        f = jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x"), check_vma=False)
        return unordered(jax.jit(f).lower(*jnp.ones((2, 8, 4))).compile().as_text())

    return {
        "plain": of(lambda x, y: (swap(x), swap(2 * y))),
        "two loops": of(lambda x, y: (loop(x), loop(jnp.sin(y)))),
        "loop and conditional": of(lambda x, y: (loop(x), choose(y))),
        "other kind": of(lambda x, y: (loop(x), jax.lax.psum(y, "x"))),
        "loop, after": of(ordered(loop)),
        "conditional, after": of(ordered(choose)),
    }
