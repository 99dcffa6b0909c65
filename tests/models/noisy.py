"""A custom router that draws random numbers: `TopKRouter` with noise added to the scores it chooses by in training."""

import jax
import jax.numpy as jnp

from deepseek_jax.models.moe.router import Routing, TopKRouter, scores, weights
from deepseek_jax.models.tree import used


class NoisyRouter(TopKRouter):
    draws = True

    def __call__(self, x_TD, tokens_T, keys_T=None):
        config = self.config
        scores_TE = scores(x_TD, used(self.kernel, jnp.float32), config.scoring_func)
        choice_TE = scores_TE
        if keys_T is not None:
            choice_TE += jax.vmap(lambda key: jax.random.normal(key, scores_TE.shape[1:]))(keys_T)
        experts_TK = self._best(choice_TE)
        told = {"first": experts_TK[:, 0].astype(scores_TE.dtype)}
        return Routing(experts_TK, weights(scores_TE, experts_TK, config), scores_TE, own=told)
