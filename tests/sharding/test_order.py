"""`unordered` finds collectives that may run beside a loop or conditional with such; `after` puts them in order."""

import json

MIXED = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from deepseek_jax.parallel.order import after
from tests.sharding.order import unordered

mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,))
swap = lambda v: jax.lax.all_to_all(v, "x", 0, 0, tiled=True)
loop = lambda v: jax.lax.scan(lambda sum, _: (sum + swap(sum), None), v, None, length=9)[0]
choose = lambda v: jax.lax.cond(v[0, 0] > 0, lambda v: jnp.sin(swap(v)), lambda v: jnp.cos(swap(v)), v)

def compiled(f):
    f = jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x"), check_vma=False)
    return jax.jit(f).lower(*jnp.ones((2, 8, 4))).compile().as_text()

def ordered(first):
    def f(x, y):
        found = first(x)
        return found, loop(after(y, found))
    return f

print(json.dumps({
    "plain": unordered(compiled(lambda x, y: (swap(x), swap(2 * y)))),
    "two loops": unordered(compiled(lambda x, y: (loop(x), loop(jnp.sin(y))))),
    "loop and conditional": unordered(compiled(lambda x, y: (loop(x), choose(y)))),
    "other kind": unordered(compiled(lambda x, y: (loop(x), jax.lax.psum(y, "x")))),
    "loop, after": unordered(compiled(ordered(loop))),
    "conditional, after": unordered(compiled(ordered(choose))),
}))
"""


def test_unordered_collectives_are_found_and_after_puts_them_in_order(run_python):
    result = run_python("-c", MIXED, devices=2)
    assert result.returncode == 0, result.stderr
    found = {name: len(pairs) for name, pairs in json.loads(result.stdout).items()}
    assert {name for name, count in found.items() if count} == {"two loops", "loop and conditional"}, found
