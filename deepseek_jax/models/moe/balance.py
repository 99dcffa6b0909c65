"""How evenly routers distribute tokens: loads, balance losses, the bias update (V3, sections 2.1.2 and 4.5.3).

The sequence-wise loss equals V2's expert-level loss (V2, section 2.2.3), as V2's softmax scores already sum to 1.

B batch  S sequence  E experts  K experts per token
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from deepseek_jax.models.moe.router import Routing
from deepseek_jax.models.tree import flatten, unflatten


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterReport:
    """One MoE layer's statistics over counted tokens; sums, so that microbatches and devices can be added up.

    Gradients flow only through share, balance and own; the rest is for monitoring.
    """

    load_E: Float[Array, "E"]  # assignments per expert
    gate_E: Float[Array, "E"]  # routing weights per expert, normalised per token, summed over tokens
    share_E: Float[Array, "E"]  # scores per expert, normalised per token, summed over tokens; 0 for a hash router
    balance: Float[Array, ""]  # sequence-wise balance loss, summed over sequences; 0 for a hash router
    entropy: Float[Array, ""]  # of the normalised scores, in nats, summed over tokens
    dropped: Float[Array, ""] | None  # assignments dropped for lack of room; None if none can be
    own: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)  # Routing.own, summed over tokens


def report(routing: Routing, counted_BS: Bool[Array, "B S"]) -> RouterReport:
    """Sums over the tokens of `counted_BS` only, excluding e.g. padding and, in MTP modules, the ends of documents."""
    B, S = counted_BS.shape
    E = routing.scores_TE.shape[-1]
    counted = counted_BS.astype(jnp.float32)
    chosen_BSE = jax.nn.one_hot(routing.experts_TK, E).sum(axis=-2).reshape(B, S, E)
    share_TK = routing.weights_TK / (routing.weights_TK.sum(axis=-1, keepdims=True) + 1e-20)
    gate_TE = (jax.nn.one_hot(routing.experts_TK, E) * share_TK[..., None]).sum(axis=-2)
    load_BE = jnp.einsum("BSE,BS->BE", chosen_BSE, counted)
    share_BSE = (routing.scores_TE / (routing.scores_TE.sum(axis=-1, keepdims=True) + 1e-20)).reshape(B, S, E)
    length_B1, assigned_B1 = (jnp.maximum(each.sum(axis=1, keepdims=True), 1.0) for each in (counted, load_BE))
    frequency_BE = jax.lax.stop_gradient(load_BE * E / assigned_B1)  # V3, equation 18, with assigned = K * tokens
    probability_BE = jnp.einsum("BSE,BS->BE", share_BSE, counted) / length_B1  # equations 19 and 20
    entropy_BS = -(share_BSE * jnp.log(share_BSE + 1e-20)).sum(axis=-1)
    return RouterReport(
        load_E=load_BE.sum(axis=0),
        gate_E=jax.lax.stop_gradient(jnp.einsum("BSE,BS->E", gate_TE.reshape(B, S, E), counted)),
        share_E=jnp.einsum("BSE,BS->E", share_BSE, counted),
        balance=(frequency_BE * probability_BE).sum(),
        entropy=jax.lax.stop_gradient((entropy_BS * counted).sum()),
        dropped=None if routing.dropped_T is None else (routing.dropped_T.reshape(B, S) * counted).sum(),
        own={name: (told_T.reshape(B, S) * counted).sum() for name, told_T in routing.own.items()},
    )


def batch_balance(load: Float[Array, "... E"], share: Float[Array, "... E"]) -> Float[Array, "..."]:
    """The batch-wise balance loss, over all tokens together: single sequences may be arbitrarily uneven (V3, 4.5.3).

    It is not linear in the sums, so gradients over microbatches do not add up to that of the whole batch.
    """
    load = jax.lax.stop_gradient(load)
    frequency = load * load.shape[-1] / jnp.maximum(load.sum(axis=-1, keepdims=True), 1.0)
    probability = share / jnp.maximum(share.sum(axis=-1, keepdims=True), 1.0)
    return (frequency * probability).sum(axis=-1)


def update_bias(
    bias: Float[Array, "... E"], load: Float[Array, "... E"], rate, recentre: bool
) -> Float[Array, "... E"]:
    """bias + rate * sign(mean load - load): makes overloaded experts less likely, by the same step for any excess.

    `recentre` then subtracts the mean over experts, which changes no routing decision; DeepSeek's papers do not do so.
    """
    bias = bias + (rate * jnp.sign(load.mean(axis=-1, keepdims=True) - load)).astype(bias.dtype)
    return bias - bias.mean(axis=-1, keepdims=True) if recentre else bias


def update_biases(buffers: dict, loads: dict, rate, recentre: bool) -> dict:
    """Applies `update_bias` to every router that has a bias (topk_method noaux_tc); all others are unchanged.

    `loads`: each router's load_E, keyed as Output.routers.
    """
    flat, of_bias = flatten(buffers), {f"{block}/feed_forward/router/bias": load for block, load in loads.items()}
    moved = {path: update_bias(flat[path], load, rate, recentre) for path, load in of_bias.items() if path in flat}
    return unflatten(flat | moved)
