"""Sharding the vocabulary over devices: each scores its own part of it (Megatron-LM, arXiv:1909.08053).

`on_vocabulary_shards` runs a function on every device; inside it, the other functions compute what needs the whole
vocabulary or all tokens.  They do nothing if nothing is sharded.

B batch  S sequence  D model  V vocabulary, or a device's part of it
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.parallel.local import BY_TOKEN, on_each_device
from deepseek_jax.parallel.rules import RULES, STORED, TOKENS, gathered, mapped_axes, shard_map, total, unmapped_spec

HEAD = (STORED, "vocab")
SUM = ()  # logical axes of a scalar result that is the same on every device


def on_vocabulary_shards(f: Callable, results: tuple[tuple, ...]) -> Callable:
    """Maps f(hidden_BSD, head_DV, targets_BS, weights_BS) over devices: each has its tokens and its part of the head.

    `results` are the logical axes of f's results.
    """

    def of_device(hidden_BSD, head_DV, targets_BS, weights_BS):
        return f(hidden_BSD, gathered(head_DV, HEAD), targets_BS, weights_BS)

    return on_each_device(of_device, (BY_TOKEN, HEAD, BY_TOKEN, BY_TOKEN), results)


def highest(x: Array) -> Array:
    """The maximum over all parts of the vocabulary."""
    names = mapped_axes(RULES["vocab"])
    return jax.lax.pmax(x, names) if names else x


def over_vocabulary(x: Array) -> Array:
    """The sum over all parts of the vocabulary."""
    return total(x, RULES["vocab"])


def over_tokens(x: Array) -> Array:
    """The sum over all devices' tokens."""
    return total(x, TOKENS)


def reduce_head_gradient(x_DV: Float[Array, "D V"]) -> Float[Array, "D V"]:
    """Reduces a head-shaped array over all devices' tokens; each device gets the rows of the head that it stores."""
    if names := mapped_axes(RULES[STORED]):
        x_DV = jax.lax.psum_scatter(x_DV, names, scatter_dimension=0, tiled=True)
    return total(x_DV, tuple(axis for axis in TOKENS if axis not in RULES[STORED]))


def local_targets(targets: Int[Array, "..."], size: int) -> tuple[Int[Array, "..."], Array | None]:
    """Returns (targets as indices into this device's `size` entries of the vocabulary, whether they are within these).

    The second is None if the vocabulary is not sharded.
    """
    names = mapped_axes(RULES["vocab"])
    if not names:
        return targets, None
    targets = targets - jax.lax.axis_index(names) * size
    return targets, (targets >= 0) & (targets < size)


def lookup(
    table_VD: Float[Array, "V D"],
    tokens_BS: Int[Array, "B S"],
    dtype: str,
    beside: Float[Array, "B S ..."] | None = None,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S ..."] | None]:
    """Returns (the tokens' rows of the table in `dtype`, `beside` unchanged).

    Devices that each store some columns of the table send each other these columns of the rows, in `dtype`: gathering
    the table would send all of its rows, however few the tokens, and as many numbers of its gradient.  If the
    vocabulary is sharded, too, rows are sums over its parts, of which all but one are zero.

    The gradient of `beside` becomes available no sooner than the table's (parallel/order.py).  So of several lookups in
    one table, pass to each later one what its result will be combined with.

    Mapped over devices explicitly: left to itself, XLA shards the gradient by the model dimension and gathers the whole
    batch's activations for it.
    """

    def of_device(table_VD, tokens_BS, beside):
        stored = mapped_axes(RULES[STORED])
        if stored:  # n devices
            tokens_nBS = jax.lax.all_gather(tokens_BS, stored)
            columns_nBSd = rows(table_VD, tokens_nBS)
            rows_1BSD = jax.lax.all_to_all(columns_nBSd, stored, split_axis=0, concat_axis=3, tiled=True)
            return rows_1BSD[0], beside
        return rows(table_VD, tokens_BS), beside

    def rows(table_Vd, tokens):
        here, inside = local_targets(tokens, table_Vd.shape[0])
        if inside is None:
            return jnp.take(table_Vd, here, axis=0).astype(dtype)
        found = jnp.take(table_Vd, here, axis=0, mode="clip")
        return over_vocabulary(jnp.where(inside[..., None], found, 0).astype(dtype))

    tokens, table = unmapped_spec(BY_TOKEN), unmapped_spec(("vocab", STORED))
    return shard_map(of_device, (table, tokens, tokens), (tokens, tokens))(table_VD, tokens_BS, beside)
