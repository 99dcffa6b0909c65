"""Low-rank adapters: the algebra of merging, DoRA, and files and logits of the peft library."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepseek_jax import api
from deepseek_jax.convert import huggingface
from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.tune import peft
from deepseek_jax.tune.config import LoraConfig
from deepseek_jax.views import lora
from deepseek_jax.views.matrices import matrix_of
from tests.paths import GOLDENS

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


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["v1_dora", "v3_lora", pytest.param("v1_lora", marks=slow), pytest.param("v3_dora", marks=slow)]
)
def test_logits_are_those_of_peft(name):
    """The adapters and logits were made with peft and transformers by tests/goldens/peft/make_goldens.py."""
    base, expected = api.from_pretrained(GOLDENS / name[:2]), np.load(GOLDENS / "peft" / name / "expected.npz")
    adapters, config = peft.load(GOLDENS / "peft" / name, base.config)
    params = jax.jit(lambda params, adapters: lora.merge(params, adapters, config))(base.params, adapters)
    logits = dataclasses.replace(base, params=params)(expected["ids"]).logits
    assert np.abs(logits - base(expected["ids"]).logits).max() > 0.01
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


@pytest.mark.parametrize("name", ["v1_dora", "v3_lora"])
def test_peft_files_survive_the_round_trip(name, tmp_path):
    model = huggingface.read_config(GOLDENS / name[:2])
    adapters, config = peft.load(GOLDENS / "peft" / name, model)
    peft.save(tmp_path, model, adapters, config)
    there, here = (dict(peft.entries(path / peft.TENSORS)) for path in (GOLDENS / "peft" / name, tmp_path))
    assert there.keys() == here.keys()
    for key in there:
        np.testing.assert_array_equal(there[key].read(), here[key].read(), key)
    about = json.loads((tmp_path / peft.CONFIG).read_text())
    assert (about["r"], about["lora_alpha"], about["use_dora"]) == (config.rank, config.alpha, config.dora)


@pytest.mark.parametrize("dora", [False, True])
def test_every_adapter_of_v4_comes_back_from_its_file(dora, tmp_path):
    model, config = huggingface.read_config(GOLDENS / "v4"), LoraConfig(rank=1, dora=dora)
    shapes, draw = tree.by_path(peft.abstract_trees(model)[0]), np.random.default_rng(0)
    weights = {path: jnp.asarray(draw.normal(size=shapes[path].shape), jnp.float32) for path in shapes}
    adapters = {path: lora.new_adapter(config, path, weights[path], 0) for path in lora.adapted(config, weights)}
    assert any(path.endswith("/out_down") for path in adapters)  # groups, which lie in one tensor of released files
    adapters = jax.tree.map(lambda part: draw.normal(size=part.shape).astype(np.float32), adapters)
    peft.save(tmp_path, model, adapters, config)
    jax.tree.map(np.testing.assert_array_equal, peft.load(tmp_path, model)[0], adapters)


def test_peft_files_that_do_not_fit_are_refused(tmp_path):
    model = huggingface.read_config(GOLDENS / "v1")
    with pytest.raises(UserError, match="has no adapter_config.json"):
        peft.load(tmp_path, model)
    (tmp_path / peft.CONFIG).write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(UserError, match="uses the method IA3"):
        peft.load(tmp_path, model)
    (tmp_path / peft.CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "all"}))
    with pytest.raises(UserError, match="has bias = 'all', which is not read"):
        peft.load(tmp_path, model)
    with pytest.raises(UserError, match="the adapter of model.layers.0.self_attn.o_proj has lora_A.weight"):
        peft.load(GOLDENS / "peft/v3_lora", model)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"r": None}, "adapter_config.json's r is None; it must be a whole number"),
        ({"r": 3.0}, "adapter_config.json's r is 3.0; it must be a whole number"),
        ({"r": 0}, "adapter_config.json's r is 0; it must be at least 1"),
        ({"lora_alpha": "16"}, "adapter_config.json's lora_alpha is '16'; it must be a finite number"),
    ],
)
def test_a_value_of_the_wrong_type_in_adapter_config_is_refused(tmp_path, change, message):
    directory = shutil.copytree(GOLDENS / "peft/v1_lora", tmp_path / "adapters")
    about = json.loads((directory / peft.CONFIG).read_text())
    (directory / peft.CONFIG).write_text(json.dumps(about | change))
    with pytest.raises(UserError, match=message):
        peft.load(directory, huggingface.read_config(GOLDENS / "v1"))


def test_adapters_that_are_not_finite_are_refused(tmp_path):
    directory = shutil.copytree(GOLDENS / "peft/v1_lora", tmp_path / "adapters")
    tensors = load_file(directory / peft.TENSORS)
    name = next(name for name in tensors if name.endswith(peft.PARTS["a"]))
    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, directory / peft.TENSORS)
    with pytest.raises(UserError, match="the adapter of model.layers.0.* holds NaN or infinity in lora_A.weight"):
        peft.load(directory, huggingface.read_config(GOLDENS / "v1"))


def test_rank_stabilised_adapters_are_scaled_by_the_square_root_of_their_rank(tmp_path):
    """rsLoRA scales by alpha / sqrt(rank), arXiv:2312.03732."""
    directory = shutil.copytree(GOLDENS / "peft/v1_lora", tmp_path / "adapters")
    about = json.loads((directory / peft.CONFIG).read_text())
    assert about["r"] > 1
    (directory / peft.CONFIG).write_text(json.dumps(about | {"use_rslora": True}))
    _, config = peft.load(directory, huggingface.read_config(GOLDENS / "v1"))
    assert config.scale == pytest.approx(about["lora_alpha"] / about["r"] ** 0.5)


def test_a_transposed_adapter_is_refused(tmp_path):
    """It has as many numbers, but in another order."""
    directory = shutil.copytree(GOLDENS / "peft/v1_lora", tmp_path / "adapters")
    tensors = load_file(directory / peft.TENSORS)
    name = next(name for name in tensors if name.endswith(peft.PARTS["a"]))
    rank, inputs = tensors[name].shape
    save_file(tensors | {name: tensors[name].T.copy()}, directory / peft.TENSORS)
    message = rf"has lora_A.weight of \({inputs}, {rank}\); this model needs \({rank}, {inputs}\)"
    with pytest.raises(UserError, match=message):
        peft.load(directory, huggingface.read_config(GOLDENS / "v1"))


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
