"""The router against plain loops: groups, biases, weights, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.moe.balance import report, update_bias
from deepseek_jax.models.moe.router import Router, Routing, keep_best_groups
from deepseek_jax.models.tree import merge, split

E, K, D, T = 12, 3, 16, 50


def _config(**changes):
    sizes = {"n_routed_experts": E, "num_experts_per_tok": K, "n_group": 4, "topk_group": 2, "initializer_range": 0.5}
    return ModelConfig(hidden_size=D, **sizes | changes)


def _route(config, bias, x):
    graphdef, params, buffers = split(Router(config, rngs=nnx.Rngs(params=0)))
    return merge(graphdef, params, {"bias": jnp.asarray(bias, jnp.float32)})(x), np.asarray(params["kernel"])


def _reference(x, kernel, bias, config, masked=-np.inf):
    """(sorted experts, their weights) of one token, as section 2.1.2 of the V3 report words it."""
    scores = 1 / (1 + np.exp(-(x @ kernel)))
    choice = (scores + bias).reshape(config.n_group, -1)
    best = np.argsort([-np.sort(group)[-2:].sum() for group in choice])[: config.topk_group]
    for group in set(range(config.n_group)) - set(best.tolist()):
        choice[group] = masked
    experts = np.sort(np.argsort(-choice.reshape(-1), kind="stable")[: config.num_experts_per_tok])
    weights = scores[experts] / (scores[experts].sum() if config.norm_topk_prob else 1)
    return experts, weights * config.routed_scaling_factor


@pytest.mark.parametrize("changes", [{}, {"norm_topk_prob": False}, {"n_group": 1, "topk_group": 1}, {"topk_group": 4}])
def test_choice_and_weights(changes):
    config, rng = _config(**changes), np.random.default_rng(0)
    x, bias = rng.normal(size=(T, D)), rng.normal(-0.6, 0.4, size=E)
    routing, kernel = _route(config, bias, jnp.asarray(x, jnp.float32))
    order = np.argsort(routing.experts_TK, axis=1)
    for token in range(T):
        experts, weights = _reference(x[token], kernel, bias, config)
        np.testing.assert_array_equal(np.asarray(routing.experts_TK)[token][order[token]], experts)
        np.testing.assert_allclose(np.asarray(routing.weights_TK)[token][order[token]], weights, rtol=1e-5)


def test_masked_experts_lose_against_negative_scores():
    """With every score + bias below 0, masking other groups by 0 would choose from them."""
    config, rng = _config(), np.random.default_rng(1)
    x, bias = rng.normal(size=(T, D)), rng.normal(-3.0, 0.4, size=E)
    routing, kernel = _route(config, bias, jnp.asarray(x, jnp.float32))
    assert (np.asarray(routing.scores_TE) + bias < 0).all()
    right, wrong = (
        np.stack([_reference(token, kernel, bias, config, masked)[0] for token in x]) for masked in (-np.inf, 0.0)
    )
    np.testing.assert_array_equal(np.sort(routing.experts_TK, axis=1), right)
    assert (right != wrong).any(axis=1).all()


def test_groups_are_scored_by_their_two_best():
    """Group 1 has the best expert; groups 0 and 2 have the two best together."""
    choice = jnp.asarray([[0.6, 0.6, 0.0, 0.9, 0.1, 0.0, 0.7, 0.5, 0.0, 0.3, 0.2, 0.1]])
    kept = np.isfinite(keep_best_groups(choice, n_group=4, topk_group=2)[0])
    assert kept.tolist() == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3


def test_gradients_pass_through_the_weights_only():
    """The choice has no gradient, so the bias gets none; the scores of the chosen do."""
    config = _config()
    graphdef, params, buffers = split(Router(config, rngs=nnx.Rngs(params=0)))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(T, D)), jnp.float32)

    def first_weight(params, buffers):
        return merge(graphdef, params, buffers)(x).weights_TK[:, 0].sum()

    to_params, to_buffers = jax.grad(first_weight, argnums=(0, 1))(params, buffers)
    assert np.abs(to_params["kernel"]).max() > 0
    np.testing.assert_array_equal(to_buffers["bias"], 0)


def test_balance_loss_and_load_count_only_what_counts():
    """Equations 17 to 20, a sequence at a time, over the tokens that count."""
    rng, lengths = np.random.default_rng(3), [7, 4]
    scores = rng.uniform(0.1, 0.9, size=(2, 7, E))
    experts = np.argsort(-scores, axis=-1)[..., :K]
    counted = np.arange(7) < np.asarray(lengths)[:, None]
    routing = Routing(jnp.asarray(experts.reshape(14, K)), None, jnp.asarray(scores.reshape(14, E), jnp.float32))
    ours = report(routing, jnp.asarray(counted))
    load, balance = np.zeros(E), 0.0
    for row, length in enumerate(lengths):
        count = np.bincount(experts[row, :length].reshape(-1), minlength=E)
        share = scores[row, :length] / scores[row, :length].sum(axis=-1, keepdims=True)
        balance += (count * E / (K * length) * share.mean(axis=0)).sum()
        load += count
    np.testing.assert_allclose(ours.load_E, load)
    np.testing.assert_allclose(ours.balance, balance, rtol=1e-5)


def test_bias_moves_against_the_load_by_its_sign():
    bias, load = jnp.asarray([0.0, 0.5, -0.5, 0.0]), jnp.asarray([100.0, 1.0, 30.0, 29.0])
    np.testing.assert_allclose(
        update_bias(bias, load, 0.001, recentre=False), [-0.001, 0.501, -0.499, 0.001], rtol=1e-5
    )
    np.testing.assert_allclose(update_bias(bias, load, 0.1, recentre=True).mean(), 0.0, atol=1e-7)
    np.testing.assert_array_equal(update_bias(bias, jnp.full(4, 7.0), 0.001, recentre=False), bias)
