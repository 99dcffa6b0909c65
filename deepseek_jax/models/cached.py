"""The decoder as generation runs it: the same parameters, each layer apart from its stack and beside its cache.

B batch  S new tokens  D model
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.schedule import layers_of

Caches = tuple  # one for each layer


class CachedDecoder:
    """Made inside a trace, before a loop over tokens: a stack sliced inside the loop is copied at every token."""

    def __init__(self, model: Decoder):
        self.model = model
        self.layers = jax.lax.optimization_barrier(unstacked(model))

    def empty_caches(self, batch: int, places: int) -> Caches:
        """For rows of up to `places` tokens."""
        return tuple(block.attention.empty_cache(batch, places, self.model.dtype) for block in self.layers)

    def prefill(
        self,
        tokens_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        segment_ids_BS: Int[Array, "B S"],
        caches: Caches,
    ) -> tuple[Float[Array, "B S D"], Caches]:
        """States after the final norm, and the caches filled.  Segment 0 is padding on either side, 1 the prompt."""
        context = self.model.context(tokens_BS, positions_BS, segment_ids_BS)
        return self._through(context, caches, lambda block, x, cache: block.prefill(x, context, cache))

    def decode(
        self, tokens_BS: Int[Array, "B S"], positions_BS: Int[Array, "B S"], caches: Caches
    ) -> tuple[Float[Array, "B S D"], Caches]:
        """States of S further tokens a row; each sees itself and everything before its position."""
        context = self.model.context(tokens_BS, positions_BS, jnp.ones_like(tokens_BS))
        return self._through(context, caches, lambda block, x, cache: block.decode(x, context, cache))

    def logits(self, hidden_BSD: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        return self.model.logits(hidden_BSD)

    def _through(self, context, caches, step):
        x, written = self.model.enter(context.tokens_BS), []
        for block, cache in zip(self.layers, caches, strict=True):
            x, cache = step(block, x, cache)
            written.append(cache)
        return self.model.norm(self.model.leave(x)), tuple(written)


def unstacked(model: Decoder) -> list:
    """The layers in the order in which they run."""
    layers = {
        number: jax.tree.map(lambda leaf, place=place: leaf[place], stack)
        for name, stack in model.layers.items()
        for place, number in enumerate(layers_of(name))
    }
    return [layers[number] for number in sorted(layers)]
