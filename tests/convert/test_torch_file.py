"""Files of torch.save are read without torch, tensor by tensor; damaged and foreign ones are refused."""

import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import deepseek_jax
from deepseek_jax.__main__ import main
from deepseek_jax.convert import torch_file
from deepseek_jax.convert.tensors import Tensors
from deepseek_jax.errors import UserError
from tests.convert.torch_archives import NEW_DICT, pickled, tensor, write
from tests.paths import GOLDENS

V1 = GOLDENS / "v1"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


def read(path):
    return {name: entry.read() for name, entry in torch_file.entries(path)}


@pytest.mark.parametrize("name", ["archive", "sequence"])
def test_torch_s_own_files_are_read(name):
    found = read(GOLDENS / f"torch_files/{name}.bin")
    expected = {"base": BASE, "view": BASE[1:3, 2:5], "transposed": BASE.T, "expanded": np.ones(3, np.float32)}
    expected |= {"empty": np.zeros((0, 3), np.float32), "scalar": np.int64(3), "parameter": np.full(2, 0.5, np.float32)}
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16, np.int32, np.int8, np.uint8):
        expected[f"torch.{np.dtype(dtype).name}"] = BASE.astype(dtype)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture
def v1_of_torch(tmp_path):
    """The golden V1 in two .bin files, with a buffer that old checkpoints have."""
    tensors = load_file(V1 / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    directory, names, file_of = tmp_path / "v1", sorted(tensors), {}
    directory.mkdir()
    (directory / "config.json").write_text((V1 / "config.json").read_text())
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        write(directory / file, {name: tensors[name] for name in part})
        file_of |= dict.fromkeys(part, file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": file_of}))
    return directory


def test_a_model_in_bin_files_is_the_same_model(v1_of_torch, tmp_path):
    """Also after `convert`, and by the command line, that is to say without a word about these files."""
    ids = np.arange(12).reshape(2, 6)
    logits = [np.asarray(deepseek_jax.from_pretrained(path)(ids).logits) for path in (V1, v1_of_torch)]
    np.testing.assert_array_equal(*logits)
    assert main(["convert", str(v1_of_torch), str(tmp_path / "out")]) == 0
    written, original = load_file(tmp_path / "out/model.safetensors"), load_file(V1 / "model.safetensors")
    assert written.keys() == original.keys()
    for name, array in original.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)


def test_safetensors_are_preferred(v1_of_torch):
    save_file({"only": np.ones(2, np.float32)}, v1_of_torch / "model.safetensors")
    assert Tensors(v1_of_torch).names == {"only"}


def test_a_missing_bin_file_is_named_and_exits_with_2(v1_of_torch, tmp_path, capsys):
    (v1_of_torch / "pytorch_model-00002-of-00002.bin").unlink()
    assert main(["convert", str(v1_of_torch), str(tmp_path / "out")]) == 2
    assert "pytorch_model-00002-of-00002.bin is missing; copy it there." in " ".join(capsys.readouterr().err.split())


def test_a_tensor_in_two_bin_files_is_refused(v1_of_torch):
    first, second = sorted(v1_of_torch.glob("*.bin"))
    write(second, read(second) | {"lm_head.weight": read(first).get("lm_head.weight", np.ones(1, np.float32))})
    write(first, read(first) | {"lm_head.weight": np.ones(1, np.float32)})
    with pytest.raises(UserError, match="both hold lm_head.weight"):
        Tensors(v1_of_torch)


def test_numbers_of_a_big_endian_machine_are_swapped(tmp_path):
    path, given = tmp_path / "x.bin", {"a": BASE, "b": BASE.astype(ml_dtypes.bfloat16)}
    data = {"data/0": BASE.astype(">f4").tobytes(), "data/1": given["b"].view(np.uint16).astype(">u2").tobytes()}
    write(path, given, members=data | {"byteorder": b"big"})
    for name, array in read(path).items():
        np.testing.assert_array_equal(array, given[name])
    write(path, given, members={"byteorder": None})  # files of torch before 2.1 have none
    np.testing.assert_array_equal(read(path)["a"], BASE)
    write(path, given, members={"byteorder": b"middle"})
    with pytest.raises(UserError, match="its byte order is 'middle'"):
        read(path)


def test_only_the_asked_part_of_a_storage_is_read(tmp_path, monkeypatch):
    """Two tensors share a storage; the second is its last three numbers."""
    size = BASE.size
    both = b"X\1\0\0\0a" + tensor("FloatStorage", "0", size, 0, (24,), (1,))
    both += b"X\1\0\0\0b" + tensor("FloatStorage", "0", size, 21, (3,), (1,))
    write(tmp_path / "x.bin", {"all": BASE}, code=b"\x80\2" + NEW_DICT + b"(" + both + b"u.")
    entries, sizes, fromfile = dict(torch_file.entries(tmp_path / "x.bin")), [], np.fromfile

    def counted(file, dtype, count, **where):
        sizes.append(count)
        return fromfile(file, dtype, count, **where)

    monkeypatch.setattr(np, "fromfile", counted)
    np.testing.assert_array_equal(entries["b"].read(), [21, 22, 23])
    assert sizes == [12]


def test_an_archive_beyond_4_gigabytes_is_read(tmp_path):
    """Its directory has the places of later members as 64-bit numbers.  The file has a hole, which takes no room."""
    path, hole = tmp_path / "x.bin", 4 * 2**30
    write(path, {"a": BASE})
    with zipfile.ZipFile(path) as archive:
        content = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
            archive.start_dir = max(archive.start_dir, hole)  # where the next member begins
    np.testing.assert_array_equal(read(path)["a"], BASE)
    assert path.stat().st_size > hole and dict(torch_file.entries(path))["a"].start > hole


def test_code_in_a_file_is_not_run(tmp_path):
    path, made = tmp_path / "x.bin", tmp_path / "made"
    touch = b"cbuiltins\nopen\n(X%c\0\0\0%sX\1\0\0\0wtR." % (len(str(made)), str(made).encode())
    pickle.loads(touch).close()
    assert made.exists()  # an ordinary unpickler runs it
    made.unlink()
    write(path, {}, code=touch)
    with pytest.raises(UserError, match="it holds builtins.open, which is not run.$"):
        read(path)
    path.write_bytes(b"".join(pickle.dumps(each, 2) for each in (torch_file.MAGIC, 1001, {})) + touch)
    with pytest.raises(UserError, match="it holds builtins.open, which is not run.$"):
        read(path)
    assert not made.exists()


def test_a_pickle_changes_nothing_of_the_program(tmp_path):
    """The opcode BUILD sets attributes of any object, here of what tensors are made by."""
    for made in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"):
        write(tmp_path / "x.bin", {}, code=b"\x80\2" + made + b"N}X\x0c\0\0\0__defaults__)s\x86b.")
        with pytest.raises(UserError, match="is not a file of torch's tensors"):
            read(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": {"data/0": None}}, r"the numbers of its a \(storage 0\) are missing"),
        ({"members": {"data/0": bytes(95)}}, "its a reaches beyond its storage"),
        ({"members": {"data.pkl": None}}, "it has no data.pkl"),
        ({"compression": zipfile.ZIP_DEFLATED}, "x/data.pkl in it is compressed"),
        ({"code": pickle.dumps([1], 2)}, "it is not a dict of tensors"),
        ({"code": pickle.dumps({"epoch": 3}, 2)}, "its epoch is not a tensor"),
        ({"code": pickled({"a": BASE})[:-1]}, "exhausted"),
        ({"code": b"\x80\2}r\xff\xff\xff\x7f."}, "damaged or unknown LONG_BINPUT"),  # would reserve 32 GB
        ({"code": b"\x80\5\x96" + bytes(8) + b"."}, "damaged or unknown BYTEARRAY8"),
        (
            {"code": pickled({"a": BASE}).replace(b"FloatStorage", b"ComplexFloatStorage")},
            "it holds torch.Complex",
        ),
        ({"code": pickled({"a": BASE}).replace(b"I6\n", b"I-6\n")}, "its a has an impossible shape"),
        ({"code": pickled({"a": BASE}).replace(b"I0\n", b"I1\n")}, "its a reaches beyond its storage"),
    ],
)
def test_files_with_something_wrong_are_refused(tmp_path, change, message):
    write(tmp_path / "x.bin", {"a": BASE}, **change)
    with pytest.raises(UserError, match=f"x.bin is not a file of torch's tensors that can be read: .*{message}"):
        read(tmp_path / "x.bin")


def test_members_of_one_name_are_refused(tmp_path):
    write(tmp_path / "x.bin", {"a": BASE})
    with zipfile.ZipFile(tmp_path / "x.bin", "a") as archive:
        archive.writestr("y/data/0", bytes(96))
    with pytest.raises(UserError, match="it has two members data/0"):
        read(tmp_path / "x.bin")


@pytest.mark.parametrize("name", ["archive", "sequence"])
def test_files_that_are_cut_short_are_refused(tmp_path, name):
    path, whole = tmp_path / "x.bin", (GOLDENS / f"torch_files/{name}.bin").read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut short|is not a file of torch"):
            read(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="git lfs pull"):
        read(path)


def test_no_damage_ends_in_a_traceback(tmp_path):
    path, random = tmp_path / "x.bin", np.random.default_rng(0)
    for name in ("archive", "sequence"):
        whole = np.fromfile(GOLDENS / f"torch_files/{name}.bin", np.uint8)
        for _ in range(300):
            damaged = whole.copy()
            damaged[random.integers(len(whole), size=3)] = random.integers(256, size=3)
            np.delete(damaged, random.integers(len(whole), size=random.integers(2))).tofile(path)
            try:
                read(path)
            except UserError:
                continue
