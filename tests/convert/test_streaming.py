"""Checkpoints larger than memory: tensors come and go one at a time, and devices read no more than their part."""

import shutil
import weakref
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from deepseek_jax.convert import huggingface
from deepseek_jax.convert.safetensors_file import Entry
from deepseek_jax.convert.tensors import Tensors

V3 = Path(__file__).parents[1] / "goldens/v3"


@pytest.fixture
def most_alive(monkeypatch):
    """The most bytes of tensors, as read from files, that were there at one time."""
    alive, most, read = {}, [0], Entry.read

    def watched(entry):
        array = read(entry)
        alive[id(array)] = array.nbytes
        weakref.finalize(array, alive.pop, id(array))
        most[0] = max(most[0], sum(alive.values()))
        return array

    monkeypatch.setattr(Entry, "read", watched)
    return most


@pytest.fixture
def sharded_by_file(tmp_path):
    config = huggingface.read_config(V3)
    huggingface.save(tmp_path / "sharded", config, *huggingface.load(V3, config), shard_bytes=10**5)
    return tmp_path / "sharded"


def largest(directory):
    tensors = Tensors(directory)
    return max(tensors[name].nbytes for name in tensors.names)


def test_loading_holds_one_tensor(sharded_by_file, most_alive):
    huggingface.load(sharded_by_file, huggingface.read_config(sharded_by_file))
    assert 0 < most_alive[0] <= 2 * largest(V3)  # one is read while the one before it is let go


def test_rewriting_holds_one_tensor_and_changes_no_byte(sharded_by_file, tmp_path, most_alive):
    huggingface.rewrite(sharded_by_file, tmp_path / "whole")
    assert 0 < most_alive[0] <= 2 * largest(V3)
    written, original = load_file(tmp_path / "whole/model.safetensors"), load_file(V3 / "model.safetensors")
    assert written.keys() == original.keys()
    for name in original:
        assert written[name].tobytes() == original[name].tobytes(), name


FOUR_DEVICES = """
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.convert import huggingface

directory = Path(sys.argv[1])
config = huggingface.read_config(directory)
once, read = [], []
whole = huggingface.load(directory, config, progress=lambda *told: once.append(told))
mesh = Mesh(np.array(jax.devices()), ("four",))


def sharding(path, leaf):
    if "experts" in [getattr(key, "key", None) for key in path]:
        return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 3), "four"))
    return NamedSharding(mesh, PartitionSpec())


shardings = jax.tree_util.tree_map_with_path(sharding, whole)
placed = huggingface.load(directory, config, shardings=shardings, progress=lambda *told: read.append(told))
jax.tree.map(np.testing.assert_array_equal, placed, whole)
assert jax.tree.all(jax.tree.map(lambda leaf, at: leaf.sharding == at, placed, shardings))
experts = placed[0]["layers"]["1-2"]["feed_forward"]["experts"]["gate"]
assert experts.addressable_shards[0].data.shape[1] == config.n_routed_experts // 4
assert read == once and read[-1] == (len(read), len(read)), "no tensor is read twice"
"""


def test_each_device_reads_its_part(python):
    done = python("-c", FOUR_DEVICES, str(V3), devices=4)
    assert done.returncode == 0, done.stderr


def test_progress_counts_what_is_written(tmp_path):
    config, told = huggingface.read_config(V3), []
    trees = huggingface.load(V3, config)
    huggingface.save(tmp_path / "out", config, *trees, progress=lambda *counts: told.append(counts))
    header = 8 + int.from_bytes((tmp_path / "out/model.safetensors").read_bytes()[:8], "little")
    written = (tmp_path / "out/model.safetensors").stat().st_size - header
    assert told[-1] == (written, written) and sorted(told) == told


def test_a_copy_of_ours_is_enough(tmp_path):
    """Nothing is read from the directory that a checkpoint was loaded from once it is loaded."""
    source = shutil.copytree(V3, tmp_path / "source")
    config = huggingface.read_config(source)
    trees = huggingface.load(source, config)
    shutil.rmtree(source)
    huggingface.save(tmp_path / "out", config, *trees)
    assert Tensors(tmp_path / "out").names == Tensors(V3).names
