"""What a layer knows of the tokens it is given.

B batch  S sequence  P rotated pairs
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """`segment_ids_BS`: 0 is padding, documents of a row count from 1 and never see each other.

    `positions_BS` counts from 0 in each document.  `rope` holds the cosines and sines for each kind of attention.
    `counted_BS`: the tokens that statistics and auxiliary losses are about.
    `index_warmup`, where it is given and true: attention that would pick its keys sees all, and its indexer learns.
    `keys_BS`: what a router may draw noise for each token from; None outside of training and where no router draws.
    `capacity_factor`: of the room for what devices send to each other's experts (config.RouterConfig).
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
        """As the layer of this number has it, or the stack, or the layer of a group: each draws noise of its own."""
        if self.keys_BS is None:
            return self
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
        return dataclasses.replace(self, keys_BS=fold(self.keys_BS, number))
