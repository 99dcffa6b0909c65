"""V4's attentions: over a sliding window of tokens, plus compressed entries that summarise all earlier tokens.

B batch  S sequence  D model  Q query rank  H heads  d head width  G output groups  o output rank
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from deepseek_jax.models import arithmetic, rope
from deepseek_jax.models.attention.block_indexer import BlockIndexer
from deepseek_jax.models.attention.compressor import Compressor
from deepseek_jax.models.attention.entries import Attended
from deepseek_jax.models.attention.keys import Keys, Queries
from deepseek_jax.models.attention.ring import empty_ring, ring_positions, write_ring
from deepseek_jax.models.attention.window import Reach, attend, attend_in_turns, attention_map
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import RMSNorm, linear, unit_rms
from deepseek_jax.models.tree import used, weight, zeros
from deepseek_jax.parallel.context import whole_sequence
from deepseek_jax.parallel.local import BY_HEAD, BY_TOKEN, on_each_device
from deepseek_jax.parallel.logical import axes_of


class CompressedAttention(nnx.Module):
    """Multi-query attention with a single vector per token as both key and value.  By `kind`, a query attends to

    window  the sliding_window newest tokens
    csa     these, plus the index_topk compressed entries (one per csa_rate tokens) that an indexer picks
    hca     these, plus all compressed entries (one per hca_rate tokens)
    """

    def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs):
        self.config, self.kind = config, kind
        self.reach = Reach(config.sliding_window, config.index_topk if kind == "csa" else 0)
        D, Q, H, d = config.hidden_size, config.q_lora_rank, config.num_attention_heads, config.head_dim
        G, o, scale, eps = config.o_groups, config.o_lora_rank, config.initializer_range, config.rms_norm_eps
        self.q_down = weight(rngs.params(), (D, Q), ("embed", "latent"), scale)
        self.q_norm = RMSNorm(Q, eps, axis="latent")
        self.q_up = weight(rngs.params(), (Q, H, d), ("rank", "heads", None), scale)
        self.kv = weight(rngs.params(), (D, d), ("embed", "latent"), scale)
        self.kv_norm = RMSNorm(d, eps, axis="latent")
        self.sinks = zeros((H,), ("heads",))
        self.out_down = weight(rngs.params(), (G, H // G * d, o), ("heads", None, "rank"), scale)
        self.out_up = weight(rngs.params(), (G * o, D), ("heads", "embed"), scale)
        if kind != "window":
            self.compressor = Compressor(config, kind, d, rngs=rngs)
        if kind == "csa":
            self.indexer = BlockIndexer(config, kind, rngs=rngs)

    def __call__(
        self, x_BSD: Float[Array, "B S D"], context: Context
    ) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
        """Every token attends to its window and to the entries complete at its position, in its own document."""
        queries, tokens, entries = self.queries_and_keys(x_BSD, context)
        found = self._attend(queries, tokens, entries, context.index_warmup)
        return self._output(found.mixed, context), found.told

    def attention_map(self, x_BSD: Float[Array, "B S D"], context: Context) -> Float[Array, "B H S S+E"]:
        """Attention weights of each token over all tokens, then all entries; the rest up to 1 goes to the sink."""
        return attention_map(*self.queries_and_keys(x_BSD, context), self.sinks[...], self.reach)

    def queries_and_keys(self, x_BSD: Float[Array, "B S D"], context: Context) -> tuple[Queries, Keys, Keys]:
        """Returns the tokens' queries, their keys, and the keys of the compressed entries (none for window)."""
        queries, tokens = self._project(x_BSD, context)
        entries = none_of(tokens) if self.kind == "window" else self.compressor(x_BSD, context)
        if self.kind == "csa":
            entries = dataclasses.replace(entries, index=self.indexer.keys(x_BSD, context))
        return queries, tokens, entries

    def empty_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> dict:
        """A ring of the newest tokens; csa, hca: also max_length / rate entries of d numbers; csa: also index keys."""
        newest, modules = self.config.sliding_window, self.config.num_nextn_predict_layers
        cache = {"window": empty_ring(batch, newest, modules, max_length, self.config.head_dim, dtype)}
        if self.kind != "window":
            cache["compressor"] = self.compressor.empty_cache(batch, max_length, dtype)
        if self.kind == "csa":
            cache["indexer"] = self.indexer.empty_cache(batch, max_length, dtype)
        return cache

    def prefill(self, x_BSD: Float[Array, "B S D"], context: Context, cache: dict) -> tuple[Array, dict]:
        """Like a call, with one document per row; returns (output, the filled cache)."""
        queries, tokens = self._project(x_BSD, context)
        entries, cache = self._compress(x_BSD, tokens, context, cache)
        if self.kind != "window":  # attend to the prompt's entries only, not to all that the cache has room for
            entries = jax.tree.map(lambda x: x[:, : x_BSD.shape[1] // self.compressor.rate], entries)
        cache["window"] = write_ring(cache["window"], tokens.values, context)
        return self._output(self._attend(queries, tokens, entries, None).mixed, context), cache

    def decode(self, x_BSD: Float[Array, "B S D"], context: Context, cache: dict) -> tuple[Array, dict]:
        """Attends to the cache and these new tokens; returns (output, the updated cache).

        The ring is read before the new tokens overwrite old ones.
        """
        queries, tokens = self._project(x_BSD, context)
        entries, cache = self._compress(x_BSD, tokens, context, cache)
        positions = ring_positions(cache["window"].shape[1], context)
        window = Keys(cache["window"], (positions >= 0).astype(jnp.int32), positions)
        cache["window"] = write_ring(cache["window"], tokens.values, context)
        keys = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), window, tokens)
        with jax.named_scope(self.kind):
            one_block = jax.tree.map(lambda x: x[:, None], (queries, keys))
            mixed_B1SHd = attend(*one_block, entries, self.sinks[...], self.reach).mixed
        return self._output(mixed_B1SHd[:, 0], context), cache

    def _project(self, x_BSD, context) -> tuple[Queries, Keys]:
        """Returns the tokens' queries (csa: with index queries) and their keys."""
        cos_sin = context.rope[self.kind]
        where = {"segment_ids": context.segment_ids_BS, "positions": context.positions_BS}
        with jax.named_scope(f"{self.kind}_project"):
            q_BSQ = self.q_norm(linear(x_BSD, self.q_down))
            normed_BSHd = unit_rms(linear(q_BSQ, self.q_up), self.config.rms_norm_eps).astype(x_BSD.dtype)
            q_BSHd = rope.rotate_tail(normed_BSHd, *cos_sin)
            kv_BSd = rope.rotate_tail(self.kv_norm(linear(x_BSD, self.kv)), *cos_sin)
            asked = self.indexer.queries(q_BSQ, x_BSD, context) if self.kind == "csa" else None
            return Queries(q_BSHd, **where, index=asked), Keys(kv_BSd, **where)

    def _compress(self, x_BSD, tokens: Keys, context, cache: dict) -> tuple[Keys, dict]:
        """Compresses further tokens; returns (all entries so far, the updated cache)."""
        cache, entries = dict(cache), none_of(tokens)
        if self.kind != "window":
            entries, cache["compressor"] = self.compressor.decode(x_BSD, context, cache["compressor"])
        if self.kind == "csa":
            index, cache["indexer"] = self.indexer.decode(x_BSD, context, cache["indexer"])
            entries = dataclasses.replace(entries, index=index)
        return entries, cache

    def _attend(self, queries, tokens, entries, warmup) -> Attended:
        """On each device, its queries attend to its own tokens, the window before them, and all devices' entries."""

        def attend(queries, tokens, entries, sinks_H, warmup):
            return attend_in_turns(queries, tokens, whole_sequence(entries), sinks_H, self.reach, warmup)

        of_queries = Queries(BY_HEAD, BY_TOKEN, BY_TOKEN, BY_TOKEN)
        arguments = of_queries, BY_TOKEN, BY_TOKEN, axes_of(self.sinks), ()
        attend = on_each_device(attend, arguments, Attended(BY_HEAD, BY_TOKEN, BY_TOKEN))
        with jax.named_scope(self.kind):
            return attend(queries, tokens, entries, self.sinks[...], warmup)

    def _output(self, mixed_BSHd, context) -> Float[Array, "B S D"]:
        """Projects the heads' outputs to D: each of G groups of heads to rank o, then all of them together.

        Values are rotated, being the keys too; rotating the outputs back makes them depend on relative positions only.
        """
        mixed_BSHd = rope.rotate_tail_back(mixed_BSHd, *context.rope[self.kind])
        mixed_BSGe = mixed_BSHd.reshape(*mixed_BSHd.shape[:2], self.config.o_groups, -1)
        kernel_Geo, how = used(self.out_down, mixed_BSGe.dtype), arithmetic.of(self.out_down)
        if how is arithmetic.PLAIN:
            low_BSGo = jnp.einsum("BSGe,Geo->BSGo", mixed_BSGe, kernel_Geo)
        else:
            rows_GTe = jnp.moveaxis(mixed_BSGe, 2, 0).reshape(len(kernel_Geo), -1, kernel_Geo.shape[1])
            low_GTo = arithmetic.multiply(rows_GTe, kernel_Geo, how)
            low_BSGo = jnp.moveaxis(low_GTo.reshape(-1, *mixed_BSGe.shape[:2], low_GTo.shape[2]), 0, 2)
        return linear(low_BSGo.reshape(*low_BSGo.shape[:2], -1), self.out_up)


def none_of(keys: Keys) -> Keys:
    return jax.tree.map(lambda x: x[:, :0], keys)
