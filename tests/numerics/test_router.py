"""The routers against plain loops: scores, groups, biases, the hash table, weights, gradients, balance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models import checks
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.moe.balance import report, update_bias, update_biases
from deepseek_jax.models.moe.router import (
    HashRouter,
    Routing,
    TopKRouter,
    balanced_table,
    keep_best_groups,
    scores,
    weights,
)
from deepseek_jax.models.tree import merge, split

E, K, D, T = 12, 3, 16, 50
TOKENS = jnp.arange(T)
SOFTMAX = {"scoring_func": "softmax", "norm_topk_prob": False}
GENERATIONS = [
    SOFTMAX | {"topk_method": "greedy", "n_group": 5, "routed_scaling_factor": 1.0},  # MoE-16B, V2-Lite: no groups
    SOFTMAX | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},  # V2
    {},  # V3
    {"scoring_func": "sqrtsoftplus", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5},  # V4
    {"norm_topk_prob": False},
    {"topk_group": 4},
]


def _config(**changes):
    sizes = {"n_routed_experts": E, "num_experts_per_tok": K, "n_group": 4, "topk_group": 2, "initializer_range": 0.5}
    return ModelConfig(hidden_size=D, **sizes | changes)


def _route(config, x, bias=None):
    graphdef, params, buffers = split(TopKRouter(config, rngs=nnx.Rngs(params=0)))
    assert (config.topk_method == "noaux_tc") == ("bias" in buffers)
    buffers = {"bias": jnp.asarray(bias, jnp.float32)} if buffers else {}
    return merge(graphdef, params, buffers)(jnp.asarray(x, jnp.float32), TOKENS), np.asarray(params["kernel"])


def _scores(logits, scoring_func):
    if scoring_func == "softmax":
        return np.exp(logits) / np.exp(logits).sum()
    return 1 / (1 + np.exp(-logits)) if scoring_func == "sigmoid" else np.sqrt(np.log1p(np.exp(logits)))


def _reference(x, kernel, bias, config, masked=-np.inf):
    """(sorted experts, their weights) of one token, following the papers step by step."""
    affinity = _scores(x @ kernel, config.scoring_func)
    choice = affinity + (bias if config.topk_method == "noaux_tc" else 0)
    if config.topk_method != "greedy":
        best = 2 if config.topk_method == "noaux_tc" else 1
        choice = choice.reshape(config.n_group, -1)
        kept = np.argsort([-np.sort(group)[-best:].sum() for group in choice])[: config.topk_group]
        for group in set(range(config.n_group)) - set(kept.tolist()):
            choice[group] = masked
    experts = np.sort(np.argsort(-choice.reshape(-1), kind="stable")[: config.num_experts_per_tok])
    weights = affinity[experts] / (affinity[experts].sum() if config.norm_topk_prob else 1)
    return experts, weights * config.routed_scaling_factor


@pytest.mark.parametrize("changes", GENERATIONS)
def test_routers_of_each_generation_choose_and_weigh_as_in_the_papers(changes):
    config, rng = _config(**changes), np.random.default_rng(0)
    x, bias = rng.normal(size=(T, D)), rng.normal(-0.6, 0.4, size=E)
    routing, kernel = _route(config, x, bias)
    order = np.argsort(routing.experts_TK, axis=1)
    for token in range(T):
        experts, weights = _reference(x[token], kernel, bias, config)
        np.testing.assert_array_equal(np.asarray(routing.experts_TK)[token][order[token]], experts)
        np.testing.assert_allclose(np.asarray(routing.weights_TK)[token][order[token]], weights, rtol=1e-5)


@pytest.mark.parametrize(("known", "field"), [("SCORING", "scoring_func"), ("TOPK", "topk_method")])
def test_a_listed_name_without_an_implementation_raises_a_key_error(known, field, monkeypatch):
    monkeypatch.setattr(f"deepseek_jax.models.checks.{known}", ("forgotten", *getattr(checks, known)))
    with pytest.raises(KeyError, match="forgotten"):
        _route(_config(**{field: "forgotten"}), np.ones((T, D)), np.zeros(E))


def test_masked_experts_lose_against_negative_scores():
    """Where every score + bias is negative, masking the other groups with 0 would choose from them."""
    config, rng = _config(), np.random.default_rng(1)
    x, bias = rng.normal(size=(T, D)), rng.normal(-3.0, 0.4, size=E)
    routing, kernel = _route(config, x, bias)
    assert (np.asarray(routing.scores_TE) + bias < 0).all()
    right, wrong = (
        np.stack([_reference(token, kernel, bias, config, masked)[0] for token in x]) for masked in (-np.inf, 0.0)
    )
    np.testing.assert_array_equal(np.sort(routing.experts_TK, axis=1), right)
    assert (right != wrong).any(axis=1).all()


@pytest.mark.parametrize("best, kept_groups", [(1, [0, 1, 0, 1]), (2, [1, 0, 1, 0])])
def test_groups_are_scored_by_their_best(best, kept_groups):
    """Groups 1 and 3 have the best single experts; groups 0 and 2 have the best sums of two."""
    choice = jnp.asarray([[0.6, 0.6, 0.0, 0.9, 0.1, 0.0, 0.7, 0.5, 0.0, 0.8, 0.2, 0.1]])
    kept = np.isfinite(keep_best_groups(choice, n_group=4, topk_group=2, best=best)[0])
    np.testing.assert_array_equal(kept, np.repeat(kept_groups, 3))


@pytest.mark.parametrize("logit", [-200.0, -50.0, 0.0, 200.0])
def test_the_square_root_of_softplus_has_a_finite_gradient(logit):
    value, slope = jax.value_and_grad(lambda x: scores(x, jnp.ones((1, 1)), "sqrtsoftplus")[0, 0])(
        jnp.full((1, 1), logit)
    )
    np.testing.assert_allclose(value, np.sqrt(np.logaddexp(0.0, logit)), rtol=1e-5, atol=1e-15)
    assert np.isfinite(slope).all()


def test_hash_router_looks_experts_up_and_weighs_them_by_score():
    config = _config(scoring_func="sqrtsoftplus", vocab_size=40, routed_scaling_factor=1.5)
    x, tokens = np.random.default_rng(4).normal(size=(T, D)), np.arange(T) % 7
    router = HashRouter(config, rngs=nnx.Rngs(params=0))
    routing = router(jnp.asarray(x, jnp.float32), jnp.asarray(tokens))
    np.testing.assert_array_equal(routing.experts_TK, np.asarray(router.table[...])[tokens])
    for token, experts in enumerate(np.asarray(routing.experts_TK)):
        chosen = _scores(x[token] @ np.asarray(router.kernel[...]), "sqrtsoftplus")[experts]
        np.testing.assert_allclose(routing.weights_TK[token], 1.5 * chosen / chosen.sum(), rtol=1e-4)


@pytest.mark.parametrize("vocabulary, experts, per_token", [(96, 12, 3), (1000, 7, 7), (5, 8, 2)])
def test_table_gives_every_expert_equally_many_tokens(vocabulary, experts, per_token):
    table = np.asarray(balanced_table(jax.random.key(0), vocabulary, experts, per_token))
    assert table.shape == (vocabulary, per_token) and table.dtype == np.int32
    assert all(len(set(row)) == per_token for row in table.tolist())
    whole_rounds = vocabulary // experts * per_token
    uses = np.bincount(table.reshape(-1), minlength=experts)
    assert whole_rounds <= uses.min() and uses.max() <= whole_rounds + per_token
    if vocabulary == 96:  # experts are combined anew in each round: far more sets than the 12 of fixed neighbours
        assert len({frozenset(row) for row in table.tolist()}) > 40


def test_neighbouring_tokens_do_not_get_neighbouring_experts():
    table = np.asarray(balanced_table(jax.random.key(0), 1024, 32, 2))
    assert (table[1:] == (table[:-1] + 1) % 32).all(axis=1).mean() < 0.1  # in a table filled in order nearly all would


def test_scores_are_computed_in_float32_for_bfloat16_activations():
    """The kernels of the two experts would be equal in bfloat16."""
    kernel = jnp.array([[1.0, 1.0 + 2**-12]])
    found = scores(jnp.ones((1, 1), jnp.bfloat16), kernel, "sigmoid")
    assert found.dtype == jnp.float32 and found[0, 0] < found[0, 1]


def test_gradients_pass_through_the_weights_only():
    """The choice has no gradient, so the bias gets none; the scores of the chosen do."""
    config = _config()
    graphdef, params, buffers = split(TopKRouter(config, rngs=nnx.Rngs(params=0)))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(T, D)), jnp.float32)

    def first_weight(params, buffers):
        return merge(graphdef, params, buffers)(x, TOKENS).weights_TK[:, 0].sum()

    to_params, to_buffers = jax.grad(first_weight, argnums=(0, 1))(params, buffers)
    assert np.abs(to_params["kernel"]).max() > 0
    np.testing.assert_array_equal(to_buffers["bias"], 0)


def test_the_balance_loss_of_even_choices_is_one_even_with_empty_places():
    """As with a router that takes fewer experts where it is sure: half of the K places are empty (expert E)."""
    experts = np.arange(12).reshape(12, 1) % E
    full = Routing(jnp.asarray(experts), jnp.ones((12, 1)), jnp.ones((12, E)))
    empty = dataclasses.replace(
        full,
        experts_TK=jnp.asarray(np.concatenate([experts, np.full((12, 1), E)], axis=1)),
        weights_TK=jnp.asarray([[1.0, 0.0]] * 12),
    )
    for routing in (full, empty):
        np.testing.assert_allclose(report(routing, jnp.ones((1, 12), bool)).balance, 1, rtol=1e-6)


def test_balance_loss_and_loads_exclude_uncounted_tokens():
    """DeepSeek-V3's equations 17 to 20, for each sequence over the tokens that count."""
    rng, lengths = np.random.default_rng(3), [7, 4]
    scores = rng.uniform(0.1, 0.9, size=(2, 7, E))
    experts = np.argsort(-scores, axis=-1)[..., :K]
    counted = np.arange(7) < np.asarray(lengths)[:, None]
    weights = 2.5 * rng.uniform(0.1, 1.0, size=(14, K))  # only their shares matter
    routing = Routing(
        jnp.asarray(experts.reshape(14, K)), jnp.asarray(weights), jnp.asarray(scores.reshape(14, E), jnp.float32)
    )
    dropped = rng.integers(0, K, 14)
    ours = report(dataclasses.replace(routing, dropped_T=jnp.asarray(dropped)), jnp.asarray(counted))
    load, gate, balance = np.zeros(E), np.zeros(E), 0.0
    for row, length in enumerate(lengths):
        count = np.bincount(experts[row, :length].reshape(-1), minlength=E)
        share = scores[row, :length] / scores[row, :length].sum(axis=-1, keepdims=True)
        balance += (count * E / (K * length) * share.mean(axis=0)).sum()
        load += count
        shares = (weights / weights.sum(axis=-1, keepdims=True)).reshape(2, 7, K)[row, :length]
        gate += np.bincount(experts[row, :length].reshape(-1), weights=shares.reshape(-1), minlength=E)
    np.testing.assert_allclose(ours.load_E, load)
    np.testing.assert_allclose(ours.gate_E, gate, rtol=1e-5)
    np.testing.assert_allclose(ours.balance, balance, rtol=1e-5)
    share_TE = scores[counted] / scores[counted].sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(ours.share_E, share_TE.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(ours.entropy, -(share_TE * np.log(share_TE)).sum(), rtol=1e-5)
    assert ours.dropped == dropped.reshape(2, 7)[counted].sum()


def test_loads_gates_and_entropy_have_no_gradient():
    scores, weights = jnp.asarray([[0.6, 0.1, 0.3], [0.2, 0.1, 0.4]]), jnp.asarray([[0.5, 0.3], [0.7, 0.2]])

    def looked_at(scores, weights):
        found = report(Routing(jnp.asarray([[0, 1], [2, 1]]), weights, scores), jnp.ones((1, 2), bool))
        return found.load_E[0] + found.gate_E[0] + found.entropy

    for gradient in jax.grad(looked_at, argnums=(0, 1))(scores, weights):
        np.testing.assert_array_equal(gradient, 0)


def test_scores_that_underflow_to_zero_give_zero_weights_not_nan():
    scores, experts = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), jnp.asarray([[0], [1]])
    weights_TK = weights(scores, experts, _config(num_experts_per_tok=1, routed_scaling_factor=2.0))
    assert weights_TK.tolist() == [[2.0], [0.0]]
    ours = report(Routing(experts, weights_TK, scores), jnp.ones((1, 2), bool))
    assert (ours.gate_E.tolist(), ours.share_E.tolist(), float(ours.entropy)) == ([1, 0, 0], [1, 0, 0], 0)


def test_bias_moves_by_the_sign_of_the_load_error():
    bias, load = jnp.asarray([0.0, 0.5, -0.5, 0.0]), jnp.asarray([100.0, 1.0, 30.0, 29.0])
    np.testing.assert_allclose(
        update_bias(bias, load, 0.001, recentre=False), [-0.001, 0.501, -0.499, 0.001], rtol=1e-5
    )
    two = jnp.stack([bias, bias + 1])  # a stack of two layers, each with its own mean
    np.testing.assert_allclose(update_bias(two, load, 0.1, recentre=True).mean(axis=-1), [0.0, 0.0], atol=1e-7)
    np.testing.assert_array_equal(update_bias(bias, jnp.full(4, 7.0), 0.001, recentre=False), bias)


def test_only_routers_with_a_bias_are_updated():
    """The buffers are those of a model; routers without a bias have no entry or another one."""
    router = {"feed_forward": {"router": {"bias": jnp.zeros((2, 4))}}}
    table = {"feed_forward": {"router": {"table": jnp.zeros((1, 9, 2), jnp.int32)}}}
    buffers = {"layers": {"1-1": table, "2-3": router}, "mtp": {"0": {"block": jax.tree.map(lambda x: x[0], router)}}}
    load = jnp.asarray([4.0, 0.0, 1.0, 1.0])
    loads = {"layers/0-0": load[None], "layers/1-1": load[None], "layers/2-3": jnp.stack([load, -load])}
    loads["mtp/0/block"] = load
    updated = update_biases(buffers, loads, 0.1, recentre=False)
    assert jax.tree.structure(updated) == jax.tree.structure(buffers)
    step = np.asarray([-0.1, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(updated["layers"]["2-3"]["feed_forward"]["router"]["bias"], [step, -step], rtol=1e-6)
    np.testing.assert_allclose(updated["mtp"]["0"]["block"]["feed_forward"]["router"]["bias"], step, rtol=1e-6)
    assert updated["layers"]["1-1"] == buffers["layers"]["1-1"]
    assert update_biases({}, loads, 0.1, recentre=False) == {}


def test_round_robin_gives_every_expert_the_same_load_and_weighs_by_the_scores():
    config = _config(topk_method="round_robin", n_group=5)
    x = np.random.default_rng(0).normal(size=(2 * E, D))
    routing, kernel = _route(config, x)
    assert np.bincount(np.asarray(routing.experts_TK).reshape(-1), minlength=E).tolist() == [2 * K] * E
    assert all(len(set(row)) == K for row in np.asarray(routing.experts_TK).tolist())
    affinity = np.take_along_axis(_scores(x @ kernel, "sigmoid"), np.asarray(routing.experts_TK), axis=1)
    expected = affinity / affinity.sum(axis=1, keepdims=True) * config.routed_scaling_factor
    np.testing.assert_allclose(routing.weights_TK, expected, rtol=1e-5)


def test_shares_are_normalised_per_token():
    """Scores are normalised per token, so one whose scores are all high weighs no more in the batch-wise loss."""
    scores = jnp.asarray([[0.2, 0.1, 0.1], [0.9, 0.0, 0.9]])
    ours = report(Routing(jnp.asarray([[0], [2]]), jnp.ones((2, 1)), scores), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(ours.share_E, [0.5 + 0.5, 0.25, 0.25 + 0.5], rtol=1e-6)
