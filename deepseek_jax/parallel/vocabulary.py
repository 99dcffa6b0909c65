"""The vocabulary spread over devices: each scores its own part of it, for its own tokens (Megatron-LM, 1909.08053).

`on_vocabulary_shards` runs a function on every device; inside of it the others stand for what needs the whole
vocabulary or all tokens.  Where nothing is spread they do nothing.

B batch  S sequence  D model  V vocabulary, or a device's part of it
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.parallel.local import BY_TOKEN, on_each_device
from deepseek_jax.parallel.rules import RULES, STORED, TOKENS, divided, gathered, open_spec, shard_map, total

HEAD = (STORED, "vocab")
SUM = ()  # of a number that is the same on every device


def on_vocabulary_shards(f: Callable, results: tuple[tuple, ...]) -> Callable:
    """f(hidden_BSD, head_DV, targets_BS, weights_BS) on every device: of its tokens, and of its columns of the head.

    `results` are the logical axes of what `f` gives.
    """

    def of_device(hidden_BSD, head_DV, targets_BS, weights_BS):
        return f(hidden_BSD, gathered(head_DV, HEAD), targets_BS, weights_BS)

    return on_each_device(of_device, (BY_TOKEN, HEAD, BY_TOKEN, BY_TOKEN), results)


def highest(x: Array) -> Array:
    """The largest over all parts of the vocabulary."""
    names = divided(RULES["vocab"])
    return jax.lax.pmax(x, names) if names else x


def over_vocabulary(x: Array) -> Array:
    """The sum over all parts of the vocabulary."""
    return total(x, RULES["vocab"])


def over_tokens(x: Array) -> Array:
    """The sum over all devices' tokens."""
    return total(x, TOKENS)


def as_head(x_DV: Float[Array, "D V"]) -> Float[Array, "D V"]:
    """The sum over all devices' tokens, each left with the rows that it keeps of the head."""
    if names := divided(RULES[STORED]):
        x_DV = jax.lax.psum_scatter(x_DV, names, scatter_dimension=0, tiled=True)
    return total(x_DV, tuple(axis for axis in TOKENS if axis != RULES[STORED]))


def among(targets: Int[Array, "..."], size: int) -> tuple[Int[Array, "..."], Array | None]:
    """(targets as numbers in this device's part of the vocabulary, of `size`; whether they lie in it, None for all)."""
    names = divided(RULES["vocab"])
    if not names:
        return targets, None
    targets = targets - jax.lax.axis_index(names) * size
    return targets, (targets >= 0) & (targets < size)


def lookup(
    table_VD: Float[Array, "V D"], tokens_BS: Int[Array, "B S"], beside: Float[Array, "B S ..."] | None = None
) -> tuple[Float[Array, "B S D"], Float[Array, "B S ..."] | None]:
    """(the tokens' rows of the table, which may be spread by both of its dimensions; `beside` as it is).

    What is given beside has its gradient no sooner than the table (parallel/order.py): of several lookups in one table
    the later ones are given what they will be joined with.

    Written for each device: left to itself XLA spreads the gradient by the model dimension, and copies the activations
    of the whole batch for it.
    """

    def of_device(table_VD, tokens_BS, beside):
        table_VD = gathered(table_VD, ("vocab", STORED))
        here_BS, inside_BS = among(tokens_BS, table_VD.shape[0])
        if inside_BS is None:
            return jnp.take(table_VD, here_BS, axis=0), beside
        rows_BSD = jnp.take(table_VD, here_BS, axis=0, mode="clip")
        return over_vocabulary(jnp.where(inside_BS[..., None], rows_BSD, 0)), beside

    tokens, table = open_spec(BY_TOKEN), open_spec(("vocab", STORED))
    return shard_map(of_device, (table, tokens, tokens), (tokens, tokens))(table_VD, tokens_BS, beside)
