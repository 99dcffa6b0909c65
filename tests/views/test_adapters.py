"""Low-rank adapters: the algebra of merging, and DoRA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.tune.config import LoraConfig
from deepseek_jax.views import lora
from deepseek_jax.views.matrices import matrix_of

PATHS = {  # one parameter of each geometry: outputs by head, fused experts, inputs by head, a convolution
    "layers/0-1/attention/q": (2, 6, 2, 4),
    "layers/0-1/feed_forward/experts/gate": (2, 3, 6, 8),
    "layers/0-1/attention/out": (2, 2, 4, 6),
    "convolution/blocks/0/convolutions/0/kernel": (3, 3, 4, 8),
}


def some(config: LoraConfig, seed: int = 0) -> tuple[dict, dict]:
    """(weights, adapters without zeros), both by path."""
    draw = np.random.default_rng(seed)
    weights = {path: jnp.asarray(draw.normal(size=shape), jnp.float32) for path, shape in PATHS.items()}
    adapters = {path: lora.new_adapter(config, path, weight, seed) for path, weight in weights.items()}
    for adapter in adapters.values():
        adapter["b"] = jnp.asarray(draw.normal(size=adapter["b"].shape), jnp.float32)
    return weights, adapters


@pytest.mark.parametrize("path, shape", [("layers/0-1/attention/q", (2, 64, 4, 4)), ("head", (16, 64))])
def test_new_adapters_begin_as_in_peft(path, shape):
    """Kaiming's uniform distribution with a = sqrt(5): up to 1 / sqrt(inputs).  The other factor is zero."""
    adapter = lora.new_adapter(LoraConfig(rank=8), path, jnp.zeros(shape), seed=0)
    bound = shape[-3 if len(shape) > 2 else 0] ** -0.5
    assert 0.97 * bound < jnp.abs(adapter["a"]).max() <= bound and abs(adapter["a"].mean()) < 0.1 * bound
    assert not adapter["b"].any()


def test_merging_adds_each_layers_and_experts_own_product():
    config = LoraConfig(rank=1, alpha=3.0)
    weights, adapters = some(config)
    for path, weight in weights.items():
        matrix, adapter = matrix_of(path, weight.ndim), adapters[path]
        expected = matrix.fold(np.asarray(weight, np.float64))
        for n, each in enumerate(expected):
            a = np.asarray(adapter["a"], np.float64).reshape(len(expected), -1, 1)[n]
            b = np.asarray(adapter["b"], np.float64).reshape(len(expected), 1, -1)[n]
            each += 3.0 * a @ b
        got = matrix.fold(np.asarray(lora.merged(weight, adapter, path, config)))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_unmerging_restores_weights_up_to_the_rounding_of_two_sums():
    config = LoraConfig(rank=1)
    weights, adapters = some(config)
    merged = lora.merge(tree.unflatten(dict(weights)), adapters, config)
    back, there = (tree.by_path(each) for each in (lora.unmerge(merged, adapters, config), tree.by_path(merged)))
    for path, weight in weights.items():
        bound = 2.0**-24 * (np.abs(weight) + np.abs(there[path]) + 1e-30) * 1.0001
        assert (np.abs(np.asarray(back[path]) - weight) <= bound).all(), path
        assert np.abs(there[path] - weight).max() > 0.1


def test_dora_gives_each_output_its_magnitude():
    config = LoraConfig(rank=1, dora=True)
    weights, adapters = some(config)
    for path, weight in weights.items():
        matrix, adapter = matrix_of(path, weight.ndim), adapters[path]
        scale = adapter["scale"] * 1.5
        got = lora.merged(weight, adapter | {"scale": scale}, path, config)
        np.testing.assert_allclose(lora.lengths(got, matrix), scale, rtol=1e-5)
        untouched = lora.merged(weight, lora.new_adapter(config, path, weight, 0), path, config)
        np.testing.assert_allclose(untouched, weight, rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match="DoRA cannot be subtracted again"):
        lora.unmerge({}, {}, config)


def test_an_output_of_zeros_stays_zero_under_dora():
    weight = jnp.ones((6, 8)).at[:, 3].set(0)
    adapter = lora.new_adapter(LoraConfig(rank=2, dora=True), "x", weight, 0)
    np.testing.assert_allclose(lora.merged(weight, adapter, "x", LoraConfig(rank=2, dora=True)), weight, atol=1e-6)


def test_ranks_that_save_nothing_and_paths_of_no_matrix_are_refused():
    with pytest.raises(
        UserError, match=r"tune.lora.rank is 4, too large to save anything on x of 6 x 8; at most 3 would"
    ):
        lora.new_adapter(LoraConfig(rank=4), "x", jnp.zeros((6, 8)), 0)
    with pytest.raises(UserError, match="matches no matrix's path"):
        lora.adapted(LoraConfig(rank=1, paths="nowhere"), {"layers/0-0/attention/q": np.zeros((1, 4, 2, 4))})
    with pytest.raises(UserError, match="matches the embedding; adapters"):
        lora.adapted(LoraConfig(rank=1, paths="embed"), {"embedding": np.zeros((8, 4))})


@pytest.mark.parametrize("path", PATHS)
def test_dora_treats_the_norm_of_the_weight_as_a_constant_in_gradients(path):
    config = LoraConfig(rank=1, dora=True)
    weights, adapters = some(config)
    weight, adapter = weights[path], adapters[path]
    total = weight + lora.update(adapter, path, config)
    factor = lora.merged(weight, adapter, path, config) / total

    def slope(f):
        return jax.grad(lambda b: jnp.sin(f(adapter | {"b": b})).sum())(adapter["b"])

    found = slope(lambda one: lora.merged(weight, one, path, config))
    expected = slope(lambda one: factor * (weight + lora.update(one, path, config)))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
