"""The search for the first non-finite number, on a stack of layers under jax.lax.scan and jax.checkpoint."""

import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.train.nonfinite import Origin, bad_parameter, find_origin

LAYERS, WIDTH = 4, 3


def loss(params, x):
    def layer(x, weights):
        with jax.named_scope("attention"):
            x = jnp.tanh(x @ weights["attention"])
        with jax.named_scope("feed_forward"):
            return x + jnp.sqrt(jnp.abs(x @ weights["feed_forward"])), None

    with jax.named_scope("layers"):
        x, _ = jax.lax.scan(jax.checkpoint(layer), x, params)
    masked = jnp.where(jnp.arange(WIDTH) < 2, x, -jnp.inf)  # -inf before a softmax is intended
    return jax.nn.log_softmax(masked)[:, :2].sum()


@pytest.fixture
def params():
    shape = (LAYERS, WIDTH, WIDTH)
    return {name: jax.random.normal(jax.random.key(0), shape) for name in ("attention", "feed_forward")}


X = jnp.ones((2, WIDTH))
gradient = jax.value_and_grad(loss)


def test_nothing_is_found_where_everything_is_finite(params):
    assert find_origin(gradient, params, X) is None
    assert bad_parameter(params) is None


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_overflow_in_one_layer_of_a_stack_is_named(params, layer):
    params["feed_forward"] = params["feed_forward"].at[layer].mul(3e38)
    origin = find_origin(gradient, params, X)
    assert origin.scope == f"layers[{layer}]/feed_forward"
    assert origin.operation == "dot_general"
    assert "test_nonfinite.py" in origin.source


def test_a_non_finite_gradient_is_located_though_the_loss_is_finite(params):
    params["feed_forward"] = params["feed_forward"].at[1].set(0)  # the square root has an infinite slope at 0
    assert jnp.isfinite(loss(params, X))
    assert find_origin(gradient, params, X).scope == "layers[1]/feed_forward"


def test_a_bad_parameter_is_named_with_its_layer(params):
    params["attention"] = params["attention"].at[2, 0, 1].set(jnp.nan)
    assert bad_parameter(params) == "attention[2]"
    assert find_origin(gradient, params, X).scope == "layers[2]/attention"


def test_the_search_enters_jitted_calls():
    def calls(x):
        with jax.named_scope("outer"):
            return jax.jit(lambda x: jnp.log(x - 2))(x)

    origin = find_origin(calls, X)
    assert (origin.scope, origin.operation) == ("outer", "log")


def test_a_scan_that_runs_backward_is_searched_backward():
    """The third iteration takes the logarithm of -0.5; as the scan runs from index 3 down, it has index 1."""

    def count_down(start):
        return jax.lax.scan(lambda x, _: (x - 1, jnp.log(x)), start, jnp.zeros(4), reverse=True)

    assert find_origin(count_down, jnp.float32(1.5)).scope == "scan[1]"


def test_an_origin_of_which_jax_knows_no_line_is_said_without_one():
    """As of a product in the gradient of attention to picked keys."""
    assert str(Origin("layers[1]/dsa", "mul", "")) == "mul in layers[1]/dsa"
    assert str(Origin("", "mul", "loss.py:3")) == "mul in the loss (loss.py:3)"
