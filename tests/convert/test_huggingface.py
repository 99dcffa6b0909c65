"""Reading and writing released checkpoints, and refusals of those that do not fit or are damaged."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepseek_jax.convert import config_json, huggingface, safetensors_file
from deepseek_jax.convert.tensors import Tensors
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig
from tests.paths import GOLDENS


@pytest.fixture(params=["v3", "v3_plain"])
def directory(request, tmp_path):
    """A copy of a golden checkpoint that a test may damage."""
    return shutil.copytree(GOLDENS / request.param, tmp_path / "checkpoint")


@pytest.mark.parametrize("shard_bytes", [10**9, 10**5])
def test_weights_survive_the_round_trip(directory, tmp_path, shard_bytes):
    """Every tensor is written bit for bit under its own name, into one file or many."""
    config = huggingface.read_config(directory)
    trees = huggingface.load(directory, config)
    huggingface.save(tmp_path / "out", config, *trees, shard_bytes=shard_bytes)
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1 or shard_bytes > 10**6
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    original = load_file(directory / "model.safetensors")
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(tmp_path / "out", config), trees)


def test_another_save_leaves_nothing_of_the_one_before(directory, tmp_path):
    """A remaining index of an earlier save would be read instead of the new file."""
    config = huggingface.read_config(directory)
    params, buffers = huggingface.load(directory, config)
    other = jax.tree.map(np.ones_like, params)
    for saved, shard_bytes in (params, 10**5), (other, 10**9), (params, 2 * 10**5), (other, 10**5):
        huggingface.save(tmp_path / "out", config, saved, buffers, shard_bytes=shard_bytes)
        jax.tree.map(np.testing.assert_array_equal, huggingface.load(tmp_path / "out", config)[0], saved)


def test_bfloat16_is_read_as_float32(directory):
    config = huggingface.read_config(directory)
    rounded = {name: x.astype(ml_dtypes.bfloat16) for name, x in load_file(directory / "model.safetensors").items()}
    save_file(rounded, directory / "model.safetensors")
    params, _ = huggingface.load(directory, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["norm"]["scale"], rounded["model.norm.weight"].astype(np.float32))


def test_dtypes_can_be_requested_or_kept(directory):
    config = huggingface.read_config(directory)
    params, buffers = huggingface.load(directory, config, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(buffers)} == {"float32"}  # a router's bias stays float32
    kept, _ = huggingface.load(directory, config, dtype=None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {"float32"}


def test_arrays_that_v4_ships_in_float32_stay_float32(tmp_path):
    """Hyper-connections, sinks and position biases, whatever dtype is requested for the rest."""
    directory, kept = GOLDENS / "v4/official", ("hc_", "ape", "attn_sink", "gate.bias", "tid2eid")
    trees = huggingface.load(directory, huggingface.read_config(directory), dtype="bfloat16")
    huggingface.save(tmp_path / "saved", huggingface.read_config(directory), *trees, spelling="deepseek")
    huggingface.rewrite(directory, tmp_path / "rewritten", dtype="bfloat16", spelling="deepseek")
    original = load_file(directory / "model.safetensors")
    for written in (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "rewritten")):
        assert written.keys() == original.keys()
        for name, tensor in original.items():
            expected = tensor if any(part in name for part in kept) else tensor.astype(ml_dtypes.bfloat16)
            assert written[name].tobytes() == expected.tobytes(), name


def test_mtp_modules_that_the_config_leaves_out_are_not_read():
    values = json.loads((GOLDENS / "v3/config.json").read_text()) | {"num_nextn_predict_layers": 0}
    params, buffers = huggingface.load(GOLDENS / "v3", config_json.from_json(values))
    assert "mtp" not in params and "mtp" not in buffers


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda tensors: tensors.pop("model.layers.1.mlp.gate.weight"),
            r"no tensor model.layers.1.mlp.gate.weight of ",
        ),
        (lambda tensors: tensors.update({"model.surprise": np.zeros(3)}), "does not know, such as model.surprise"),
        (
            lambda tensors: tensors.update({"lm_head.weight": np.zeros((9, 3))}),
            r"lm_head.weight of \(9, 3\).*\(256, 64\)",
        ),
        (
            lambda tensors: tensors.update({"model.layers.1.mlp.experts.down_proj": np.zeros((9, 3))}),
            "does not know, such as model.layers.1.mlp.experts.down_proj",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(directory, change, message):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError, match=message):
        huggingface.load(directory, huggingface.read_config(directory))


def test_shared_experts_of_width_0_are_none(directory):
    """transformers writes such empty matrices for n_shared_experts 0."""
    tensors, path = load_file(directory / "model.safetensors"), directory / "config.json"
    shared = [name for name in tensors if ".shared_experts." in name]
    without = {name: tensor for name, tensor in tensors.items() if name not in shared}
    for name in shared:
        out, into = tensors[name].shape
        shape = (out, 0) if "down_proj" in name else (0, into)
        tensors[name] = np.zeros(shape, np.float32)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_shared_experts": 0}))
    config = huggingface.read_config(directory)
    loaded = []
    for held in tensors, without:
        save_file(held, directory / "model.safetensors")
        loaded.append(huggingface.load(directory, config))
    jax.tree.map(np.testing.assert_array_equal, *loaded)


def test_experts_in_one_array_with_a_row_too_many_are_refused(directory):
    """Gates and ups are its halves: of an odd number of rows, all experts after the first were read a row off."""
    tensors = load_file(directory / "model.safetensors")
    for expert in range(12):
        for part in ("gate", "up"):
            rows, columns = tensors.pop(f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight").shape
    tensors["model.layers.1.mlp.experts.gate_up_proj"] = np.zeros((12, 2 * rows + 1, columns), np.float32)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError, match=r"no tensor model.layers.1.mlp.experts.0.gate_proj.weight of \(20, 64\)"):
        huggingface.load(directory, huggingface.read_config(directory))


def test_experts_that_lie_alone_and_in_one_array_are_refused(directory):
    """One of the two was dropped in silence."""
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj"] = np.zeros((12, 64, 20), np.float32)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError, match=r"holds model.layers.1.mlp.experts.\d+.down_proj.weight by itself"):
        Tensors(directory)


@pytest.mark.parametrize("name", ["v2", "v3", "v3_plain", "v32", "v4", "v4/official"])
def test_layers_beyond_num_hidden_layers_are_refused(tmp_path, name):
    """MTP modules may remain unread, but a decoder layer past num_hidden_layers is not mistaken for one."""
    directory = shutil.copytree(GOLDENS / name, tmp_path / "checkpoint")
    path = directory / "config.json"
    values = json.loads(path.read_text())
    depth = values["num_hidden_layers"] - 1
    values |= {"num_hidden_layers": depth, "num_nextn_predict_layers": 0}
    lists = ("layer_types", "mlp_layer_types", "compress_ratios")
    path.write_text(json.dumps(values | {key: values[key][:depth] for key in lists if key in values}))
    with pytest.raises(
        UserError, match=rf"does not know, such as (model\.)?layers\.{depth}\..*describes another model"
    ):
        huggingface.load(directory, huggingface.read_config(directory))


def test_a_file_that_is_cut_short_is_named(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="model.safetensors is cut short"):
        Tensors(directory)


def file_of(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"\xff" * 16, "is not a safetensors file"),
        (file_of(b"[]"), "is not a safetensors file"),
        pytest.param(file_of(b"[" * 10**5), "is not a safetensors file", id="nested"),
        (file_of(b'{"a": {"dtype": "F32"}}'), "is not a safetensors file"),
        (file_of(b'{"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}'), "holds a as C64"),
        (
            file_of(b'{"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]}}'),
            r"holds a in 8 bytes, but \(2, 2\) takes 16",
        ),
        (file_of(b'{"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}'), "is not a safetensors file"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}'), "is not a safetensors file"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}'), "is not a safetensors file"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}'), "is not a safetensors file"),
        (file_of(b'{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}'), "is not a safetensors file"),
    ],
)
def test_malformed_safetensors_files_are_refused(directory, content, message):
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Tensors(directory)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", "[]", "config.json is not a JSON object"),
        pytest.param("config.json", "[" * 10**5, "config.json is not JSON", id="nested"),
        ("model.safetensors.index.json", "{}", "has no weight_map"),
        ("model.safetensors.index.json", "{", "index.json is not JSON"),
        ("model.safetensors.index.json", '{"weight_map": {"lm_head.weight": 1}}', "has no weight_map"),
    ],
)
def test_damaged_json_is_refused_by_name(directory, name, content, message):
    (directory / name).write_text(content)
    with pytest.raises(UserError, match=message):
        huggingface.load(directory, huggingface.read_config(directory))


def test_a_separate_head_is_refused_where_the_config_ties_it(directory):
    """A head that is a copy of the embedding is accepted."""
    path, tensors = directory / "config.json", load_file(directory / "model.safetensors")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    config = huggingface.read_config(directory)
    with pytest.raises(UserError, match="lm_head.weight that is not its model.embed_tokens.weight"):
        huggingface.load(directory, config)
    heads = [name for name in tensors if name == "lm_head.weight" or name.endswith("shared_head.head.weight")]
    save_file(tensors | dict.fromkeys(heads, tensors["model.embed_tokens.weight"]), directory / "model.safetensors")
    assert "head" not in huggingface.load(directory, config)[0]


@pytest.mark.parametrize("copy", ["embed_tokens.weight", "shared_head.head.weight"])
@pytest.mark.parametrize("change", [lambda tensor: 2 * tensor, lambda tensor: tensor[:3]])
def test_mtp_modules_whose_embedding_or_head_is_no_copy_are_refused(tmp_path, copy, change):
    """The copies are not read: a module with a different embedding or head would silently be computed wrongly."""
    directory = shutil.copytree(GOLDENS / "v3", tmp_path / "checkpoint")
    path, tensors = directory / "config.json", load_file(directory / "model.safetensors")
    name = f"model.layers.{json.loads(path.read_text())['num_hidden_layers']}.{copy}"
    save_file(tensors | {name: change(tensors[name])}, directory / "model.safetensors")
    with pytest.raises(UserError, match=rf"has a {name} that is not its (model.embed_tokens|lm_head).weight; MTP"):
        huggingface.load(directory, huggingface.read_config(directory))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 0}))
    assert "mtp" not in huggingface.load(directory, huggingface.read_config(directory))[0]


def test_a_missing_shard_is_named(directory, tmp_path):
    config = huggingface.read_config(directory)
    huggingface.save(tmp_path / "out", config, *huggingface.load(directory, config), shard_bytes=10**5)
    first, *_ = sorted((tmp_path / "out").glob("*.safetensors"))
    first.unlink()
    with pytest.raises(UserError, match=f"{first.name} is missing"):
        huggingface.load(tmp_path / "out", config)


def test_a_tensor_in_two_files_is_refused(directory, tmp_path):
    config, out = huggingface.read_config(directory), tmp_path / "out"
    huggingface.save(out, config, *huggingface.load(directory, config), shard_bytes=10**5)
    first, second, *_ = sorted(out.glob("*.safetensors"))
    twice = dict(list(load_file(first).items())[:1])
    save_file(load_file(second) | {name: tensor + 1 for name, tensor in twice.items()}, second)
    with pytest.raises(UserError, match=f"both hold {next(iter(twice))}"):
        huggingface.load(out, config)


def test_an_interrupted_save_leaves_no_mixture_of_two(directory, tmp_path, monkeypatch):
    """Otherwise numbered files of the earlier save and of this one would be read together as one model."""
    config, out = huggingface.read_config(directory), tmp_path / "out"
    params, buffers = huggingface.load(directory, config)
    huggingface.save(out, config, params, buffers, shard_bytes=10**5)
    write = safetensors_file.write

    def first_alone(path, *rest):
        if "-00001-" not in path.name:
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(safetensors_file, "write", first_alone)
    with pytest.raises(KeyboardInterrupt):
        huggingface.save(out, config, jax.tree.map(np.ones_like, params), buffers, shard_bytes=10**5)
    with pytest.raises(UserError, match="holds none of model.safetensors"):
        huggingface.load(out, config)


def test_mtp_modules_missing_from_the_files_are_left_out_of_the_config(directory):
    """Hugging Face keeps num_nextn_predict_layers in config.json but does not save the MTP modules."""
    config = huggingface.read_config(directory)
    rest = {
        name: tensor
        for name, tensor in load_file(directory / "model.safetensors").items()
        if not name.startswith(f"model.layers.{config.num_hidden_layers}.")
    }
    save_file(rest, directory / "model.safetensors")
    assert huggingface.read_config(directory).num_nextn_predict_layers == 0


def test_a_directory_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        huggingface.read_config(tmp_path)
    with pytest.raises(UserError, match="holds none of model.safetensors"):
        huggingface.load(tmp_path, ModelConfig())


def test_a_checkpoint_is_not_rewritten_over_itself(directory):
    """It would be read from the files that are being written, and be lost."""
    before = (directory / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="would be written over while it is read"):
        huggingface.rewrite(directory, directory / ".." / directory.name, dtype="bfloat16")
    assert (directory / "model.safetensors").read_bytes() == before
