"""Adapters in the files of the peft library: its logits, what is read and written, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepseek_jax import api
from deepseek_jax.cli import adapters
from deepseek_jax.convert import huggingface
from deepseek_jax.errors import UserError
from deepseek_jax.experiment_file import resolve
from deepseek_jax.models import tree
from deepseek_jax.tune import peft
from deepseek_jax.tune.config import LoraConfig
from deepseek_jax.views import lora
from tests.paths import GOLDENS, ROOT

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


def test_routers_biases_are_named_only_where_training_updated_them():
    # Routers that choose by token have no bias; the router of an MTP module always has.
    hashed = {"mlp_layer_types": "hash_moe", "layer_types": "csa", "num_nextn_predict_layers": "0"}
    hashed = {f"model.{name}": value for name, value in hashed.items()}
    for overrides, there in (({}, True), ({"router.bias_update_rate": "0.0"}, False), (hashed, False)):
        said = adapters._moved_beside(resolve(str(ROOT / "configs/v4_tiny.py"), overrides))
        assert any("biases" in line for line in said) == there, overrides
