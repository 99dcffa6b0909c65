"""The decoder opened up for inspection: the states between its sublayers, which can be edited, and the routing.

B batch  S sequence  D model  V vocabulary  E experts  K experts per token  n streams
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.errors import UserError
from deepseek_jax.models.cached import unstacked
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.mhc import apart

Edit = Callable[[int, str, Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChosenExperts:
    """Each token's experts in a layer, the weights of their outputs, and the scores of all experts.

    `own`: numbers of each token that a router of one's own reports, by name.
    """

    experts: Int[Array, "B S K"]
    weights: Float[Array, "B S K"]
    scores: Float[Array, "B S E"]
    own: dict[str, Float[Array, "B S"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """The first layer's input, and for each layer the residual stream after its attention and after its feed-forward.

    With hyper-connections these are [B S n D].  `routing` has the chosen experts by the index of each MoE layer.
    """

    embedding: Float[Array, "B S D"]
    attention: list[Float[Array, "B S D"]]
    feed_forward: list[Float[Array, "B S D"]]
    routing: dict[int, ChosenExperts]
    logits: Float[Array, "B S V"]


def traced(
    model: Decoder,
    tokens_BS: Int[Array, "B S"],
    positions_BS: Int[Array, "B S"],
    segment_ids_BS: Int[Array, "B S"],
    edit: Edit | None,
) -> Trace:
    """Runs the model without its multi-token prediction and records a Trace; `edit`: see deepseek_jax.trace."""
    edit = _checked(edit) if edit else lambda layer, place, x: x

    def change(layer, place, x):
        """Returns (the next x, the same as it is shown)."""
        shown = edit(layer, place, apart(x, model.config.hc_mult) if model.config.hc_mult else x)
        return shown.reshape(x.shape), shown

    context = model.context(tokens_BS, positions_BS, segment_ids_BS)
    x, entered = change(-1, "embedding", model.embed_streams(tokens_BS))
    past_attention, past_feed_forward, routing = [], [], {}
    for layer, block in enumerate(unstacked(model)):
        x, shown = change(layer, "attention", block.through_attention(x, context)[0])
        past_attention.append(shown)
        x, chosen = block.through_feed_forward(x, context)
        x, shown = change(layer, "feed_forward", x)
        past_feed_forward.append(shown)
        if chosen is not None:
            routing[layer] = ChosenExperts(chosen.experts_TK, chosen.weights_TK, chosen.scores_TE, chosen.own)
    return Trace(entered, past_attention, past_feed_forward, routing, model.logits(model.norm(model.merge_streams(x))))


def _checked(edit: Edit) -> Edit:
    def change(layer, place, x):
        given = edit(layer, place, x)
        shape = getattr(given, "shape", None)
        if shape != x.shape:
            found = f"an array {shape}" if shape else given
            raise UserError(
                f"edit returned {found} for layer {layer}, {place}; its shape must be that of x, {x.shape}."
            )
        return jnp.asarray(given, x.dtype)

    return change
