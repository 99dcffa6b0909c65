"""Programs for processes of their own, which read released checkpoints onto several devices, or with little memory."""

import resource
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from deepseek_jax.config import MeshConfig
from deepseek_jax.convert import huggingface, orbax_directory
from deepseek_jax.convert.entry import Entry
from deepseek_jax.convert.safetensors_file import entries
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train.checkpoints import any_checkpoint

ORBAX_BYTES = 256 << 20


def read_and_saved(directory: str):
    """Experts are read over four devices, everything else onto each, and all is saved again as it was."""
    directory = Path(directory)
    config = huggingface.read_config(directory)
    once, read = [], []
    whole = huggingface.load(directory, config, report=lambda *told: once.append(told))
    mesh = Mesh(np.array(jax.devices()), ("four",))

    def sharding(path, leaf):
        if "experts" in [getattr(key, "key", None) for key in path]:
            return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 3), "four"))
        return NamedSharding(mesh, PartitionSpec())

    shardings = jax.tree_util.tree_map_with_path(sharding, whole)
    placed = huggingface.load(directory, config, shardings=shardings, report=lambda *told: read.append(told))
    jax.tree.map(np.testing.assert_array_equal, placed, whole)
    assert jax.tree.all(jax.tree.map(lambda leaf, at: leaf.sharding == at, placed, shardings))
    experts = placed[0]["layers"]["1-2"]["feed_forward"]["experts"]["gate"]
    assert experts.addressable_shards[0].data.shape[1] == config.n_routed_experts // 4
    assert read == once and read[-1] == ("reading", len(read), len(read)), "no tensor is read twice"
    huggingface.save(Path("saved"), config, *placed)
    written, original = (load_file(path / "model.safetensors") for path in (Path("saved"), directory))
    assert written.keys() == original.keys()
    assert all(written[name].tobytes() == original[name].tobytes() for name in original)


def read_once(directory: str):
    """On meshes of eight devices, some of which hold the same shards."""
    directory = Path(directory)
    config, begins = huggingface.read_config(directory), []
    read, whole = Entry.read, huggingface.load(directory, config)

    def watched(entry):
        begins.append(entry.start)
        return read(entry)

    Entry.read = watched
    for sizes in ({"fsdp": 2, "data": 4}, {"fsdp": 2, "expert": 4}, {"fsdp": 2, "tensor": 2, "data": 2}):
        mesh = make_mesh(MeshConfig(**({"data": 1} | sizes)))
        found = any_checkpoint.read(directory, mesh_of=lambda _, mesh=mesh: mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (found.params, found.buffers))
        assert any(not each.is_fully_replicated for each in jax.tree.leaves(shardings)), sizes
        begins.clear()
        told = []
        placed = huggingface.load(
            directory, config, shardings=shardings, report=lambda *counts, told=told: told.append(counts)
        )
        jax.tree.map(np.testing.assert_array_equal, placed, whole)
        jax.tree.map(
            lambda leaf, at: leaf.sharding == at or sys.exit(f"{leaf.sharding} is not {at}"), placed, shardings
        )
        assert sorted(begins) == sorted(entry.start for _, entry in entries(directory / "model.safetensors")), sizes
        assert told == [("reading", done, len(told)) for done in range(1, len(told) + 1)], sizes


def growth(small: str, large: str, out: str) -> int:
    """The bytes by which rewriting a large checkpoint raises the peak of memory above that of a small one."""
    huggingface.rewrite(Path(small), Path(out) / "small")  # what is loaded once, whatever the size
    before = _peak()
    huggingface.rewrite(Path(large), Path(out) / "large", dtype="bfloat16")
    return _peak() - before


def growth_by_orbax(out: str) -> int:
    """The bytes by which writing an array of ORBAX_BYTES raises the peak of memory."""
    orbax_directory.CHUNK_BYTES = 4 << 20
    noise, config = np.random.default_rng(0).integers(256, size=ORBAX_BYTES, dtype=np.uint8), ModelConfig()
    orbax_directory.save(Path(out) / "small", config, {"a": noise[: 8 << 20]}, {})
    before = _peak()
    orbax_directory.save(Path(out) / "large", config, {"a": noise.reshape(1 << 10, -1)}, {})
    return _peak() - before


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
