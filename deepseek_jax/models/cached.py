"""The decoder as generation runs it: the same parameters, each layer apart from its stack and beside its cache.

B batch  S new tokens  D model  V vocabulary

What flows out of the last layer is depth 0; what flows out of the k-th multi-token prediction module is depth k.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.models.block import Cache
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.schedule import layers_of
from deepseek_jax.models.tree import in_order

Caches = tuple[Cache, ...]  # one for each layer, or one for each module


class CachedDecoder:
    """Made inside a trace, before a loop over tokens: a stack sliced inside the loop is copied at every token."""

    def __init__(self, model: Decoder):
        self.model = model
        self.layers = jax.lax.optimization_barrier(unstacked(model))
        self.modules = [module for _, module in in_order(model.mtp)]

    def empty_caches(self, batch: int, max_length: int) -> Caches:
        """For rows of up to `max_length` tokens."""
        return self._empty(self.layers, batch, max_length)

    def empty_module_caches(self, batch: int, max_length: int) -> Caches:
        """Those of the multi-token prediction modules."""
        return self._empty([module.block for module in self.modules], batch, max_length)

    def prefill(
        self,
        tokens_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        segment_ids_BS: Int[Array, "B S"],
        caches: Caches,
    ) -> tuple[Float[Array, "B S ..."], Caches]:
        """(what flows out of the last layer, the caches filled).  Segment 0 is padding on either side, 1 the prompt."""
        context = self.model.context(tokens_BS, positions_BS, segment_ids_BS)
        return self._through(context, caches, lambda block, x, cache: block.prefill(x, context, cache))

    def decode(
        self, tokens_BS: Int[Array, "B S"], positions_BS: Int[Array, "B S"], caches: Caches
    ) -> tuple[Float[Array, "B S ..."], Caches]:
        """The same of S further tokens a row; each sees itself and everything before its position."""
        context = self.model.context(tokens_BS, positions_BS, jnp.ones_like(tokens_BS))
        return self._through(context, caches, lambda block, x, cache: block.decode(x, context, cache))

    def prefill_module(
        self,
        depth: int,
        x: Float[Array, "B S ..."],
        ahead_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        segment_ids_BS: Int[Array, "B S"],
        cache: Cache,
    ) -> tuple[Float[Array, "B S ..."], Cache]:
        """(the flow of `depth`, the module's cache) from that of `depth` - 1 and the tokens `depth` places ahead."""
        context = self.model.context(ahead_BS, positions_BS, segment_ids_BS)
        return self.modules[depth - 1].block.prefill(self._enter_module(depth, x, ahead_BS), context, cache)

    def decode_module(
        self,
        depth: int,
        x: Float[Array, "B S ..."],
        ahead_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        cache: Cache,
    ) -> tuple[Float[Array, "B S ..."], Cache]:
        """The same for further tokens; what stands before position 0 is padding."""
        context = self.model.context(ahead_BS, positions_BS, (positions_BS >= 0).astype(jnp.int32))
        return self.modules[depth - 1].block.decode(self._enter_module(depth, x, ahead_BS), context, cache)

    def logits(self, x: Float[Array, "B S ..."], depth: int = 0) -> Float[Array, "B S V"]:
        """float32 scores of the token `depth` + 1 places ahead, from the flow of `depth`."""
        return self.model.logits(self._hidden(x, depth))

    def _enter_module(self, depth, x, ahead_BS):
        """Hyper-connected streams go on as they are, a plain flow after its norm."""
        handed_on = x if self.model.config.hc_mult else self._hidden(x, depth - 1)
        return self.modules[depth - 1].enter(handed_on, self.model.embed(ahead_BS))

    def _hidden(self, x, depth):
        return self.modules[depth - 1].leave(x) if depth else self.model.norm(self.model.leave(x))

    def _empty(self, blocks, batch, max_length):
        return tuple(block.attention.empty_cache(batch, max_length, self.model.dtype) for block in blocks)

    def _through(self, context, caches, step):
        x, written = self.model.enter(context.tokens_BS), []
        for block, cache in zip(self.layers, caches, strict=True):
            x, cache = step(block, x, cache)
            written.append(cache)
        return x, tuple(written)


def grown(caches: Caches, empty: Caches) -> Caches:
    """`empty` caches of greater length with what smaller ones hold: an entry lies at its position in both."""
    return jax.tree.map(lambda large, small: large.at[tuple(map(slice, small.shape))].set(small), empty, caches)


def unstacked(model: Decoder) -> list:
    """The layers in the order in which they run."""
    layers = {
        number: jax.tree.map(lambda leaf, place=place: leaf[place], stack)
        for name, stack in model.layers.items()
        for place, number in enumerate(layers_of(name))
    }
    return [layers[number] for number in sorted(layers)]
