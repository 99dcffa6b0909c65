"""Pipeline parallelism: a stack's layers spread over the mesh axis `stage`, microbatches passed along, in rounds.

The n layers are cut into R N chunks of L neighbours, and stage s runs the chunks s, N + s, 2 N + s ...; the last ones
are filled up with layers that do nothing where n has no such factors.  In each turn every stage runs one chunk on one
microbatch, all stages at once, and hands the result to the next, the last stage to the first.  Microbatches go in
groups of N: a group makes all of its R rounds before the next one enters, so that a round ends where and when the next
begins.  M microbatches take M R + N - 1 turns, of which each stage spends N - 1 without one (Megatron-LM's interleaved
schedule, arXiv:2104.04473, section 2.2; with one round it is GPipe, arXiv:1811.06965).  The turns are one scan; the
backward pass is its transpose, the same pipeline from the last stage to the first.  docs/parallel.md: what it costs.

Between steps every stage has a part of every layer, as fsdp stores them, so that checkpoints know nothing of stages.
Once a step `_own_layers` brings each stage its layers.  Outside of the pipeline the stages share the batch, so that no
layer is computed twice.

N stages  R rounds  L layers of a chunk  M microbatches  P devices that share a microbatch  B sequences, B/M in one
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from deepseek_jax.errors import UserError
from deepseek_jax.models.schedule import MOST_UNROLLED
from deepseek_jax.models.tree import axes_of, is_variable
from deepseek_jax.parallel.current import current_mesh
from deepseek_jax.parallel.rules import (
    PIPELINED,
    RANK,
    RULES,
    STORED,
    axis_size,
    constrain,
    open_spec,
    shard_map,
    varying,
)

STAGE = RULES["stages"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How many `layers` go over how many `stages`, in how many `rounds`, with how many `microbatches`."""

    layers: int
    stages: int
    rounds: int
    microbatches: int

    @property
    def chunk(self) -> int:
        """L."""
        return -(-self.layers // (self.stages * self.rounds))

    @property
    def filled(self) -> int:
        """Layers, with those that do nothing."""
        return self.stages * self.rounds * self.chunk

    @property
    def turns(self) -> int:
        return self.microbatches * self.rounds + self.stages - 1


def stages() -> int:
    """Among how many devices layers are spread where this is asked."""
    mesh = current_mesh()
    return mesh.shape[STAGE] if mesh else 1


def run(layer: Callable, stacks, x, context, microbatches: int = 0, rounds: int = 1):
    """(the last x, reports of all layers) of the layers in `stacks`, stage by stage; M is `microbatches` or, for 0, N.

    layer(stacks, x, context, index, number) -> (the next x, its report) runs the one of that `number` among all layers,
    which lies at `index` in the arrays of `stacks`.  It must bring what it takes from them inside of its own
    jax.checkpoint: else every turn keeps a copy.
    x and the arrays of `context` are [B S ...], but for those without a dimension, which hold for all.  Reports are
    sums over sequences, so that microbatches add up; those of all layers lead with the layer.
    """
    mesh = current_mesh()
    depth = jax.tree.leaves(stacks)[0].shape[0]
    check_layers(mesh, rounds, depth)
    schedule = Schedule(depth, mesh.shape[STAGE], rounds, microbatches or mesh.shape[STAGE])
    dealt = schedule.stages, _sharing(mesh), schedule.microbatches
    x_MB, context = _arrays(lambda array: _deal(array, *dealt), (x, context))
    # A copy for each stage goes in, and the sum over stages comes out, each the other's gradient.
    x_NMB = _constrain(jnp.broadcast_to(x_MB, (schedule.stages, *x_MB.shape)), "stages", None)
    x_NMB, reports = jax.shard_map(
        functools.partial(_in_turns, layer, schedule),
        in_specs=(PartitionSpec(STAGE), PartitionSpec(STAGE), PartitionSpec()),
        out_specs=PartitionSpec(STAGE),
        axis_names={STAGE},  # the other axes are as they were: XLA's, or those of a shard_map in a layer
        check_vma=False,
    )(_own_layers(stacks, schedule), x_NMB, _arrays(lambda array: _constrain(array, None), context))
    x_MB = _constrain(_constrain(x_NMB, "stages", None).sum(axis=0), "stages")
    return _collect(x_MB, *dealt), jax.tree.map(lambda report: _in_order(report, schedule), reports)


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
    if size % (parts := smallest_batch(mesh, microbatches)):
        raise UserError(
            f"{name} is {size}; {microbatches} pipeline microbatches, each shared by {_sharing(mesh)} devices, need "
            f"a multiple of {parts}."
        )


def smallest_batch(mesh: Mesh | AbstractMesh, microbatches: int) -> int:
    """One sequence for each device in each microbatch; every batch is a multiple of it."""
    stages = mesh.shape[STAGE]
    parts = math.lcm(microbatches or stages, stages) if stages > 1 else 1
    return _sharing(mesh) * parts


def check_layers(mesh: Mesh | AbstractMesh, rounds: int, depth: int):
    """Raises UserError unless `depth` layers, those that stages share, are one at least for each stage and round."""
    stages = mesh.shape[STAGE]
    if stages > 1 and stages * rounds > depth:
        raise UserError(
            f"{stages} stages (mesh.{STAGE}) times {rounds} (train.pipeline_rounds) are more parts than the {depth} "
            f"layer{'s' * (depth > 1)} that a pipeline can be made of; lower one of them."
        )


def _sharing(mesh: Mesh | AbstractMesh) -> int:
    """P: devices among which the sequences of one microbatch are spread."""
    return axis_size(mesh, RULES["microbatch"])


def _own_layers(stacks, schedule: Schedule):
    """The stacks with the layers of one stage after those of another, each stage's R L of them whole on its devices."""

    def bring(param):
        axes, x = axes_of(param), _by_stage(param[...], schedule)
        apart = [dim for dim, axis in enumerate(axes) if axis in (STORED, RANK)]
        if apart:  # each stage has a part of all layers: it sends every other what is that one's
            return param.replace(jax.lax.all_to_all(x, STAGE, split_axis=0, concat_axis=apart[0], tiled=True))
        x = varying(x, (STAGE,)).reshape(schedule.stages, -1, *x.shape[1:])
        return param.replace(jax.lax.dynamic_index_in_dim(x, jax.lax.axis_index(STAGE), keepdims=False))

    def of_device(stacks):
        return jax.tree.map(bring, stacks, is_leaf=is_variable)

    def specs(leading):
        def spec(param):
            return open_spec(tuple(leading if axis == PIPELINED else axis for axis in axes_of(param)))

        return jax.tree.map(spec, stacks, is_leaf=is_variable)

    with jax.named_scope("own_layers"):
        return shard_map(of_device, (specs(PIPELINED),), specs("stages"))(stacks)


def _by_stage(x_n, schedule: Schedule):
    """[n ...] as [N R L ...], in a row; the layers that do nothing are the last one again."""
    missing = schedule.filled - schedule.layers
    x_n = jnp.concatenate([x_n, jnp.broadcast_to(x_n[-1:], (missing, *x_n.shape[1:]))]) if missing else x_n
    x_RNL = x_n.reshape(schedule.rounds, schedule.stages, schedule.chunk, *x_n.shape[1:])
    return x_RNL.swapaxes(0, 1).reshape(-1, *x_n.shape[1:])


def _in_order(x_NRL, schedule: Schedule):
    """Undoes `_by_stage`."""
    x_NRL = x_NRL.reshape(schedule.stages, schedule.rounds, schedule.chunk, *x_NRL.shape[1:])
    return x_NRL.swapaxes(0, 1).reshape(-1, *x_NRL.shape[3:])[: schedule.layers]


def _in_turns(layer, schedule: Schedule, stacks, x_1MB, context):
    """What each stage does, given its layers and all microbatches."""
    N, R, L, M = schedule.stages, schedule.rounds, schedule.chunk, schedule.microbatches
    stage = jax.lax.axis_index(STAGE)
    ring = [(here, (here + 1) % N) for here in range(N if R > 1 else N - 1)]

    def run_chunk(x, context, round_):
        """The L layers of this stage's chunk."""

        def run_layer(x, index):
            number = (round_ * N + stage) * L + index
            y, report = layer(stacks, x, context, round_ * L + index, number)
            does_something = number < schedule.layers
            return (y if schedule.filled == schedule.layers else jnp.where(does_something, y, x)), report

        return jax.lax.scan(run_layer, x, jnp.arange(L), unroll=L <= MOST_UNROLLED)

    def turn(carried, number):
        arrived, x_MB = carried
        unit = number - stage  # of the M R chunks that each stage runs
        working, unit = (unit >= 0) & (unit < M * R), jnp.clip(unit, 0, M * R - 1)
        round_, microbatch = unit // N % R, unit // (N * R) * N + unit % N
        waiting = _at(x_MB, microbatch)
        x = jnp.where((stage == 0) & (round_ == 0), waiting, arrived)
        x, reports = run_chunk(x, _arrays(lambda array: _at(array, microbatch), context), round_)
        left = jnp.where(working & (stage == N - 1) & (round_ == R - 1), x, waiting)
        x_MB = jax.lax.dynamic_update_index_in_dim(x_MB, left, microbatch, 0)  # in the place of what entered there
        reports = jax.tree.map(lambda report: jnp.where(working, report, 0), reports)
        return (jax.lax.ppermute(x, STAGE, ring), x_MB), (reports, round_)

    # In turns without a microbatch a stage computes all the same, and nothing counts it: of real states, so that no
    # gradient is 0 times infinity.  To wait would save no time, and a layer's collectives may not be skipped by some.
    x_MB = x_1MB[0]
    (_, x_MB), (reports, rounds_T) = jax.lax.scan(turn, (x_MB[0], x_MB), jnp.arange(schedule.turns))
    reports = jax.tree.map(lambda each: jax.ops.segment_sum(each, rounds_T, R).reshape(-1, *each.shape[2:]), reports)
    return jnp.where(stage == N - 1, x_MB, 0)[None], reports


def _at(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _constrain(x, *leading: str | None):
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
