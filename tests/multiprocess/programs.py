"""Programs for two processes that are connected to each other.

M rows of a microbatch  S sequence length
"""

import re
import time
from pathlib import Path

import jax
import numpy as np

from deepseek_jax.config import MeshConfig
from deepseek_jax.convert import huggingface, reading
from deepseek_jax.convert.tensors import Tensors
from deepseek_jax.errors import UserError
from deepseek_jax.parallel import processes
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.shares import Share
from deepseek_jax.train.checkpoints import any_checkpoint, checkpoint, integrity


def shares():
    """On each mesh a process reads certain rows, and its devices get their parts of the whole batch."""
    M, S = 8, 6
    whole = [np.arange(k, k + M * S).reshape(M, S) for k in (0, 1000)]  # two microbatches
    with processes.together():
        mine = jax.process_index()
        for sizes, read in [
            ({"data": 4}, [range(0, 4), range(4, 8)]),
            ({"data": 1, "fsdp": 2, "tensor": 2}, [range(0, 4), range(4, 8)]),
            ({"data": 2, "tensor": 2}, [range(0, 4), range(4, 8)]),
            ({"data": 1, "tensor": 4}, [range(8), range(8)]),
            ({"data": 2, "context": 2}, [range(0, 4), range(4, 8)]),
            ({"stage": 2, "data": 2}, [range(0, 4), range(4, 8)]),  # outside of the pipeline stages share the batch
            ({"data": 1, "context": 2, "tensor": 2}, [range(8), range(8)]),
        ]:
            share = Share(make_mesh(MeshConfig(**sizes)), M)
            assert list(share.rows) == list(read[mine]), (sizes, share.rows)
            placed = share.place_step([{"tokens": batch[share.rows]} for batch in whole])["tokens"]
            assert placed.shape == (2, M, S)
            for shard in placed.addressable_shards:
                np.testing.assert_array_equal(shard.data, np.stack(whole)[shard.index])
            (single,) = share.place({"tokens": whole[1][share.rows]}).values()
            for shard in single.addressable_shards:
                np.testing.assert_array_equal(shard.data, whole[1][shard.index])


def from_a_late_leader() -> int:
    """What the leader sends after 35 seconds, as it checks a large checkpoint."""
    with processes.together():
        if jax.process_index() == 0:
            time.sleep(35)
        return int(processes.broadcast_from_leader(7 * (jax.process_index() == 0)))


def checked(checkpoints: str) -> list[int]:
    """[the newest intact checkpoint, how many files this process checked for it]"""
    files, checksum = [], integrity._crc32
    integrity._crc32 = lambda path: files.append(path) or checksum(path)
    with processes.together():
        return [checkpoint.newest_intact(Path(checkpoints), say=print), len(files)]


def experts_read(directory: str) -> list:
    """[whether each tensor was read once, the experts that this process read of a checkpoint]"""
    reading._check_copies = lambda *_: None  # which reads a few once more
    directory, asked, told, get = Path(directory), [], [], Tensors.__getitem__
    Tensors.__getitem__ = lambda tensors, name: asked.append(name) or get(tensors, name)
    with processes.together():
        config = huggingface.read_config(directory)
        found = any_checkpoint.read(directory, mesh_of=lambda _: make_mesh(MeshConfig(data=1, expert=4)))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (found.params, found.buffers))
        asked.clear()
        trees = huggingface.load(directory, config, shardings=shardings, report=lambda *counts: told.append(counts))
        read = list(asked)
        for ours, whole in zip(*map(jax.tree.leaves, (trees, huggingface.load(directory, config))), strict=True):
            for shard in ours.addressable_shards:
                np.testing.assert_array_equal(shard.data, whole[shard.index])
        experts = {int(match[1]) for name in read if (match := re.search("experts[.]([0-9]+)[.]", name))}
        return [len(read) == len(set(read)) and told[-1] == ("reading", len(read), len(read)), sorted(experts)]


def one_fails():
    """One process meets an error while the other waits for it."""
    with processes.together():
        if not processes.is_leader():
            raise UserError("the corpus cannot be read.")
        processes.broadcast_from_leader(7)
