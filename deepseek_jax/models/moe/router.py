"""Routers: which experts a token goes to, and with what weight.

T tokens  D model  E experts  G groups  K experts per token  V vocabulary
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.remat import kept
from deepseek_jax.models.tree import Buffer, used, weight

# For each method that uses scores, how many of a group's best scores are summed into the group's score; 0: no groups.
BEST_OF_GROUP = {"greedy": 0, "group_limited_greedy": 1, "noaux_tc": 2}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Each token's experts and their weights; `scores` are kept for the balance loss.

    `dropped`: how many of the token's experts had no room for it; None if there is room for all.
    `own`: per-token statistics of a custom router, by name; metrics.jsonl has their means, as router/own/NAME.
    Outside the MoE layer, T is unflattened into [B S].
    """

    experts_TK: Int[Array, "T K"]
    weights_TK: Float[Array, "T K"]
    scores_TE: Float[Array, "T E"]
    dropped_T: Int[Array, "T"] | None = None
    own: dict[str, Float[Array, "T"]] = dataclasses.field(default_factory=dict)


class Router(nnx.Module):
    """What routers have in common.  Each is called with x_TD and tokens_T, the token ids, and returns a Routing.

    draws      in training it is given a third argument, a random key for each token
    by_scores  the scores decide which experts are chosen; else it has no balance loss, which could not change them
    """

    draws = False
    by_scores = True


class TopKRouter(Router):
    """Chooses the experts with the highest scores, within the best groups if there are groups.

    topk_method   greedy: the K best of all (MoE, V2-Lite); group_limited_greedy: ranks groups by their best expert (V2,
    section 2.2.2); noaux_tc: ranks groups by their two best, and adds a bias for the choice, not for the weight (V3,
    section 2.1.2; V4); round_robin: cycles through the experts whatever the scores, to time steps with even loads.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.kernel = _kernel(config, rngs)
        if config.topk_method == "noaux_tc":
            self.bias = Buffer(jnp.zeros((config.n_routed_experts,), jnp.float32), out_sharding=(None,))

    def __call__(self, x_TD: Float[Array, "T D"], tokens_T: Int[Array, "T"]) -> Routing:
        """`tokens_T`, the token ids, are ignored (HashRouter uses them)."""
        config = self.config
        scores_TE = scores(x_TD, used(self.kernel, jnp.float32), config.scoring_func)
        if config.topk_method == "round_robin":
            experts_TK = round_robin(*scores_TE.shape, config.num_experts_per_tok)
        else:
            experts_TK = kept(self._best(scores_TE))
        return Routing(experts_TK, weights(scores_TE, experts_TK, config), scores_TE)

    def _best(self, scores_TE):
        config, choice_TE = self.config, jax.lax.stop_gradient(scores_TE)
        if config.topk_method == "noaux_tc":
            choice_TE += self.bias[...]
        if best := BEST_OF_GROUP[config.topk_method]:
            choice_TE = keep_best_groups(choice_TE, config.n_group, config.topk_group, best)
        masked = config.masked_top_experts
        return jax.lax.top_k(choice_TE, masked + config.num_experts_per_tok)[1][:, masked:]


class HashRouter(Router):
    """Looks the experts up in a table by token id (arXiv:2106.04426); scores determine only the weights (V4)."""

    by_scores = False

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.kernel = _kernel(config, rngs)
        table = balanced_table(rngs.params(), config.vocab_size, config.n_routed_experts, config.num_experts_per_tok)
        self.table = Buffer(table, out_sharding=(None, None))

    def __call__(self, x_TD: Float[Array, "T D"], tokens_T: Int[Array, "T"]) -> Routing:
        scores_TE = scores(x_TD, used(self.kernel, jnp.float32), self.config.scoring_func)
        experts_TK = jnp.take(self.table[...], tokens_T, axis=0)
        return Routing(experts_TK, weights(scores_TE, experts_TK, self.config), scores_TE)


ROUTERS = {"moe": TopKRouter, "hash_moe": HashRouter}


def _kernel(config, rngs):
    shape = config.hidden_size, config.n_routed_experts
    return weight(rngs.params(), shape, ("embed", None), config.initializer_range)  # every device scores all experts


def scores(x_TD: Float[Array, "T D"], kernel_DE: Float[Array, "D E"], scoring_func: str) -> Float[Array, "T E"]:
    """Each expert's affinity, SCORES[scoring_func](x kernel), in float32 whatever x's dtype.

    The product needs full precision: with the kernel rounded to bfloat16, as TPUs do by default, one token in 60 would
    get other experts (V3's sizes, 8 of 256, random kernel).
    """
    logits_TE = jnp.matmul(x_TD.astype(jnp.float32), kernel_DE, precision="highest")
    return SCORES[scoring_func](logits_TE)


def sqrt_softplus(logits_TE: Float[Array, "T E"]) -> Float[Array, "T E"]:
    # Where softplus underflows to 0, the square root's derivative would be infinite and the gradient NaN.
    return jnp.sqrt(jnp.maximum(jax.nn.softplus(logits_TE), jnp.finfo(jnp.float32).tiny))


SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid, "sqrtsoftplus": sqrt_softplus}


def weights(scores_TE: Float[Array, "T E"], experts_TK: Int[Array, "T K"], config: ModelConfig) -> Float[Array, "T K"]:
    """The chosen experts' scores, normalised to sum to 1 if `norm_topk_prob`, times `routed_scaling_factor`."""
    weights_TK = jnp.take_along_axis(scores_TE, experts_TK, axis=-1)
    if config.norm_topk_prob:
        weights_TK /= weights_TK.sum(axis=-1, keepdims=True) + 1e-20
    return weights_TK * config.routed_scaling_factor


def round_robin(tokens: int, num_experts: int, per_token: int) -> Int[Array, "T K"]:
    """Gives each of a device's tokens the next K experts in turn, so that loads differ by at most one."""
    return (jnp.arange(tokens * per_token, dtype=jnp.int32) % num_experts).reshape(tokens, per_token)


def keep_best_groups(choice_TE: Float[Array, "T E"], n_group: int, topk_group: int, best: int) -> Float[Array, "T E"]:
    """Keeps the `topk_group` groups with the highest sums of their `best` top experts; sets all others to -inf.

    DeepSeek-V2's code uses 0 instead of -inf, which is equivalent as long as no score underflows.
    """
    if topk_group == n_group:
        return choice_TE
    choice_TGe = choice_TE.reshape(choice_TE.shape[0], n_group, -1)
    group_TG = jax.lax.top_k(choice_TGe, best)[0].sum(axis=-1)
    kept = jax.nn.one_hot(jax.lax.top_k(group_TG, topk_group)[1], n_group, dtype=bool).any(axis=1)
    return jnp.where(kept[:, :, None], choice_TGe, -jnp.inf).reshape(choice_TE.shape)


def balanced_table(key: Array, vocab_size: int, num_experts: int, per_token: int) -> Int[Array, "V K"]:
    """A table of K different experts for every token id, in which every expert occurs equally often.

    Token ids are shuffled first, as neighbouring ones have similar frequencies, then divided into rounds of E.  In each
    round, token i gets the experts i + d_k (mod E) for K random distances d_k.  So every expert serves K tokens of each
    round, together with different experts in different rounds.  Released checkpoints contain tables of their own.
    """
    shuffle, draw = jax.random.split(key)
    place_V = jax.random.permutation(shuffle, vocab_size)
    rounds = jax.random.split(draw, -(-vocab_size // num_experts))
    distances_RK = jax.vmap(lambda key: jax.random.permutation(key, num_experts)[:per_token])(rounds)
    return ((place_V % num_experts)[:, None] + distances_RK[place_V // num_experts]) % num_experts
