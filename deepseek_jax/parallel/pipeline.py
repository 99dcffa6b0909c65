"""Pipeline parallelism: a stack's layers spread over the mesh axis `stage`, microbatches passed along (GPipe).

In each turn every stage runs its own layers on one microbatch, all stages at once, and hands the result to the next:
stage s works on microbatch m in turn m + s, so M microbatches take M + N - 1 turns, of which each stage spends N - 1
without one (arXiv:1811.06965).  The turns are one scan; the backward pass is its transpose, the same pipeline from the
last stage to the first.  docs/parallel.md says what it costs.

Outside of the pipeline the stages share the batch, so that no layer is computed twice.

N stages  M microbatches  P devices that share a microbatch  B sequences, B/M in a microbatch
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from deepseek_jax.errors import UserError
from deepseek_jax.parallel.rules import RULES, axis_size, constrain, current_mesh

STAGE = RULES["pipelined_layers"]


def run(layers: Callable, stacks, x, context, microbatches: int = 0):
    """layers(stacks, x, context), stage by stage where the current mesh has stages; M = `microbatches` or, for 0, N.

    layers(stacks, x, context) -> (the next x, reports) runs as many layers as lie stacked in the arrays of `stacks`.
    x and the arrays of `context` are [B S ...], but for those without a dimension, which hold for all.  Reports lead
    with the layer and are sums over sequences, so that microbatches add up.
    """
    mesh = current_mesh()
    if mesh is None or mesh.shape[STAGE] == 1:
        return layers(stacks, x, context)
    dealt = mesh.shape[STAGE], _sharing(mesh), microbatches or mesh.shape[STAGE]
    x_MB, context = _arrays(lambda array: _deal(array, *dealt), (x, context))
    # A copy for each stage goes in, and the sum over stages comes out, each the other's gradient.
    x_NMB = _spread(jnp.broadcast_to(x_MB, (mesh.shape[STAGE], *x_MB.shape)), "stages", None)
    x_NMB, reports = jax.shard_map(
        functools.partial(_in_turns, layers),
        in_specs=(PartitionSpec(STAGE), PartitionSpec(STAGE), PartitionSpec()),
        out_specs=PartitionSpec(STAGE),
        axis_names={STAGE},  # the other axes are as they were: XLA's, or those of a shard_map in a layer
        check_vma=False,
    )(stacks, x_NMB, _arrays(lambda array: _spread(array, None), context))
    x_MB = _spread(_spread(x_NMB, "stages", None).sum(axis=0), "stages")
    return _collect(x_MB, *dealt), reports


def check(mesh: Mesh, microbatches: int, name: str, size: int):
    """Raises UserError unless `size` sequences can go through as that many microbatches; `name` is the setting's."""
    stages = mesh.shape[STAGE]
    microbatches = microbatches or stages
    if stages == 1:
        return
    if microbatches % stages:
        raise UserError(
            f"train.pipeline_microbatches is {microbatches}, which the {stages} devices of mesh.{STAGE} do not "
            f"divide; make it a multiple of {stages}."
        )
    if size % (microbatches * _sharing(mesh)):
        raise UserError(
            f"{name} is {size}; {microbatches} pipeline microbatches, each shared by {_sharing(mesh)} devices, need "
            f"a multiple of {microbatches * _sharing(mesh)}."
        )


def _sharing(mesh: Mesh | AbstractMesh) -> int:
    """P: devices among which the sequences of one microbatch are spread."""
    return axis_size(mesh, RULES["microbatch"])


def _in_turns(layers, stacks, x_1MB, context):
    """What each stage does, given its layers and all microbatches."""
    stage, stages = jax.lax.axis_index(STAGE), jax.lax.axis_size(STAGE)
    x_MB = x_1MB[0]
    M = x_MB.shape[0]

    def turn(arrived, now):
        number, entering = now
        microbatch = number - stage
        place = jnp.clip(microbatch, 0, M - 1)
        its_context = _arrays(lambda array: array[place], context)
        x, reports = layers(stacks, jnp.where(stage == 0, entering, arrived), its_context)
        working = (microbatch >= 0) & (microbatch < M)
        reports = jax.tree.map(lambda report: jnp.where(working, report, 0), reports)
        return jax.lax.ppermute(x, STAGE, [(here, here + 1) for here in range(stages - 1)]), (x, reports)

    # In turns without a microbatch a stage computes all the same, and nothing counts it: of real states, so that no
    # gradient is 0 times infinity.  To wait would save no time, and a layer's collectives may not be skipped by some.
    entering = jnp.concatenate([x_MB, jnp.broadcast_to(x_MB[-1:], (stages - 1, *x_MB.shape[1:]))])
    _, (left, reports) = jax.lax.scan(turn, x_MB[0], (jnp.arange(M + stages - 1), entering))
    left_1MB = jnp.where(stage == stages - 1, left[stages - 1 :], 0)[None]
    return left_1MB, jax.tree.map(lambda report: report.sum(axis=0), reports)


def _spread(x, *leading: str | None):
    """Microbatches [... B S ...] lie as a batch does, over all axes but stage; dimensions before as `leading` says."""
    axes = *leading, "microbatch", "sequence"
    return constrain(x, (*axes, *(None,) * (x.ndim - len(axes))))


def _deal(x_B, stages: int, sharing: int, microbatches: int):
    """[B ...] as [M B/M ...] such that every device keeps the sequences it has: N x P x M/N x B/(M P) of them."""
    x_NPmb = x_B.reshape(stages, sharing, microbatches // stages, -1, *x_B.shape[1:])
    return x_NPmb.swapaxes(1, 2).reshape(microbatches, -1, *x_B.shape[1:])


def _collect(x_MB, stages: int, sharing: int, microbatches: int):
    """Undoes `_deal`."""
    x_NmPb = x_MB.reshape(stages, microbatches // stages, sharing, -1, *x_MB.shape[2:])
    return x_NmPb.swapaxes(1, 2).reshape(-1, *x_MB.shape[2:])


def _arrays(f, tree):
    """`f` of all leaves that have a dimension."""
    return jax.tree.map(lambda leaf: f(leaf) if leaf.ndim else leaf, tree)
