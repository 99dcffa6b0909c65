"""The decoder as generation runs it: the same parameters, unstacked into single layers, each with its own cache.

B batch  S new tokens  D model  V vocabulary

`depth`: 0 is the output of the last layer, k that of the k-th multi-token prediction (MTP) module.
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
    """Construct it inside a trace, before the loop over tokens: a stack sliced inside the loop is copied every time."""

    def __init__(self, model: Decoder):
        self.model = model
        self.layers = jax.lax.optimization_barrier(unstacked(model))
        self.modules = [module for _, module in in_order(model.mtp)]

    def empty_caches(self, batch: int, max_length: int) -> Caches:
        """Empty caches of all layers, for rows of up to `max_length` tokens."""
        return self._empty(self.layers, batch, max_length)

    def empty_module_caches(self, batch: int, max_length: int) -> Caches:
        """Empty caches of the multi-token prediction modules."""
        return self._empty([module.block for module in self.modules], batch, max_length)

    def prefill(
        self,
        tokens_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        segment_ids_BS: Int[Array, "B S"],
        caches: Caches,
    ) -> tuple[Float[Array, "B S ..."], Caches]:
        """Returns (the last layer's output, the filled caches).  Segment 1 is the prompt, 0 padding on either side."""
        context = self.model.context(tokens_BS, positions_BS, segment_ids_BS)
        return self._through(context, caches, lambda block, x, cache: block.prefill(x, context, cache))

    def decode(
        self, tokens_BS: Int[Array, "B S"], positions_BS: Int[Array, "B S"], caches: Caches
    ) -> tuple[Float[Array, "B S ..."], Caches]:
        """Like `prefill`, for S further tokens per row; each sees itself and every earlier position."""
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
        """Runs MTP module `depth` on `x`, the output of `depth` - 1, and the tokens `depth` positions ahead.

        Returns (the output of `depth`, the module's filled cache).
        """
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
        """Like `prefill_module`, for further tokens; tokens at negative positions are padding."""
        context = self.model.context(ahead_BS, positions_BS, (positions_BS >= 0).astype(jnp.int32))
        return self.modules[depth - 1].block.decode(self._enter_module(depth, x, ahead_BS), context, cache)

    def logits(self, x: Float[Array, "B S ..."], depth: int = 0) -> Float[Array, "B S V"]:
        """float32 logits of the token `depth` + 1 positions ahead, from the output of `depth`."""
        return self.model.logits(self._hidden(x, depth))

    def _enter_module(self, depth, x, ahead_BS):
        """The module's input: hyper-connected streams are passed on as they are, a plain state after its final norm."""
        handed_on = x if self.model.config.hc_mult else self._hidden(x, depth - 1)
        return self.modules[depth - 1].enter(handed_on, self.model.embed(ahead_BS))

    def _hidden(self, x, depth):
        return self.modules[depth - 1].leave(x) if depth else self.model.norm(self.model.merge_streams(x))

    def _empty(self, blocks, batch, max_length):
        return tuple(block.attention.empty_cache(batch, max_length, self.model.dtype) for block in blocks)

    def _through(self, context, caches, step):
        x, written = self.model.embed_streams(context.tokens_BS), []
        for block, cache in zip(self.layers, caches, strict=True):
            x, cache = step(block, x, cache)
            written.append(cache)
        return x, tuple(written)


def grown(caches: Caches, empty: Caches) -> Caches:
    """Copies `caches` into the longer `empty` ones; every entry keeps its index, as caches are position-addressed."""
    return jax.tree.map(lambda large, small: large.at[tuple(map(slice, small.shape))].set(small), empty, caches)


def unstacked(model: Decoder) -> list:
    """The single layers, sliced out of their stacks, in the order in which they run."""
    layers = {
        number: jax.tree.map(lambda leaf, place=place: leaf[place], stack)
        for name, stack in model.layers.items()
        for place, number in enumerate(layers_of(name))
    }
    return [layers[number] for number in sorted(layers)]
