"""Who asks and who is seen, wherever they lie: a query sees the keys of its document up to its own place.

B batch  S queries  T keys  H heads  d head width  h index heads  i index width
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.models.attention.indexer import IndexQueries


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """Keys that are values too.  Document 0 is none; `places` count from 0 in each document.

    A compressed entry lies at the place of the last token in it.  `index`: what an indexer knows it by.
    """

    values: Float[Array, "B ... T d"]
    documents: Int[Array, "B ... T"]
    places: Int[Array, "B ... T"]
    index: Float[Array, "B ... T i"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queries:
    """`index`: what an indexer asks with."""

    values: Float[Array, "B ... S H d"]
    documents: Int[Array, "B ... S"]
    places: Int[Array, "B ... S"]
    index: IndexQueries | None = None


def visible(queries: Queries, keys: Keys) -> Bool[Array, "B ... S T"]:
    """Which keys are no later than the query, and of its document."""
    same = queries.documents[..., :, None] == keys.documents[..., None, :]
    return same & (queries.documents > 0)[..., None] & (keys.places[..., None, :] <= queries.places[..., :, None])
