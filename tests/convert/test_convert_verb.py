"""deepseek-jax convert: from every format into every other, and what is said where it cannot."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from deepseek_jax import record
from deepseek_jax.config import SupervisedExperiment
from deepseek_jax.convert import huggingface, orbax_directory

V3 = Path(__file__).parents[1] / "goldens/v3"


def test_there_and_back(deepseek_jax, tmp_path):
    """Safetensors to orbax and back is the identity; the tokenizer goes along."""
    source = shutil.copytree(V3, tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    assert deepseek_jax("convert", str(source), str(tmp_path / "orbax"), "--to", "orbax")[0] == 0
    assert deepseek_jax("convert", str(tmp_path / "orbax"), str(tmp_path / "back"))[0] == 0
    written, original = load_file(tmp_path / "back/model.safetensors"), load_file(V3 / "model.safetensors")
    assert written.keys() == original.keys()
    for name in original:
        assert written[name].tobytes() == original[name].tobytes(), name
    assert (tmp_path / "back/tokenizer.json").read_text() == "{}"


def test_what_other_programs_read_goes_along(deepseek_jax, tmp_path):
    """Files that chat programs look for, and the tokens that config.json names."""
    source = shutil.copytree(V3, tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    tokens = {"bos_token_id": 100, "eos_token_id": [101, 102], "pad_token_id": None}
    values = json.loads((source / "config.json").read_text()) | tokens
    (source / "config.json").write_text(json.dumps(values))
    assert deepseek_jax("convert", str(source), str(tmp_path / "orbax"), "--to", "orbax")[0] == 0
    assert deepseek_jax("convert", str(tmp_path / "orbax"), str(tmp_path / "back"))[0] == 0
    release = ("--weights", "fp8", "--release")
    assert deepseek_jax("quantize", str(source), str(tmp_path / "fp8"), *release)[0] == 0
    for directory in (tmp_path / "orbax", tmp_path / "back", tmp_path / "fp8"):
        written = json.loads((directory / "config.json").read_text())
        assert {key: written[key] for key in tokens} == tokens
        assert (directory / "chat_template.jinja").read_text() == "{{ messages }}"
        assert (directory / "generation_config.json").exists() == (source / "generation_config.json").exists()


def test_orbax_output_is_a_start(deepseek_jax, tmp_path):
    out = tmp_path / "orbax"
    assert deepseek_jax("convert", str(V3), str(out), "--to", "orbax", "--dtype", "bfloat16")[0] == 0
    config, params, buffers = orbax_directory.load(out, dtype="float32")
    expected, expected_buffers = huggingface.load(V3, config, dtype="bfloat16")
    assert config == huggingface.read_config(V3)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(np.float32)), params, expected)
    jax.tree.map(np.testing.assert_array_equal, buffers, expected_buffers)


def test_quantised_becomes_bfloat16(deepseek_jax, tmp_path):
    source = V3.parent / "v3_fp8"
    assert deepseek_jax("convert", str(source), str(tmp_path / "out"))[0] == 0
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in values
    written = load_file(tmp_path / "out/model.safetensors")
    assert written["model.layers.0.self_attn.q_a_proj.weight"].dtype.name == "bfloat16"
    assert written["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == np.float32


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere", "out"], "nowhere is no directory"),
        ([str(V3), "."], "is not empty"),
        ([str(V3), "something"], "something is a file; give a directory that is not there yet."),
        ([str(V3), "out", "--to", "orbax", "--spelling", "deepseek"], "no use"),
    ],
)
def test_what_cannot_be_done_is_said(deepseek_jax, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    status, _, error = deepseek_jax("convert", *words)
    assert status == 2 and message in error and "Traceback" not in error


def test_a_run_of_a_hybrid_network_is_refused(deepseek_jax, tmp_path):
    record.claim(tmp_path / "run", SupervisedExperiment())
    (tmp_path / "run" / "checkpoints").mkdir()
    status, _, error = deepseek_jax("convert", str(tmp_path / "run"), str(tmp_path / "out"))
    assert status == 2 and error.endswith("run holds a hybrid network; convert writes language models.\n")
    assert not (tmp_path / "out").exists()
