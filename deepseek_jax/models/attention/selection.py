"""Picking each query's best-scored keys, one block of queries at a time.

B batch  S queries  T keys  k keys picked
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.models.attention.indexer import better_half, scores_of_all
from deepseek_jax.models.attention.keys import Keys, Queries, sees, visible

MOST_SPANS = 8  # spans of queries, each with its own number of keys; more save work but cost compile time


def visible_picked(queries: Queries, keys: Keys, picked_BSk: Int[Array, "B S k"]) -> Bool[Array, "B S k"]:
    """Which of the picked keys a query may see."""
    return sees(queries, gather(keys.segment_ids, picked_BSk), gather(keys.positions, picked_BSk))


def pick(scores_BST: Float[Array, "B S T"], visible_BST: Bool[Array, "B S T"], count: int) -> Int[Array, "B S k"]:
    """Indices of the `count` best visible keys, best first; if fewer are visible, arbitrary others fill the rest."""
    return jax.lax.top_k(_of_visible(scores_BST, visible_BST), min(count, scores_BST.shape[-1]))[1]


def masks_of_best(
    scores_BST: Float[Array, "B S T"], visible_BST: Bool[Array, "B S T"], count: int
) -> tuple[Bool[Array, "B S T"], Bool[Array, "B S T"]]:
    """Masks over all keys: of those that `pick` returns, and of the better half of these (indexer.better_half).

    Every key is compared with the last of them: writing true at their indices is a scatter, and TPUs scatter numbers
    one by one.
    """
    scores_BST = _of_visible(scores_BST, visible_BST)
    # Without barriers XLA sorts all scores, as it sees that only two of the results are used.  With one barrier around
    # both arrays, XLA's CPU compiler can abort, at a top_k whose whole tuple is used.
    ranked_BSk = jax.tree.map(jax.lax.optimization_barrier, jax.lax.top_k(scores_BST, min(count, scores_BST.shape[-1])))

    def down_to(rank):
        least_BS1, index_BS1 = (each_BSk[..., :rank][..., -1:] for each_BSk in ranked_BSk)
        before_BST = jnp.arange(scores_BST.shape[-1]) <= index_BS1  # of equal scores, top_k returns the first
        return (scores_BST > least_BS1) | ((scores_BST == least_BS1) & before_BST)

    picks = ranked_BSk[1].shape[-1]
    return down_to(picks), down_to(better_half(picks))


def _of_visible(scores_BST, visible_BST):
    return jnp.where(visible_BST, jax.lax.stop_gradient(scores_BST), -jnp.inf)


def pick_by_blocks(queries: Queries, keys: Keys, count: int, block: int) -> Int[Array, "B S k"]:
    """`pick` that materialises the scores of only `block` queries at a time, instead of all S x T."""

    def pick_of(queries, keys):
        return pick(scores_of_all(queries.index, keys.index), visible(queries, keys), count)

    return by_blocks(pick_of, block, queries, keys)


def pick_causally(queries: Queries, keys: Keys, count: int, block: int) -> Int[Array, "B S k"]:
    """`pick_by_blocks` for queries in order: each span of queries is scored only against keys up to the span's end.

    Query t has key t; with context parallelism (S < T) its key is at most t + T - S, which is exact on the last device.
    """
    length, total = queries.positions.shape[1], keys.positions.shape[1]
    span = max(count, block, -(-length // MOST_SPANS))
    ends = [*range(span, length, span), length]
    spans = [
        pick_by_blocks(_span(queries, start, end), _span(keys, 0, total - length + end), count, block)
        for start, end in zip([0, *ends], ends)
    ]
    return jnp.concatenate(spans, axis=1)


def _span(tree, start, end):
    return jax.tree.map(lambda leaf: leaf[:, start:end], tree)


def mask_of(picked_BSk: Int[Array, "B S k"], total: int) -> Bool[Array, "B S T"]:
    """A mask over `total` keys that is true at each query's picked ones."""
    B, S, _ = picked_BSk.shape
    rows_B11, queries_S1 = jnp.arange(B)[:, None, None], jnp.arange(S)[:, None]
    return jnp.zeros((B, S, total), bool).at[rows_B11, queries_S1, picked_BSk].set(True)


def gather(of_BT: Array, picked_BSk: Int[Array, "B S k"]) -> Array:
    """Gathers the picked rows: [B S k ...] from [B T ...].  Indices must be within bounds, which is not checked."""
    rows_B11 = jnp.arange(of_BT.shape[0])[:, None, None]
    return of_BT.at[rows_B11, picked_BSk].get(mode="promise_in_bounds")


def by_blocks(f: Callable, block: int, tree, shared):
    """Applies `f(tree, shared)` to a tree of arrays [B S ...], `block` of S at a time; returns such a tree, too.

    The backward pass recomputes each block, so it too holds f's intermediates for only one block at a time.  The last
    block is filled up with zeros, i.e. with tokens of segment 0 (padding).  `shared` is a tree of arrays that every
    block sees in full; their gradients are accumulated in float32, as in bfloat16 a sum over a thousand blocks would
    lose the contributions of the last ones.
    """
    length = jax.tree.leaves(tree)[0].shape[1]
    if length <= block:
        return f(tree, shared)
    count = -(-length // block)

    def cut(leaf):
        filled = jnp.pad(leaf, [(0, 0), (0, count * block - length), *[(0, 0)] * (leaf.ndim - 2)])
        return jnp.moveaxis(filled.reshape(leaf.shape[0], count, block, *leaf.shape[2:]), 1, 0)

    def join(blocks):
        whole = jnp.moveaxis(blocks, 0, 1)
        return whole.reshape(whole.shape[0], count * block, *whole.shape[3:])[:, :length]

    wide = jax.tree.map(_at_least_float32, shared)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # else XLA could not hoist the casts out of the loop
    def of_block(tree):
        return f(tree, jax.tree.map(lambda leaf, as_it_was: leaf.astype(as_it_was.dtype), wide, shared))

    return jax.tree.map(join, jax.lax.map(of_block, jax.tree.map(cut, tree)))


def _at_least_float32(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x
