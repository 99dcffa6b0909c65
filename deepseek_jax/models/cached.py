"""The decoder as generation runs it: the same parameters, each layer apart from its stack and beside its cache.

B batch  S new tokens  T cache places  D model
"""

import jax
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.models.attention.core import causal_mask
from deepseek_jax.models.cache import LatentCache
from deepseek_jax.models.decoder import Decoder

Caches = tuple[LatentCache, ...]


class CachedDecoder:
    """Made inside a trace, before a loop over tokens: a stack sliced inside the loop is copied at every token."""

    def __init__(self, model: Decoder):
        self.model = model
        layers = [jax.tree.map(lambda x, i=i: x[i], run) for run in model.layers.values() for i in range(depth(run))]
        self.layers = jax.lax.optimization_barrier(layers)

    def empty_caches(self, batch: int, places: int) -> Caches:
        return tuple(LatentCache.empty(batch, places, self.model.config, self.model.dtype) for _ in self.layers)

    def prefill(
        self,
        tokens_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        segment_ids_BS: Int[Array, "B S"],
        caches: Caches,
    ) -> tuple[Float[Array, "B S D"], Caches]:
        """States of a prompt after the final norm, and the caches with the prompt in their first S places."""
        context = self.model.context(positions_BS, causal_mask(segment_ids_BS))
        return self._through(tokens_BS, caches, lambda block, x, cache: block.prefill(x, context, cache))

    def decode(
        self,
        tokens_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        visible_BST: Bool[Array, "B S T"],
        caches: Caches,
        place,
    ) -> tuple[Float[Array, "B S D"], Caches]:
        """States of the tokens at places `place`, `place` + 1, ...; `visible_BST`: which places each of them sees."""
        context = self.model.context(positions_BS, visible_BST)
        return self._through(tokens_BS, caches, lambda block, x, cache: block.decode(x, context, cache, place))

    def logits(self, hidden_BSD: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        return self.model.logits(hidden_BSD)

    def _through(self, tokens_BS, caches, step):
        x_BSD, written = self.model.embed(tokens_BS), []
        for block, cache in zip(self.layers, caches):
            x_BSD, cache = step(block, x_BSD, cache)
            written.append(cache)
        return self.model.norm(x_BSD), tuple(written)


def depth(run) -> int:
    """How many layers a stack holds."""
    return jax.tree.leaves(run)[0].shape[0]
