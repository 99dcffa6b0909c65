"""Each kind of attention alone, in miniature: values, gradients and communication on any mesh of eight host devices.

    python -m tests.parallel.attentions data=2,context=4    prints a JSON object: mesh -> attention -> findings

B batch  S sequence  D model
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deepseek_jax.compiling import under
from deepseek_jax.config import MeshConfig
from deepseek_jax.models import rope
from deepseek_jax.models.attention import window
from deepseek_jax.models.attention.kinds import make_attention
from deepseek_jax.models.attention.sparse import SparseLatentAttention
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.tree import logical_axes, merge, split
from deepseek_jax.parallel import rules
from deepseek_jax.parallel.mesh import make_mesh
from tests.parallel.curves import read

BATCH, LENGTH = 4, 48  # 12 tokens on each of 4 devices, so that windows and runs of hca cross device boundaries

BASE = ModelConfig(
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
    index_n_heads=2,
    index_head_dim=8,
    sliding_window=20,
    csa_rate=3,
    hca_rate=8,
    o_groups=2,
    o_lora_rank=8,
    attention_bias=False,
    initializer_range=0.3,  # large enough that attention is far from uniform
)


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    config: ModelConfig = BASE
    warmup: bool | None = None


CASES = {
    "gqa": Case("gqa"),
    "mla": Case("mla"),
    "dsa masked": Case("dsa", dataclasses.replace(BASE, index_topk=10)),
    "dsa gathered": Case("dsa", dataclasses.replace(BASE, index_topk=5)),
    "dsa warming up": Case("dsa", dataclasses.replace(BASE, index_topk=5), warmup=True),
    "window": Case("window"),
    "hca": Case("hca"),
    "csa masked": Case("csa", dataclasses.replace(BASE, index_topk=4)),
    "csa gathered": Case("csa", dataclasses.replace(BASE, index_topk=2)),
}


KERNELS = {
    "dsa": Case("dsa", dataclasses.replace(BASE, index_topk=64)),
    "dsa warming up": Case("dsa", dataclasses.replace(BASE, index_topk=64), warmup=True),
    "window": Case("window"),
    "hca": Case("hca"),
    "csa": Case("csa", dataclasses.replace(BASE, index_topk=16)),
}


def packed(batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(segment ids, positions) [B S] of documents at random boundaries, with left and right padding in some rows."""
    rng, columns = np.random.default_rng(0), np.arange(length)
    starts = [np.sort(rng.choice(columns[1:], size=row % 4, replace=False)) for row in range(batch)]
    segment_ids = np.stack([1 + np.searchsorted(start, columns, side="right") for start in starts]).astype(np.int32)
    segment_ids[0, -5:], segment_ids[-1, : length // 3] = 0, 0
    begins = np.diff(segment_ids, axis=1, prepend=-1) != 0
    return segment_ids, (columns - np.maximum.accumulate(np.where(begins, columns, 0), axis=1)).astype(np.int32)


def program(mesh: dict[str, int], case: Case, batch: int = BATCH, length: int = LENGTH):
    """(compiled value and gradients; a function that makes their arguments).

    The arguments are params, x [B S D], segment ids and positions [B S].  The value is a weighted sum of all outputs,
    with a different weight for each, plus what the indexer tells, if there is one.
    """
    config, kind = case.config, case.kind

    def make():
        return make_attention(config, kind, rngs=nnx.Rngs(0))

    def value(params, x_BSD, segment_ids_BS, positions_BS):
        tables = {kind: rope.tables(config, kind, positions_BS)}
        warmup = None if case.warmup is None else jnp.asarray(case.warmup)
        context = Context(segment_ids_BS, positions_BS, segment_ids_BS, segment_ids_BS > 0, tables, index_warmup=warmup)
        y_BSD, told = merge(structure, params, {})(x_BSD, context)
        weights_BSD = jnp.sin(jnp.arange(y_BSD.size, dtype=jnp.float32)).reshape(y_BSD.shape)
        learned = sum(jnp.where(segment_ids_BS > 0, each_BS, 0.0).sum() for each_BS in told.values())
        return (y_BSD * weights_BSD).sum() + learned, y_BSD

    module = jax.eval_shape(make)
    structure, params, _ = split(module)
    mesh = make_mesh(MeshConfig(**{"data": 1} | mesh), jax.devices()[: math.prod(mesh.values())])
    by_token = rules.batch_sharding(mesh)
    at = rules.shardings(mesh, logical_axes(module)[0], params), by_token, by_token, by_token
    x = jax.ShapeDtypeStruct((batch, length, config.hidden_size), jnp.float32)
    where = packed(batch, length)
    shapes = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), (params, x, *where), at
    )
    with_gradients = under(mesh, jax.value_and_grad(value, argnums=(0, 1), has_aux=True))
    compiled = jax.jit(with_gradients).lower(*shapes).compile()

    def arguments():
        """Parameters are moved away from their initial values, so that none is zero."""
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype(np.float32), split(make())[1])
        return jax.device_put((params, rng.normal(size=x.shape).astype(np.float32), *where), at)

    return compiled, arguments


def travelling(compiled) -> dict[str, list[int]]:
    """Maps each kind of collective to the sorted bytes of the float32 results that it moves between devices."""
    found = {}
    for line in compiled.as_text().splitlines():
        match = re.search(r"= (.*) (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)\(", line)
        if not match or re.search(r"replica_groups=(\{\{\d+\}|\[\d+,1\])", line):  # groups of one device move nothing
            continue
        for shape in re.findall(r"f32\[([\d,]*)\]", match[1]):
            size = math.prod(int(size) for size in shape.split(",") if size)
            found.setdefault(match[2], []).append(4 * size)
    return {collective: sorted(sizes) for collective, sizes in found.items()}


def on_meshes(*meshes: str) -> dict:
    """For each mesh and case, the communication and each array's largest error relative to one device.

    Errors are relative to the array's largest absolute value.
    """
    found = {mesh: {} for mesh in meshes}
    for name, case in CASES.items():
        compiled, arguments = program({}, case)
        one = jax.device_get(compiled(*arguments()))
        for mesh in meshes:
            compiled, arguments = program(read(mesh), case)
            many = jax.device_get(compiled(*arguments()))
            found[mesh][name] = {"errors": errors(one, many), "travelling": travelling(compiled)}
    return found


def errors(one, many) -> dict[str, float]:
    """Each array's largest difference, relative to its largest absolute value."""
    worst = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(a).max()), one, many)
    return {jax.tree_util.keystr(path): error for path, error in jax.tree_util.tree_leaves_with_path(worst)}


def by_kernels(mesh: str) -> dict[str, dict[str, float]]:
    """For each case of KERNELS, the errors of a TPU's kernels on a mesh, relative to plain attention on one device."""
    sizes = {"batch": 2, "length": 256}  # 128 tokens, of which a kernel's blocks are multiples, on each of 2 devices
    found = {}
    for name, case in KERNELS.items():
        compiled, arguments = program({}, case, **sizes)
        one = jax.device_get(compiled(*arguments()))
        with use_kernels():
            compiled, arguments = program(read(mesh), case, **sizes)
        found[name] = errors(one, jax.device_get(compiled(*arguments())))
    return found


@contextlib.contextmanager
def use_kernels():
    """Attention by a TPU's kernels, interpreted, in place of that by blocks."""

    def mask(self, queries, keys, warmup, block):
        return self.mask_by_kernels(queries, keys, warmup, block, interpret=True)

    turns = functools.partial(window.attend_by_kernels, interpret=True)
    with (
        mock.patch.object(SparseLatentAttention, "_mask_by_blocks", mask),
        mock.patch.object(window, "_attend_in_turns", turns),
    ):
        yield


if __name__ == "__main__":
    print(json.dumps(on_meshes(*sys.argv[1:])))
