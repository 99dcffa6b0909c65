"""Softmax attention over a sliding window, compressed entries and a sink, some blocks of queries (a turn) at a time.

Only one turn's scores are in memory at a time: the backward pass recomputes them, turn by turn.

B batch  S queries  N blocks  W queries per block  T window keys per block  E entries
F entries offered (entries.Offered)  H heads  d head width
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from deepseek_jax.models.attention import kernels
from deepseek_jax.models.attention.entries import (
    Attended,
    Offered,
    learn_by_blocks,
    offer_all,
    offer_gathered,
    offer_masked,
    offer_masks,
)
from deepseek_jax.models.attention.keys import Keys, Queries, visible
from deepseek_jax.models.attention.masked import attend_masked, sum_over_heads
from deepseek_jax.models.attention.selection import by_blocks
from deepseek_jax.parallel.context import parts, tokens_before
from deepseek_jax.parallel.current import by_platform
from deepseek_jax.parallel.local import over_heads

QUERIES_A_TURN = 512
MOST_KEYS = 16_384  # and entries up to which a TPU's kernels are used: their masks grow with the square
GATHER_FROM = 8  # entries per pick from which picks are gathered (3.6 times as fast at 32) instead of masking the rest


@dataclasses.dataclass(frozen=True)
class Reach:
    """What a query sees: the `window` newest tokens, itself included, and its `topk` best entries (0: all)."""

    window: int
    topk: int = 0


def attend_in_turns(
    queries: Queries,
    tokens: Keys,
    entries: Keys,
    sinks_H: Float[Array, " H"],
    reach: Reach,
    warmup: Bool[Array, ""] | None,
) -> Attended:
    """Tokens [B S] attend to each other and to entries [B E]; returns arrays [B S ...].

    Queries are processed in blocks of one window, each with the keys of its own block and the one before, or by a TPU's
    kernels.
    """
    arguments, settings = (queries, tokens, entries, sinks_H, warmup), {"reach": reach}
    ways = {"default": functools.partial(_attend_in_turns, **settings)}
    length, keys = queries.positions.shape[1], tokens.positions.shape[1] * parts() + entries.positions.shape[1]
    if kernels.serve(length, length) and keys <= MOST_KEYS and not _gathers(entries, reach):
        ways["tpu"] = functools.partial(attend_by_kernels, **settings)
    return by_platform(*arguments, **ways)


def _attend_in_turns(queries, tokens, entries, sinks_H, warmup, reach) -> Attended:
    length = tokens.values.shape[1]
    block = min(reach.window, length * parts())
    before_first = tokens_before(tokens, block)
    queries, tokens = _in_blocks((queries, tokens), block)

    def with_block_before(x, before_first):
        return jnp.concatenate([jnp.concatenate([before_first[:, None], x[:, :-1]], axis=1), x], axis=2)

    keys = jax.tree.map(with_block_before, tokens, before_first)

    def attend_in_turn(turn, shared):
        return attend(*turn, *shared, reach, warmup)

    found = by_blocks(attend_in_turn, -(-QUERIES_A_TURN // block), (queries, keys), (entries, sinks_H))
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length], found)


def attend_by_kernels(queries, tokens, entries, sinks_H, warmup, reach, interpret: bool = False) -> Attended:
    """`attend_in_turns` by kernels, which materialise masks and single numbers for a query and a key, [B S T+E]."""
    scale = queries.values.shape[-1] ** -0.5
    if parts() > 1:
        before_first = tokens_before(tokens, min(reach.window, tokens.values.shape[1] * parts()))
        tokens = jax.tree.map(lambda *each: jnp.concatenate(each, axis=1), before_first, tokens)
    if entries.index is None:
        offered = Offered(None, visible(queries, entries))
    else:
        offered = offer_masks(queries, entries, reach.topk, warmup, QUERIES_A_TURN)
    mask_BST = jnp.concatenate([_within(queries, tokens, reach.window), offered.mask], axis=-1)
    values_BTd = jnp.concatenate([tokens.values, entries.values], axis=1)
    mixed_BSHd, total_BHS = attend_masked(
        queries.values, values_BTd, values_BTd, mask_BST, scale, sinks_H, interpret=interpret
    )
    if entries.index is None:
        return Attended(mixed_BSHd, None, None)
    far = queries.values, entries.values, total_BHS, offered.mask, scale
    attention_BSE = over_heads(sum_over_heads(*far, interpret))
    return Attended(mixed_BSHd, *learn_by_blocks(offered, attention_BSE, QUERIES_A_TURN))


def attend(
    queries: Queries,
    tokens: Keys,
    entries: Keys,
    sinks_H: Float[Array, " H"],
    reach: Reach,
    warmup: Bool[Array, ""] | None = None,
) -> Attended:
    """Attention of queries in blocks [B N W] to each block's tokens [B N T] and to the entries [B E], shared by all.

    `warmup`: see Context.index_warmup.
    """
    flat = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), queries)

    def masked():
        return _mix(queries, tokens, offer_masked(flat, entries, reach.topk, warmup), sinks_H, reach.window)

    def gathered():
        return _mix(queries, tokens, offer_gathered(flat, entries, reach.topk), sinks_H, reach.window)

    if entries.index is None:
        return _mix(queries, tokens, offer_all(flat, entries), sinks_H, reach.window)
    if not _gathers(entries, reach):
        return masked()
    return gathered() if warmup is None else jax.lax.cond(warmup, masked, gathered)


def _gathers(entries: Keys, reach: Reach) -> bool:
    return entries.index is not None and entries.positions.shape[1] >= GATHER_FROM * reach.topk


def attention_map(
    queries: Queries, tokens: Keys, entries: Keys, sinks_H: Float[Array, " H"], reach: Reach
) -> Float[Array, "B H S S+E"]:
    """The full weights that `attend` gives to tokens [B S] and entries [B E], for inspection."""
    met = offer_masked(queries, entries, reach.topk, None) if reach.topk else offer_all(queries, entries)
    one_block = jax.tree.map(lambda x: x[:, None], (queries, tokens))
    return _weigh(*one_block, met, sinks_H, reach.window).swapaxes(1, 2)


def _mix(queries: Queries, tokens: Keys, met: Offered, sinks_H, window: int) -> Attended:
    B, N, W, H, _ = queries.values.shape
    T, dtype = tokens.values.shape[2], queries.values.dtype
    weights = _weigh(queries, tokens, met, sinks_H, window)
    near_BSHT, far_BSHF = jnp.split(weights, [T], axis=-1)
    mixed = jnp.einsum("BNWHT,BNTd->BNWHd", near_BSHT.astype(dtype).reshape(B, N, W, H, T), tokens.values)
    mixed += (far_BSHF.astype(dtype) @ met.values).reshape(mixed.shape)
    learned = jax.tree.map(lambda x: x.reshape(B, N, W), met.learn(over_heads(far_BSHF.sum(axis=2))))
    return Attended(mixed, *learned)


def _weigh(queries: Queries, tokens: Keys, met: Offered, sinks_H, window: int) -> Float[Array, "B S H T+F"]:
    """One softmax over the window's tokens, the entries and the sink; the sink's share is left out."""
    B, N, W, H, d = queries.values.shape
    q_BNWHd, T = queries.values * d**-0.5, tokens.values.shape[2]
    near = jnp.einsum("BNWHd,BNTd->BNWHT", q_BNWHd, tokens.values, preferred_element_type=jnp.float32)
    far = jnp.matmul(q_BNWHd.reshape(B, N * W, H, d), met.values.swapaxes(2, 3), preferred_element_type=jnp.float32)
    within = _within(queries, tokens, window)
    mask = jnp.concatenate([within.reshape(B, N * W, T), met.mask], axis=-1)
    scores = jnp.concatenate([near.reshape(B, N * W, H, T), far], axis=-1)
    return sink_softmax(scores, mask, sinks_H)


def _within(queries: Queries, tokens: Keys, window: int) -> Bool[Array, "B ... S T"]:
    return visible(queries, tokens) & (tokens.positions[..., None, :] > queries.positions[..., None] - window)


def sink_softmax(
    scores: Float[Array, "... H T"], mask: Bool[Array, "... T"], sinks_H: Float[Array, " H"]
) -> Float[Array, "... H T"]:
    """Softmax in float32 over the scores where `mask` is true and each head's sink logit; drops the sink's share."""
    sinks_H1 = sinks_H.astype(jnp.float32)[:, None]
    scores = jnp.where(mask[..., None, :], scores.astype(jnp.float32), -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(scores.max(axis=-1, keepdims=True), sinks_H1))
    weights = jnp.exp(scores - top)
    return weights / (weights.sum(axis=-1, keepdims=True) + jnp.exp(sinks_H1 - top))


def _in_blocks(tree, block: int):
    """Arrays [B S ...] as blocks [B N W ...], zero-padded to whole blocks, i.e. with tokens of segment 0 (padding)."""

    def fold(x):
        padding = [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(x.shape[0], -1, block, *x.shape[2:])

    return jax.tree.map(fold, tree)
