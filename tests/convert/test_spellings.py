"""Every generation's checkpoint, read and written in each spelling of tensor names, is the same to the last bit."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.convert import huggingface
from deepseek_jax.convert.names import place, spelling_of
from deepseek_jax.convert.safetensors_file import entries
from deepseek_jax.convert.tensors import Tensors
from deepseek_jax.errors import UserError
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.moe import router
from deepseek_jax.models.tree import ones, zeros
from tests.paths import GOLDENS

CHECKPOINTS = {  # and the spelling that each has
    "v1": "huggingface",
    "moe": "huggingface",
    "v2": "huggingface",
    "v2_lite": "huggingface",
    "v2_plain": "huggingface",
    "v3": "huggingface",
    "v32": "huggingface",
    "v4": "saved",
    "v4/official": "deepseek",
    "v4_r128/official": "deepseek",
}


def raw(directory: Path) -> dict[str, bytes]:
    return {name: entry.read().tobytes() for name, entry in entries(directory / "model.safetensors")}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_survive_the_round_trip_in_each_spelling(name, tmp_path):
    """By loading and saving, and by rewriting file to file; in the original's spelling, with the original's bytes."""
    directory = GOLDENS / name
    assert spelling_of(Tensors(directory).names) == CHECKPOINTS[name]
    config = huggingface.read_config(directory)
    trees = huggingface.load(directory, config)
    for spelling in ("huggingface", "deepseek"):
        saved, rewritten = tmp_path / spelling, tmp_path / f"{spelling}_rewritten"
        huggingface.save(saved, config, *trees, spelling=spelling)
        huggingface.rewrite(directory, rewritten, spelling=spelling)
        assert raw(saved) == raw(rewritten)
        assert CHECKPOINTS[name] != spelling or raw(saved) == raw(directory)
        assert huggingface.read_config(saved) == config
        jax.tree.map(np.testing.assert_array_equal, huggingface.load(saved, config), trees)


def test_v4_as_saved_by_hugging_face_equals_the_official_one_without_mtp():
    saved, official = (huggingface.read_config(GOLDENS / name) for name in ("v4", "v4/official"))
    assert saved == official.without_mtp()
    ours, theirs = huggingface.load(GOLDENS / "v4", saved), huggingface.load(GOLDENS / "v4/official", saved)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_hugging_faces_spelling_fuses_the_experts_of_v4_into_two_arrays(tmp_path):
    huggingface.rewrite(GOLDENS / "v4/official", tmp_path / "out", spelling="huggingface")
    held = dict(entries(tmp_path / "out/model.safetensors"))
    config = huggingface.read_config(GOLDENS / "v4/official")
    E, D, I = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    assert held["model.layers.0.mlp.experts.gate_up_proj"].shape == (E, 2 * I, D)
    assert held["model.layers.0.mlp.experts.down_proj"].shape == (E, D, I)
    assert held["mtp.0.ffn.experts.0.w1.weight"].shape == (I, D)  # MTP, for which Hugging Face has no names


def test_quantised_v4_is_dequantised_when_rewritten(tmp_path):
    """FP8 and FP4 become [out, in] matrices.  That their values are right is checked by numerics/test_oracle.py."""
    directory = GOLDENS / "v4_quant/official"
    config = huggingface.read_config(directory)
    huggingface.rewrite(directory, tmp_path / "out", spelling="deepseek")
    whole = Tensors(tmp_path / "out")
    assert not any(name.endswith(".scale") for name in whole.names)
    assert whole.shape("layers.0.ffn.experts.0.w1.weight") == (config.moe_intermediate_size, config.hidden_size)
    kept, params = (huggingface.load(each, config, dtype="float32")[0] for each in (directory, tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, kept, params)  # scales are powers of two: bfloat16 loses nothing


def test_an_array_without_a_name_in_released_checkpoints_is_refused():
    """Such as one of a custom attention."""
    config = huggingface.read_config(GOLDENS / "v3")
    with pytest.raises(UserError, match="no name for attention.memory of mla attention; add one to .*rules.py"):
        place("layers/0-0/attention/memory", config)


class ScaledRouter(router.TopKRouter):
    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.scale, self.temperature = ones(config.n_routed_experts), zeros((), ())


@pytest.mark.slow
def test_custom_arrays_are_saved_under_their_own_names(tmp_path, monkeypatch):
    """In a model of no released generation, including the arrays of each MTP module."""
    monkeypatch.setitem(router.ROUTERS, "moe", ScaledRouter)
    config = dataclasses.replace(huggingface.read_config(GOLDENS / "v3"), scoring_func="softmax")
    params, buffers = initialise(config, jax.random.key(0))[1:]
    params = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), params)
    huggingface.save(tmp_path, config, params, buffers)
    assert {"model.layers.1.feed_forward.router.scale", "model.layers.3.feed_forward.router.temperature"} <= set(
        Tensors(tmp_path).names
    )
    assert huggingface.read_config(tmp_path) == config
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(tmp_path, config), (params, buffers))
    huggingface.rewrite(tmp_path, tmp_path / "again", dtype="bfloat16")
    assert Tensors(tmp_path / "again").names == Tensors(tmp_path).names
