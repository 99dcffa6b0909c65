"""deepseek-jax convert: from every format into every other, and the messages where that is impossible."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from deepseek_jax import record
from deepseek_jax.config import Experiment, SupervisedExperiment
from deepseek_jax.convert import beside, finite, huggingface, orbax_directory
from deepseek_jax.convert.reading import abstract_trees
from deepseek_jax.data.tokenizer import SMALLEST, Tokenizer, train_bpe
from deepseek_jax.errors import UserError
from deepseek_jax.models.tree import by_path
from tests.convert import placed
from tests.paths import GOLDENS

V3 = GOLDENS / "v3"


def test_orbax_and_back_is_the_identity(run_command, tmp_path, caplog):
    """Safetensors to Orbax and back is the identity; the tokenizer is copied along."""
    source = shutil.copytree(V3, tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    assert run_command("convert", str(source), str(tmp_path / "orbax"), "--to", "orbax")[0] == 0
    assert run_command("convert", str(tmp_path / "orbax"), str(tmp_path / "back"))[0] == 0
    written, original = load_file(tmp_path / "back/model.safetensors"), load_file(V3 / "model.safetensors")
    assert written.keys() == original.keys()
    for name in original:
        assert written[name].tobytes() == original[name].tobytes(), name
    assert (tmp_path / "back/tokenizer.json").read_text() == "{}"
    assert "OCDBT" not in caplog.text  # a warning that Orbax makes of its own settings


def test_writing_with_orbax_takes_a_part_of_the_memory_of_the_arrays(on_devices, tmp_path):
    """Orbax's own settings copy them, and keep the bytes of the files too."""
    assert on_devices(1, placed.growth_by_orbax, str(tmp_path)) < placed.ORBAX_BYTES / 2


def test_what_older_versions_wrote_with_orbax_is_read(tmp_path):
    config = huggingface.read_config(V3)
    trees = huggingface.load(V3, config)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / orbax_directory.ARRAYS, dict(zip(("params", "buffers"), trees, strict=True)))
    jax.tree.map(np.testing.assert_array_equal, orbax_directory.load(tmp_path, config), trees)


def test_files_and_token_ids_for_other_programs_are_carried_along(run_command, tmp_path):
    """Files that chat programs look for, and the token ids in config.json."""
    source = shutil.copytree(V3, tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "generation_config.json").write_text('{"temperature": 0.6}')
    tokens = {"bos_token_id": 100, "eos_token_id": [101, 102], "pad_token_id": None}
    values = json.loads((source / "config.json").read_text()) | tokens
    (source / "config.json").write_text(json.dumps(values))
    assert run_command("convert", str(source), str(tmp_path / "orbax"), "--to", "orbax")[0] == 0
    assert run_command("convert", str(tmp_path / "orbax"), str(tmp_path / "back"))[0] == 0
    release = ("--weights", "fp8", "--release")
    assert run_command("quantize", str(source), str(tmp_path / "fp8"), *release)[0] == 0
    for directory in (tmp_path / "orbax", tmp_path / "back", tmp_path / "fp8"):
        written = json.loads((directory / "config.json").read_text())
        assert {key: written[key] for key in tokens} == tokens
        assert (directory / "chat_template.jinja").read_text() == "{{ messages }}"
        assert (directory / "generation_config.json").read_text() == '{"temperature": 0.6}'


def test_token_ids_of_a_run_are_taken_from_its_tokenizer(tmp_path):
    """Without them transformers would use Llama's defaults, whose eos has the id of our pad."""
    record.claim(tmp_path / "run", Experiment())
    train_bpe(["a text"], SMALLEST, tmp_path / "run" / "tokenizer.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    beside.carry(tmp_path / "run", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    tokenizer = Tokenizer(tmp_path / "out" / "tokenizer.json")
    expected = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    assert written == expected
    names = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert {name: tokenizer.token(spelling) for name, spelling in names.items()} == {
        name.removesuffix("_id"): number for name, number in expected.items()
    }, "which transformers takes from there"


def test_a_model_of_no_released_generation_keeps_its_token_ids(run_command, tmp_path):
    config = dataclasses.replace(huggingface.read_config(V3), masked_top_experts=1)
    source, out = tmp_path / "source", tmp_path / "out"
    huggingface.save(source, config, *huggingface.load(V3, config))
    values = json.loads((source / "config.json").read_text())
    assert values["model_type"] == "deepseek_jax"
    (source / "config.json").write_text(json.dumps(values | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}))
    assert run_command("convert", str(source), str(out))[0] == 0
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 1
    assert huggingface.read_config(out) == config


def test_orbax_output_can_be_loaded(run_command, tmp_path):
    out = tmp_path / "orbax"
    assert run_command("convert", str(V3), str(out), "--to", "orbax", "--dtype", "bfloat16")[0] == 0
    config = orbax_directory.read_config(out)
    params, buffers = orbax_directory.load(out, config, dtype="float32")
    expected, expected_buffers = huggingface.load(V3, config, dtype="bfloat16")
    assert config == huggingface.read_config(V3)
    with pytest.raises(UserError, match=f"{out} holds Orbax's arrays; give what `deepseek-jax convert {out} OUT`"):
        huggingface.load(out, config)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(np.float32)), params, expected)
    jax.tree.map(np.testing.assert_array_equal, buffers, expected_buffers)


def test_ctrl_c_waits_until_orbax_has_written(tmp_path, monkeypatch):
    """After it the output is deleted, so nothing may still be writing to it."""
    config, out = huggingface.read_config(V3), tmp_path / "out"
    save = ocp.Checkpointer.save

    def interrupted(self, *arguments, **named):
        save(self, *arguments, **named)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ocp.Checkpointer, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        orbax_directory.save(out, config, *huggingface.load(V3, config))
    assert record.kind(out) == "orbax"


@pytest.mark.parametrize("content", ["{", "[]", pytest.param("[" * 10**5, id="nested")])
def test_a_damaged_config_beside_orbax_is_named(run_command, tmp_path, content):
    (tmp_path / orbax_directory.ARRAYS).mkdir()
    (tmp_path / "config.json").write_text(content)
    status, _, error = run_command("convert", str(tmp_path), str(tmp_path / "out"))
    assert status == 2 and f"{tmp_path}/config.json " in error


def test_a_quantised_checkpoint_becomes_bfloat16(run_command, tmp_path):
    source = V3.parent / "v3_fp8"
    assert run_command("convert", str(source), str(tmp_path / "out"))[0] == 0
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in values
    written = load_file(tmp_path / "out/model.safetensors")
    assert written["model.layers.0.self_attn.q_a_proj.weight"].dtype.name == "bfloat16"
    assert written["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == np.float32


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere", "out"], "nowhere is not a directory"),
        ([str(V3), "."], "is not empty"),
        ([str(V3), "something"], "something is a file; give a directory that does not exist yet."),
        ([str(V3), "out", "--to", "orbax", "--spelling", "deepseek"], "cannot be used with --to orbax"),
        ([str(V3), "out", "--checkpoint", "7"], "is not a run directory, whose checkpoints have steps"),
    ],
)
def test_impossible_conversions_are_refused(run_command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    status, _, error = run_command("convert", *words)
    assert status == 2 and message in error and "Traceback" not in error


def test_a_run_of_a_hybrid_network_is_refused(run_command, tmp_path):
    record.claim(tmp_path / "run", SupervisedExperiment())
    (tmp_path / "run" / "checkpoints").mkdir()
    status, _, error = run_command("convert", str(tmp_path / "run"), str(tmp_path / "out"))
    assert status == 2 and error.endswith("run has a hybrid network; convert writes language models.\n")
    assert not (tmp_path / "out").exists()


MATRIX = "model.layers.0.self_attn.q_a_proj.weight"


@pytest.fixture
def with_number(tmp_path):
    """with_number(x) makes a checkpoint in which one number of MATRIX and one of another matrix is x."""

    def make(number: float) -> Path:
        source = shutil.copytree(V3, tmp_path / f"with {number}")
        tensors = load_file(source / "model.safetensors")
        for name in (MATRIX, "model.layers.1.mlp.experts.3.up_proj.weight"):
            tensors[name] = tensors[name].copy()
            tensors[name][1, 2] = number
        save_file(tensors, source / "model.safetensors")
        return source

    return make


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("words", [[], ["--to", "orbax"], ["--dtype", "bfloat16"]], ids=" ".join)
def test_nan_and_infinity_are_warned_of(run_command, tmp_path, with_number, number, words):
    source = with_number(number)
    status, _, error = run_command("convert", str(source), str(tmp_path / "out"), *words)
    assert status == 0 and error.count("\n") == 1
    assert f"{source} holds NaN or infinity in 2 tensors, such as model.layers." in error
    assert error.endswith("a release that does is damaged, copy it again.\n")


def test_loading_a_checkpoint_with_nan_from_python_logs_a_warning(caplog, with_number):
    source = with_number(np.nan)
    huggingface.load(source, huggingface.read_config(source))
    huggingface.load(V3, huggingface.read_config(V3))
    assert [record.getMessage().partition(" in 2 tensors")[0] for record in caplog.records] == [
        f"{source} holds NaN or infinity"
    ]


@pytest.mark.parametrize("words", [[], ["--to", "orbax"]], ids=" ".join)
def test_numbers_beyond_the_range_of_the_dtype_are_refused(run_command, tmp_path, with_number, words):
    source = with_number(1e6)
    status, _, error = run_command("convert", str(source), str(tmp_path / "out"), "--dtype", "float16", *words)
    assert status == 2 and error.count("\n") == 1 and error.startswith("deepseek-jax: model.layers.")
    assert error.endswith(
        "weight holds numbers beyond 65,504, the largest of float16; take another dtype, such as float32.\n"
    )
    assert not (tmp_path / "out").exists()  # so that the command can be repeated with another --dtype
    assert run_command("convert", str(source), str(tmp_path / "rough"), "--dtype", "bfloat16")[2] == ""


@pytest.mark.parametrize("words", [[], ["--to", "orbax"]], ids=" ".join)
def test_our_own_checkpoints_are_cast_like_released_ones(run_command, tmp_path, words):
    """Hyper-connections stay float32; a number beyond the range of the dtype is refused."""
    config = dataclasses.replace(huggingface.read_config(V3), hc_mult=2, num_hidden_layers=1, first_k_dense_replace=1)
    params, buffers = jax.tree.map(lambda leaf: np.full(leaf.shape, 1 / 3, leaf.dtype), abstract_trees(config))
    orbax_directory.save(tmp_path / "ours", config, params, buffers)
    ours, large, out = (str(tmp_path / name) for name in ("ours", "large", "out"))
    assert run_command("convert", ours, out, "--dtype", "bfloat16", *words)[0] == 0
    read = orbax_directory.load(out, config)[0] if words else huggingface.load(out, config, dtype=None)[0]
    of_params = {path: leaf.dtype.name for path, leaf in by_path(read).items()}
    assert of_params["embedding"] == of_params["norm/scale"] == "bfloat16"
    assert {of_params[path] for path in of_params if "residual" in path or "stream_head" in path} == {"float32"}
    orbax_directory.save(tmp_path / "large", config, params | {"head": params["head"] * 1e6}, buffers)
    status, _, error = run_command("convert", large, out + "16", "--dtype", "float16", *words)
    assert status == 2 and "head" in error and "holds numbers beyond 65,504, the largest of float16" in error


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, *map(np.dtype, ("bfloat16", "float8_e4m3fn"))])
def test_is_finite_tells_numbers_from_nan_and_infinity_in_every_dtype(dtype):
    info = ml_dtypes.finfo(dtype)
    numbers = np.array([0, -0.0, float(info.max), float(info.min), float(info.smallest_subnormal)], dtype)
    assert finite.is_finite(numbers) and finite.is_finite(numbers[:0]) and finite.is_finite(np.array([2**31 - 1]))
    for wrong in (np.nan, -np.nan) + ((np.inf, -np.inf) if np.isinf(np.array(np.inf, dtype)) else ()):
        assert not finite.is_finite(np.append(numbers, np.array(wrong, dtype)))
