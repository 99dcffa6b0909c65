"""What a layer needs to know about its tokens besides their activations.

B batch  S sequence  P rotated pairs
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Metadata of a batch of packed documents.

    `segment_ids_BS`: 0 is padding; the documents of a row are numbered from 1 and never see each other.
    `positions_BS`: counts from 0 in each document.
    `counted_BS`: the tokens that statistics and auxiliary losses include.
    `rope`: cosines and sines for each kind of attention (rope.tables).
    `index_warmup`: if given and true, sparse attention sees all keys while its indexer learns (V3.2's dense warm-up).
    `keys_BS`: random keys, one per token, for routers that draw noise; None outside training and if no router draws.
    `capacity_factor`: limits the rows that devices send to each other's experts (config.RouterConfig).
    """

    tokens_BS: Int[Array, "B S"]
    positions_BS: Int[Array, "B S"]
    segment_ids_BS: Int[Array, "B S"]
    counted_BS: Bool[Array, "B S"]
    rope: dict[str, tuple[Float[Array, "B S P"], Float[Array, "B S P"]]]
    index_warmup: Bool[Array, ""] | None = None
    keys_BS: Key[Array, "B S"] | None = None
    capacity_factor: float = dataclasses.field(default=0.0, metadata={"static": True})

    @property
    def real_BS(self) -> Bool[Array, "B S"]:
        return self.segment_ids_BS > 0

    def for_layer(self, number: int | Int[Array, ""]) -> "Context":
        """This context with `number` folded into its random keys, so that each layer (or stack) draws its own noise."""
        if self.keys_BS is None:
            return self
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
        return dataclasses.replace(self, keys_BS=fold(self.keys_BS, number))
