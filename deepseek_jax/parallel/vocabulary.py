"""The vocabulary spread over devices: each scores its own part of it, for its own tokens (Megatron-LM, 1909.08053).

`spread` runs a function on every device; inside of it the others stand for what needs the whole vocabulary or all
tokens.  Without a mesh, or outside of `spread`, each does nothing.

B batch  S sequence  D model  V vocabulary, or a device's part of it
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int

from deepseek_jax.parallel.rules import RULES, STORED, TOKENS, current_mesh, partition_spec

HEAD = (STORED, "vocab")
TOKEN = ("batch", "sequence")
SUM = ()  # of a number that is the same on every device


def spread(f: Callable, results: tuple[tuple, ...]) -> Callable:
    """f(hidden_BSD, head_DV, targets_BS, weights_BS) for all devices, where the head comes whole but for its vocabulary.

    `results`: the logical axes of what f gives.
    """
    mesh = current_mesh()
    if mesh is None:
        return f

    def of_device(hidden_BSD, head_DV, targets_BS, weights_BS):
        return f(hidden_BSD, jax.lax.all_gather(head_DV, RULES[STORED], tiled=True), targets_BS, weights_BS)

    hidden, head, token = (partition_spec(axes) for axes in (TOKEN, HEAD, TOKEN))
    return jax.shard_map(
        of_device,
        in_specs=(hidden, head, token, token),
        out_specs=tuple(partition_spec(axes) for axes in results),
        axis_names=frozenset(mesh.axis_names) - set(mesh.manual_axes),
        check_vma=False,  # not differentiated: the gradients are made by hand
    )


def _divided() -> bool:
    mesh = current_mesh()
    return mesh is not None and RULES["vocab"] in mesh.manual_axes


def highest(x: Array) -> Array:
    """The largest over all parts of the vocabulary."""
    return jax.lax.pmax(x, RULES["vocab"]) if _divided() else x


def over_vocabulary(x: Array) -> Array:
    """The sum over all parts of the vocabulary."""
    return jax.lax.psum(x, RULES["vocab"]) if _divided() else x


def over_tokens(x: Array) -> Array:
    """The sum over all devices' tokens."""
    return jax.lax.psum(x, TOKENS) if _divided() else x


def as_head(x_DV: Float[Array, "D V"]) -> Float[Array, "D V"]:
    """The sum over all devices' tokens, spread as the head is."""
    if not _divided():
        return x_DV
    x_DV = jax.lax.psum_scatter(x_DV, RULES[STORED], scatter_dimension=0, tiled=True)
    return jax.lax.psum(x_DV, tuple(axis for axis in TOKENS if axis != RULES[STORED]))


def among(targets: Int[Array, "..."], size: int) -> tuple[Int[Array, "..."], Array | None]:
    """(the targets as numbers in this device's part of the vocabulary, of `size`, whether they lie in it; None where that is all)."""
    if not _divided():
        return targets, None
    targets = targets - jax.lax.axis_index(RULES["vocab"]) * size
    return targets, (targets >= 0) & (targets < size)
