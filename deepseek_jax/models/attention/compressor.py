"""Compresses runs of tokens into one entry each: V4's attentions see the distant past only through these entries.

Runs follow positions within a document, so padding and packing change nothing: a token with (position + 1) a multiple
of the rate is the last of a run; it closes the run, and completes its entry.

B batch  S tokens  D model  d entry width  E entries  m rate  r runs per entry  e = 2 r d
T cache slots  R earlier tokens, in a ring when decoding
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from deepseek_jax.models import rope
from deepseek_jax.models.attention.keys import Keys
from deepseek_jax.models.attention.ring import empty_ring, first_position, write_ring
from deepseek_jax.models.cache import write
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import RMSNorm, linear
from deepseek_jax.models.tree import weight, zeros
from deepseek_jax.parallel.context import parts, tokens_before
from deepseek_jax.parallel.local import BY_TOKEN, on_each_device, stored_axes


class Compressor(nnx.Module):
    """Each channel of an entry is a softmax-weighted mean over tokens, with per-channel gates as logits.

    hca: over one run of hca_rate tokens.  csa: over a run of csa_rate tokens and the run before it, which has its own
    projections.
    """

    def __init__(self, config: ModelConfig, kind: str, width: int, *, rngs: nnx.Rngs):
        self.config, self.kind, self.width = config, kind, width
        self.rate, self.runs = (config.csa_rate, 2) if kind == "csa" else (config.hca_rate, 1)
        shape, axes = (config.hidden_size, self.runs * width), ("embed", "latent")
        self.kv = weight(rngs.params(), shape, axes, config.initializer_range)
        self.gate = weight(rngs.params(), shape, axes, config.initializer_range)
        self.position_bias = zeros((self.rate, self.runs * width), (None, "latent"))
        self.norm = RMSNorm(width, config.rms_norm_eps, axis="latent")

    def __call__(self, x_BSD: Float[Array, "B S D"], context: Context) -> Keys:
        """The entries of all documents in each row, in order, padded with entries of document 0, which nothing sees.

        Every device returns at most ceil(S / m) entries for its S tokens: those of runs that end there, wherever they
        began.
        """
        with jax.named_scope("compress"):
            compress = on_each_device(Compressor._compress, (stored_axes(self), BY_TOKEN, BY_TOKEN), BY_TOKEN)
            return compress(self, self._project(x_BSD), dataclasses.replace(context, index_warmup=None))

    def _compress(self, new_BSe, context: Context) -> Keys:
        length = new_BSe.shape[1]
        closers_BE = self._closers(context, length // self.rate if parts() == 1 else -(-length // self.rate))
        last_BE = self._last_positions(closers_BE, context)
        earlier_BRe = tokens_before(new_BSe, self.runs * self.rate - 1)
        sources_BErm = earlier_BRe.shape[1] + closers_BE[..., None, None] + self._steps_back()
        values_BEd = self._weigh(jnp.concatenate([earlier_BRe, new_BSe], axis=1), sources_BErm, last_BE)
        documents_BE = jnp.take_along_axis(context.segment_ids_BS, closers_BE, axis=1, mode="fill", fill_value=0)
        return Keys(values_BEd, documents_BE, last_BE)

    def empty_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> dict[str, Array]:
        """`entries` by index, and a ring `recent` of the newest tokens' contents and gates, for incomplete entries."""
        newest, modules = self.runs * self.rate, self.config.num_nextn_predict_layers
        recent = empty_ring(batch, newest, modules, max_length, 2 * self.runs * self.width, dtype)
        return {"entries": jnp.zeros((batch, max_length // self.rate, self.width), dtype), "recent": recent}

    def decode(self, x_BSD: Float[Array, "B S D"], context: Context, cache: dict) -> tuple[Keys, dict]:
        """Processes further tokens; returns (all entries of each row's single document, the updated cache)."""
        with jax.named_scope("compress"):
            ring_BRe, new_BSe = cache["recent"], self._project(x_BSD)
            closers_BE = self._closers(context, -(-x_BSD.shape[1] // self.rate))
            last_BE = self._last_positions(closers_BE, context)
            positions = last_BE[..., None, None] + self._steps_back()
            in_ring = positions < first_position(context)[:, :, None, None]
            among_new = ring_BRe.shape[1] + closers_BE[..., None, None] + self._steps_back()
            sources_BErm = jnp.where(in_ring, positions % ring_BRe.shape[1], among_new)
            values_BEd = self._weigh(jnp.concatenate([ring_BRe, new_BSe], axis=1), sources_BErm, last_BE)
            complete_BE = closers_BE < x_BSD.shape[1]
            entries_BTd = write(cache["entries"], values_BEd, last_BE // self.rate, complete_BE)
            shape = entries_BTd.shape[:2]
            closes_BT = jnp.broadcast_to((jnp.arange(shape[1]) + 1) * self.rate - 1, shape)
            keys = Keys(entries_BTd, jnp.ones(shape, jnp.int32), closes_BT)
            return keys, {"entries": entries_BTd, "recent": write_ring(ring_BRe, new_BSe, context)}

    def _project(self, x_BSD) -> Float[Array, "B S 2rd"]:
        """The tokens' contents and gates, concatenated."""
        return jnp.concatenate([linear(x_BSD, self.kv), linear(x_BSD, self.gate)], axis=-1)

    def _closers(self, context: Context, most: int) -> Int[Array, "B E"]:
        """Indices in the row of the tokens that close a run, in order, at most `most`; padded with S."""
        closes_BS = context.real_BS & ((context.positions_BS + 1) % self.rate == 0)
        length = closes_BS.shape[1]
        return jnp.sort(jnp.where(closes_BS, jnp.arange(length), length), axis=1)[:, :most]

    def _last_positions(self, closers_BE, context: Context) -> Int[Array, "B E"]:
        """The position of the token that closes each entry; padding entries get that of a document's first entry."""
        fill = self.rate - 1
        return jnp.take_along_axis(context.positions_BS, closers_BE, axis=1, mode="fill", fill_value=fill)

    def _steps_back(self) -> Int[Array, "r m"]:
        """Offsets (<= 0) from the closing token to each token of its entry."""
        return (jnp.arange(self.runs * self.rate) - self.runs * self.rate + 1).reshape(self.runs, self.rate)

    def _weigh(self, tokens_BTe, sources_BErm, last_BE) -> Float[Array, "B E d"]:
        """The entries made of the tokens at indices `sources`, ignoring any before the start of the document."""
        taken = [self._take(tokens_BTe, sources_BErm[:, :, run], run) for run in range(self.runs)]
        contents, gates = jnp.split(jnp.concatenate(taken, axis=2), 2, axis=-1)  # [B E rm d]
        exists_BErm = last_BE[..., None] + self._steps_back().ravel() >= 0
        gates = jnp.where(exists_BErm[..., None], gates.astype(jnp.float32) + self._bias(), -jnp.inf)
        entries_BEd = (jax.nn.softmax(gates, axis=2) * contents).sum(axis=2).astype(tokens_BTe.dtype)
        return rope.rotate_tail(self.norm(entries_BEd), *rope.tables(self.config, self.kind, last_BE - self.rate + 1))

    def _take(self, tokens_BTe, sources_BEm, run: int) -> Float[Array, "B E m 2d"]:
        """The contents and gates of the tokens at `sources`, by the projections for an entry's run number `run`."""
        parts = tokens_BTe.reshape(*tokens_BTe.shape[:2], 2, self.runs, self.width)[:, :, :, run]
        parts = parts.reshape(*tokens_BTe.shape[:2], 2 * self.width)
        return jax.vmap(lambda row, sources: row[sources])(parts, sources_BEm)

    def _bias(self) -> Float[Array, "rm d"]:
        bias = self.position_bias[...].reshape(self.rate, self.runs, self.width)
        return bias.swapaxes(0, 1).reshape(self.runs * self.rate, self.width)
