"""`trace` with edits.  What it records is compared with other programs' numbers in numerics/test_oracle.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepseek_jax
from deepseek_jax.errors import UserError
from deepseek_jax.models.decoder import initialise
from tests.train import tiny

HERE, THERE = np.arange(1, 13).reshape(2, 6), np.arange(20, 32).reshape(2, 6)


@pytest.fixture(scope="module", params=[0, 2], ids=["plain", "streams"])
def model(request):
    config = dataclasses.replace(tiny.MOE, hc_mult=request.param, num_nextn_predict_layers=1)
    return deepseek_jax.Model(config, *initialise(config, jax.random.key(0)))


def at(place, change):
    """An edit that applies `change` to the state after `place` ("attention" or "feed_forward") of the last layer."""
    last = tiny.MOE.num_hidden_layers - 1
    return lambda layer, where, x: change(x) if (layer, where) == (last, place) else x


def test_edit_is_called_for_each_place_in_order_and_returning_x_changes_nothing(model):
    seen = []
    found = deepseek_jax.trace(model, HERE, edit=lambda *where_x: seen.append(where_x[:2]) or where_x[2])
    layers = range(model.config.num_hidden_layers)
    assert seen == [(-1, "embedding"), *((layer, place) for layer in layers for place in ("attention", "feed_forward"))]
    np.testing.assert_allclose(found.logits, model(HERE).logits, rtol=1e-5, atol=1e-5)


def test_states_are_shown_with_each_stream_apart(model):
    shape = (*HERE.shape, *(model.config.hc_mult,) * bool(model.config.hc_mult), model.config.hidden_size)
    shapes = []
    found = deepseek_jax.trace(model, HERE, edit=lambda layer, where, x: shapes.append(x.shape) or x)
    assert {*shapes, *(x.shape for x in (found.embedding, *found.attention, *found.feed_forward))} == {shape}


def test_a_patched_state_flows_on_to_the_logits(model):
    other = deepseek_jax.trace(model, THERE)
    last, row = len(other.attention) - 1, np.s_[1]
    patched = deepseek_jax.trace(model, HERE, edit=at("attention", lambda x: x.at[row].set(other.attention[last][row])))
    np.testing.assert_allclose(patched.logits[row], other.logits[row], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(patched.feed_forward[last][row], other.feed_forward[last][row], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(patched.logits[0], model(HERE).logits[0], rtol=1e-5, atol=1e-5)


def test_values_captured_by_an_edit_may_be_traced(model):
    def first_logit(scale):
        return deepseek_jax.trace(model, HERE, edit=at("feed_forward", lambda x: x * scale)).logits[0, -1, 0]

    whole = jax.jit(first_logit)(1.0)
    np.testing.assert_allclose(whole, model(HERE).logits[0, -1, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(first_logit)(jnp.ones(2)), whole, rtol=1e-5, atol=1e-5)
    slope = (first_logit(1.01) - first_logit(0.99)) / 0.02
    np.testing.assert_allclose(jax.grad(first_logit)(1.0), slope, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("given", "named"), [(lambda x: None, "None"), (lambda x: x[:1], r"an array \(1, ")])
def test_an_edit_that_returns_another_shape_or_nothing_is_refused(model, given, named):
    with pytest.raises(UserError, match=f"edit returned {named}.* for layer 1, attention; its shape must be that of x"):
        deepseek_jax.trace(model, HERE, edit=at("attention", given))


def test_the_experts_of_each_token_are_beside_their_weights_and_all_scores(model):
    (chosen,) = deepseek_jax.trace(model, HERE).routing.values()
    config = model.config
    assert chosen.experts.shape == chosen.weights.shape == (*HERE.shape, config.num_experts_per_tok)
    assert chosen.scores.shape == (*HERE.shape, config.n_routed_experts) and chosen.own == {}
    gates = np.take_along_axis(np.asarray(chosen.scores), np.asarray(chosen.experts), axis=-1)
    expected = config.routed_scaling_factor * gates / gates.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(chosen.weights, expected, rtol=1e-5)
