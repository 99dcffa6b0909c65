"""The sigmoid router of DeepSeek-V3: which experts a token goes to, and with what weight (V3, section 2.1.2).

T tokens  D model  E experts  G groups  K experts a token
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.tree import Buffer, weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """The choice for each token; `scores` are kept for the balance loss."""

    experts_TK: Int[Array, "T K"]
    weights_TK: Float[Array, "T K"]
    scores_TE: Float[Array, "T E"]


class Router(nnx.Module):
    """Scores every expert in float32; the bias takes part in the choice and never in the weight."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape, axes = (config.hidden_size, config.n_routed_experts), ("embed", "experts")
        self.kernel = weight(rngs.params(), shape, axes, config.initializer_range)
        self.bias = Buffer(jnp.zeros((config.n_routed_experts,), jnp.float32), out_sharding=("experts",))

    def __call__(self, x_TD: Float[Array, "T D"]) -> Routing:
        config = self.config
        scores_TE = jax.nn.sigmoid(x_TD.astype(jnp.float32) @ self.kernel[...])
        choice_TE = jax.lax.stop_gradient(scores_TE + self.bias[...])
        experts_TK = jax.lax.top_k(
            keep_best_groups(choice_TE, config.n_group, config.topk_group), config.num_experts_per_tok
        )[1]
        weights_TK = jnp.take_along_axis(scores_TE, experts_TK, axis=-1)
        if config.norm_topk_prob:
            weights_TK /= weights_TK.sum(axis=-1, keepdims=True) + 1e-20
        return Routing(experts_TK, weights_TK * config.routed_scaling_factor, scores_TE)


def keep_best_groups(choice_TE: Float[Array, "T E"], n_group: int, topk_group: int) -> Float[Array, "T E"]:
    """Leaves the `topk_group` groups whose two best experts score highest together; all others become -inf."""
    if topk_group == n_group:
        return choice_TE
    choice_TGe = choice_TE.reshape(choice_TE.shape[0], n_group, -1)
    group_TG = jax.lax.top_k(choice_TGe, 2)[0].sum(axis=-1)
    kept = jax.nn.one_hot(jax.lax.top_k(group_TG, topk_group)[1], n_group, dtype=bool).any(axis=1)
    return jnp.where(kept[:, :, None], choice_TGe, -jnp.inf).reshape(choice_TE.shape)
