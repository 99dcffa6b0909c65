"""DeepSeek sparse attention: latent attention over the keys that a lightning indexer picks (V3.2-Exp, section 2).

B batch  S query length  T key length  D model  H heads  h index heads  i index width  k keys picked
C key-value rank  N no-rope dims  R rope dims  V value dims
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from deepseek_jax.models.attention import kernels
from deepseek_jax.models.attention.core import softmax_average
from deepseek_jax.models.attention.entries import Attended, learn_by_blocks, offer_masked, offer_masks, offer_picked
from deepseek_jax.models.attention.indexer import Indexer
from deepseek_jax.models.attention.keys import Keys, Queries, visible
from deepseek_jax.models.attention.masked import attend_masked, sum_over_heads
from deepseek_jax.models.attention.mla import LatentAttention
from deepseek_jax.models.attention.selection import by_blocks, mask_of, pick_by_blocks, pick_causally
from deepseek_jax.models.cache import write
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.tree import used
from deepseek_jax.parallel.context import whole_sequence
from deepseek_jax.parallel.current import by_platform
from deepseek_jax.parallel.local import BY_HEAD, BY_TOKEN, on_each_device, over_heads, stored_axes

BLOCK = 64  # queries per block when picked entries are gathered
MASKED_BLOCK = 256  # queries per block when all keys are scored; larger, as each block reads all keys
# Sequences longer than this many times index_topk gather the picked entries; shorter ones mask the others.  CPU seconds
# for forward and backward on two cores with index_topk 512: 0.8 masked, 1.1 gathered at 4 times as many tokens; 3.4
# masked, 2.3 gathered at 8 times.
SPARSE_FROM = 6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseCache:
    """The latents and rope keys that latent attention caches, plus the indexer's keys."""

    entry_BTe: Float[Array, "B T C+R"]
    index_BTi: Float[Array, "B T i"]


class SparseLatentAttention(LatentAttention):
    """Each query attends to the index_topk visible keys that the indexer scores highest, or to all if there are fewer.

    Two forms compute the same result.  `by_mask` scores all pairs: its time grows with S T.  `by_gathering` gathers the
    picked entries for each query and attends to them without expanding them: its time grows with S index_topk, except
    for the picking itself, which grows with S T at a fraction of the cost per pair.
    """

    def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs):
        super().__init__(config, kind, rngs=rngs)
        self.indexer = Indexer(config, rngs=rngs)

    def __call__(self, x_BSD: Float[Array, "B S D"], context: Context) -> tuple[Array, dict[str, Array]]:
        """Every token attends to its picked keys among the tokens of this call; tells how well the indexer predicts."""
        queries, keys = self.queries_and_keys(x_BSD, context)
        found = self._attend(queries, keys, context.index_warmup)
        return self._output(found.mixed, x_BSD), found.told

    def attention_map(self, x_BSD: Float[Array, "B S D"], context: Context) -> Float[Array, "B H S S"]:
        """Attention weights of every token over all tokens, for inspection; zero for keys that are not picked."""
        queries, keys = self.queries_and_keys(x_BSD, context)
        picked_BSk = pick_by_blocks(queries, keys, self.config.index_topk, BLOCK)
        kept_BSS = mask_of(picked_BSk, x_BSD.shape[1]) & visible(queries, keys)
        return self._map(queries.values, keys.values, kept_BSS)

    def empty_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> SparseCache:
        index_BTi = jnp.zeros((batch, max_length, self.config.index_head_dim), dtype)
        return SparseCache(super().empty_cache(batch, max_length, dtype), index_BTi)

    def prefill(self, x_BSD: Float[Array, "B S D"], context: Context, cache: SparseCache) -> tuple[Array, SparseCache]:
        """Like a call; returns (output, the filled cache)."""
        queries, keys = self.queries_and_keys(x_BSD, context)
        return self._output(self._attend(queries, keys, None).mixed, x_BSD), _remember(keys, context, cache)

    def decode(self, x_BSD: Float[Array, "B S D"], context: Context, cache: SparseCache) -> tuple[Array, SparseCache]:
        """Adds these tokens to the cache and attends to entries picked from it; returns (output, the updated cache)."""
        queries, keys = self.queries_and_keys(x_BSD, context)
        cache = _remember(keys, context, cache)
        if cache.entry_BTe.shape[1] <= self.config.index_topk:
            return self._output(self._attend_absorbed(queries.values, cache.entry_BTe, context), x_BSD), cache
        positions_BT = jnp.broadcast_to(jnp.arange(cache.entry_BTe.shape[1]), cache.entry_BTe.shape[:2])
        keys = Keys(cache.entry_BTe, jnp.ones_like(positions_BT), positions_BT, cache.index_BTi)
        return self._output(self.by_gathering(queries, keys, pick_by_blocks).mixed, x_BSD), cache

    def queries_and_keys(self, x_BSD: Float[Array, "B S D"], context: Context) -> tuple[Queries, Keys]:
        q_BSQ, q_BSHd, entry_BSe = self._project(x_BSD, context)
        index, key_BSi = self.indexer(x_BSD, q_BSQ, context.rope[self.kind])
        where = {"segment_ids": context.segment_ids_BS, "positions": context.positions_BS}
        return Queries(q_BSHd, **where, index=index), Keys(entry_BSe, **where, index=key_BSi)

    def _attend(self, queries, keys, warmup) -> Attended:
        """On each device, its own queries attend to the keys of all devices."""

        def attend(self, queries, keys, warmup):
            return self._choose_form(queries, whole_sequence(keys), warmup)

        of_queries = Queries(BY_HEAD, BY_TOKEN, BY_TOKEN, BY_TOKEN)
        arguments = stored_axes(self), of_queries, BY_TOKEN, ()
        attend = on_each_device(attend, arguments, Attended(BY_HEAD, BY_TOKEN, BY_TOKEN))
        return attend(self, queries, keys, warmup)

    def _choose_form(self, queries, keys, warmup) -> Attended:
        by_mask = functools.partial(self.by_mask, warmup=warmup)
        if keys.positions.shape[1] <= SPARSE_FROM * self.config.index_topk:
            return by_mask(queries, keys)
        if warmup is None:
            return self.by_gathering(queries, keys)
        return jax.lax.cond(warmup, by_mask, self.by_gathering, queries, keys)

    def by_mask(self, queries: Queries, keys: Keys, warmup=None, block: int = MASKED_BLOCK) -> Attended:
        """Attends with expanded keys and values, masking all but the picked keys.

        If `warmup` is given and true, attends to all visible keys.
        """
        ways = {"default": functools.partial(self._mask_by_blocks, block=block)}
        if kernels.serve(queries.positions.shape[1], keys.positions.shape[1]):
            ways["tpu"] = functools.partial(self.mask_by_kernels, block=block)
        with jax.named_scope("dsa_by_mask"):
            return by_platform(queries, keys, warmup, **ways)

    def _mask_by_blocks(self, queries, keys, warmup, block) -> Attended:
        """`by_mask` of `block` queries at a time, whose scores for all heads are materialised."""
        k_BTHd, v_BTHV = self._expand(keys.values)
        k_BHTd, v_BHTV = k_BTHd.swapaxes(1, 2), v_BTHV.swapaxes(1, 2)

        def attend(queries, shared):
            keys, k_BHTd, v_BHTV = shared
            met = offer_masked(queries, keys, self.config.index_topk, warmup)
            q_BHSd = queries.values.swapaxes(1, 2) * self.config.softmax_scale
            mixed_BHSV, weights_BHST = softmax_average(q_BHSd, k_BHTd, v_BHTV, met.mask[:, None])
            return Attended(mixed_BHSV.swapaxes(1, 2), *met.learn(_over_heads(weights_BHST, axis=1)))

        return by_blocks(attend, block, queries, (keys, k_BHTd, v_BHTV))

    def mask_by_kernels(
        self, queries: Queries, keys: Keys, warmup, block: int = MASKED_BLOCK, interpret: bool = False
    ) -> Attended:
        """`by_mask` by a TPU's kernels, which materialise a mask and single numbers for a query and a key, [B S T]."""
        offered = offer_masks(queries, keys, self.config.index_topk, warmup, block)
        (k_BTHd, v_BTHV), scale = self._expand(keys.values), self.config.softmax_scale
        mixed_BSHV, total_BHS = attend_masked(queries.values, k_BTHd, v_BTHV, offered.mask, scale, interpret=interpret)
        attention_BST = sum_over_heads(queries.values, k_BTHd, total_BHS, offered.mask, scale, interpret)
        return Attended(mixed_BSHV, *learn_by_blocks(offered, over_heads(attention_BST), block))

    def by_gathering(self, queries: Queries, keys: Keys, pick_keys=pick_causally, block: int = BLOCK) -> Attended:
        """Attends to the gathered entries that `pick_keys` (of selection.py) picks, without expanding them."""
        C = self.config.kv_lora_rank
        kv_up_CHe = used(self.kv_up, queries.values.dtype)  # gathered from its shards once, not for every block

        def attend(block_of_both, shared):
            (queries, picked_BSk), (keys, kv_up_CHe) = block_of_both, shared
            met = offer_picked(queries, keys, picked_BSk)
            # Each query has its own keys: S acts as a batch dimension, and the query's heads as the queries.
            mixed_BSHC, weights_BSHk = softmax_average(
                self._absorb(queries.values, kv_up_CHe), met.values, met.values[..., :C], met.mask[:, :, None]
            )
            learned = met.learn(_over_heads(weights_BSHk, axis=2))
            return Attended(self._release(mixed_BSHC, kv_up_CHe), *learned)

        with jax.named_scope("dsa_by_gathering"):
            picked_BSk = pick_keys(queries, keys, self.config.index_topk, block)
            return by_blocks(attend, block, (queries, picked_BSk), (keys, kv_up_CHe))


def _over_heads(weights, axis):
    """The float32 sum over all devices' heads, as a product with ones: XLA's CPU code sums inner axes far slower."""
    ones_H = jnp.ones((weights.shape[axis],), jnp.float32)
    return over_heads(jnp.tensordot(ones_H, weights.astype(jnp.float32), axes=(0, axis)))


def _remember(keys, context, cache):
    """The cache with these tokens' entries and index keys written at their positions."""
    entry_BTe, index_BTi = (
        write(cached, new, context.positions_BS, context.real_BS)
        for cached, new in ((cache.entry_BTe, keys.values), (cache.index_BTi, keys.index))
    )
    return SparseCache(entry_BTe, index_BTi)
