"""Programs for eight devices whose compiled form `deepseek-jax compile` would report."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepseek_jax.pods import hlo
from deepseek_jax.pods.collectives import collectives
from deepseek_jax.pods.remarks import captured_remarks
from deepseek_jax.pods.roofline import bytes_written


def communication() -> dict:
    """What is found of a program with every kind of collective, most of them in a loop of five turns."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), (AxisType.Auto,) * 2)

    def body(x):  # [16, 64] float32: 4 KiB
        def turn(x, _):
            whole = jax.lax.all_gather(jnp.sin(x), "b", tiled=True)  # 4 KiB to 3 others, 5 times
            part = jax.lax.psum_scatter(whole * 2, "b", tiled=True)  # 3/4 of 16 KiB, 5 times
            return jax.lax.all_to_all(part, "a", 1, 1, tiled=True), None  # 1/2 of 4 KiB, 5 times

        x, _ = jax.lax.scan(turn, x, None, length=5)
        x = jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)])  # 4 KiB
        return jax.lax.psum(x, ("a", "b"))  # 2 x 7/8 of 4 KiB

    f = jax.shard_map(body, mesh=mesh, in_specs=PartitionSpec(("a", "b")), out_specs=PartitionSpec(), check_vma=False)
    program = hlo.parse(jax.jit(f).lower(jnp.zeros((128, 64))).compile().as_text())
    found = collectives(program, 8)
    return {
        "loops": program.unknown_loops,
        "written": bytes_written(program),
        "found": {each.kind: (each.times, len(each.group), each.sent) for each in found},
        "groups": {each.kind: each.group for each in found},
    }


MOVED = """
def moved(x, w):
    with jax.named_scope("layers"):
        y = jax.lax.with_sharding_constraint(jnp.sin(x @ w).T, rows)
        y = jax.lax.with_sharding_constraint(jnp.cos(y), columns)
        return 2 * y.reshape(4, 4, 4, 4)
"""


def remarks() -> list[tuple[str, str]]:
    """The (scopes, line) of each remark on a program that rematerialises, as if it stood in models/moved.py."""
    jax.config.update("jax_enable_compilation_cache", False)  # programs read from it cause no remarks
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), (AxisType.Auto,) * 3)
    rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((("a", "b"),), (None, "c")))
    names = {"jax": jax, "jnp": jnp, "rows": rows, "columns": columns}
    exec(compile(MOVED, str(hlo.PACKAGE / "models" / "moved.py"), "exec"), names)
    with captured_remarks() as said:
        moved = jax.jit(names["moved"], in_shardings=(rows, NamedSharding(mesh, PartitionSpec())))
        compiled = moved.lower(jnp.ones((16, 16)), jnp.ones((16, 16))).compile()
    frames = hlo.parse(compiled.as_text()).frames
    return [(hlo.scopes(each), hlo.place(each, frames)) for each in said]
