"""Pipeline parallelism: a stack's layers are split over the mesh axis `stage`; microbatches pass through, in R rounds.

The n layers are cut into R N chunks of L consecutive layers, and stage s runs the chunks s, N + s, 2 N + s ...; if n is
not a multiple of R N, the last chunks are filled up with layers that do nothing.  In each turn every stage runs one
chunk on one microbatch and passes the result to the next stage, the last stage to the first.  Microbatches enter in
groups of N: a group completes all of its R rounds before the next one enters, so that a round ends where and when the
next begins.  M microbatches take M R + N - 1 turns, in N - 1 of which each stage is idle (Megatron-LM's interleaved
schedule, arXiv:2104.04473, section 2.2; with one round it is GPipe, arXiv:1811.06965).  The turns are one scan; the
backward pass is its transpose, the same pipeline from the last stage to the first.  Costs: see docs/parallel.md.

Between steps every stage stores a shard of every layer, as with fsdp, so that checkpoints do not depend on stages.
Once per step `_own_layers` collects each stage's layers.  Outside the pipeline the stages share the batch, so that no
layer is computed twice.

N stages  R rounds  L layers per chunk  M microbatches  P devices that share a microbatch
B sequences, of which B/M are in a microbatch
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from deepseek_jax.errors import UserError
from deepseek_jax.parallel.current import current_mesh, platform
from deepseek_jax.parallel.logical import axes_of, is_variable
from deepseek_jax.parallel.rules import (
    PIPELINED,
    RANK,
    RULES,
    STORED,
    axis_size,
    constrain,
    only_axis,
    shard_map,
    unmapped_axes,
    unmapped_spec,
    varying,
)

STAGE = only_axis("stages")
MOST_UNROLLED = 4


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The numbers of layers, stages, rounds and microbatches, and what follows from them."""

    layers: int
    stages: int
    rounds: int
    microbatches: int

    @property
    def chunk(self) -> int:
        """L: layers per chunk."""
        return -(-self.layers // (self.stages * self.rounds))

    @property
    def filled(self) -> int:
        """The number of layers including those that do nothing."""
        return self.stages * self.rounds * self.chunk

    @property
    def turns(self) -> int:
        return self.microbatches * self.rounds + self.stages - 1


def stages() -> int:
    """The number of pipeline stages of the current mesh; 1 without a mesh."""
    mesh = current_mesh()
    return mesh.shape[STAGE] if mesh else 1


def unrolls(layers: int) -> bool:
    """Whether a scan of so many layers is unrolled.

    A scan compiles a single layer, but copies what each layer saves for the backward pass.  Where the surrounding code
    is mapped over some axes but not over all, layers are not unrolled except on CPUs: libtpu 0.0.42 aborts at a
    `shard_map` in a function that is called several times, as unrolled layers are.
    """
    mesh = current_mesh()
    partly = mesh is not None and bool(mesh.manual_axes) and bool(unmapped_axes())
    return layers <= MOST_UNROLLED and (not partly or platform() == "cpu")


def run(layer: Callable, stacks, x, context, microbatches: int = 0, rounds: int = 1):
    """Runs the layers in `stacks` as a pipeline, with M = `microbatches` (0: N); returns (the last x, all reports).

    layer(stacks, x, context, index, number) -> (the next x, its report) must run layer `number` (of all layers), which
    is at `index` in the stage's arrays `stacks`.  It must slice it from them inside its own jax.checkpoint, or every
    turn keeps a copy.  x and the arrays of `context` are [B S ...], except for scalars, which apply to all.  Reports
    must be sums over sequences, so that microbatches add up; those returned have the layer as first dimension.
    """
    mesh = current_mesh()
    depth = jax.tree.leaves(stacks)[0].shape[0]
    check_layers(mesh, rounds, depth)
    schedule = Schedule(depth, mesh.shape[STAGE], rounds, microbatches or mesh.shape[STAGE])
    dealt = schedule.stages, _sharing(mesh), schedule.microbatches
    x_MB, context = _arrays(lambda array: _deal(array, *dealt), (x, context))
    # Each stage gets a copy of x, and the stages' outputs are summed; these operations are each other's gradients.
    x_NMB = _constrain(jnp.broadcast_to(x_MB, (schedule.stages, *x_MB.shape)), "stages", None)
    x_NMB, reports = jax.shard_map(
        functools.partial(_in_turns, layer, schedule),
        in_specs=(PartitionSpec(STAGE), PartitionSpec(STAGE), PartitionSpec()),
        out_specs=PartitionSpec(STAGE),
        axis_names={STAGE},  # the other axes are left to XLA, or to a shard_map inside a layer
        check_vma=False,
    )(_own_layers(stacks, schedule), x_NMB, _arrays(lambda array: _constrain(array, None), context))
    x_MB = _constrain(_constrain(x_NMB, "stages", None).sum(axis=0), "stages")
    return _collect(x_MB, *dealt), jax.tree.map(lambda report: _in_order(report, schedule), reports)


def check(mesh: Mesh, microbatches: int, name: str, size: int):
    """Raises UserError unless `size` sequences can be divided into `microbatches` (0: one per stage) over the devices.

    `name` is the setting that holds `size`.
    """
    stages = mesh.shape[STAGE]
    microbatches = microbatches or stages
    if stages == 1:
        return
    if microbatches % stages:
        raise UserError(
            f"train.pipeline_microbatches is {microbatches}, which is not divisible by the {stages} devices "
            f"of mesh.{STAGE}; make it a multiple of {stages}."
        )
    if size % (parts := smallest_batch(mesh, microbatches)):
        raise UserError(
            f"{name} is {size}; {microbatches} pipeline microbatches, each shared by {_sharing(mesh)} devices, need "
            f"a multiple of {parts}."
        )


def smallest_batch(mesh: Mesh | AbstractMesh, microbatches: int) -> int:
    """The number of sequences with one per device in each microbatch; every batch must be a multiple of it."""
    stages = mesh.shape[STAGE]
    parts = math.lcm(microbatches or stages, stages) if stages > 1 else 1
    return _sharing(mesh) * parts


def check_layers(mesh: Mesh | AbstractMesh, rounds: int, depth: int):
    """Raises UserError unless the `depth` pipelined layers are at least one for each stage and round."""
    stages = mesh.shape[STAGE]
    if stages > 1 and stages * rounds > depth:
        raise UserError(
            f"{stages} stages (mesh.{STAGE}) times {rounds} (train.pipeline_rounds) are more parts than the {depth} "
            f"layer{'s' * (depth > 1)} that can be pipelined; lower one of them."
        )


def _sharing(mesh: Mesh | AbstractMesh) -> int:
    """P: the number of devices that share the sequences of a microbatch, or of the part of it that the caller has."""
    mapped = mesh.manual_axes if isinstance(mesh, AbstractMesh) else ()
    return axis_size(mesh, tuple(axis for axis in RULES["microbatch"] if axis not in mapped))


def _own_layers(stacks, schedule: Schedule):
    """The stacks with layers reordered and sharded by stage: each stage's devices jointly hold its R L layers whole."""

    def bring(param):
        axes, x = axes_of(param), _by_stage(param[...], schedule)
        apart = [dim for dim, axis in enumerate(axes) if axis in (STORED, RANK)]
        if apart:  # each stage has a shard of all layers: send every other stage its shard of that stage's layers
            return param.replace(jax.lax.all_to_all(x, STAGE, split_axis=0, concat_axis=apart[0], tiled=True))
        x = varying(x, (STAGE,)).reshape(schedule.stages, -1, *x.shape[1:])
        return param.replace(jax.lax.dynamic_index_in_dim(x, jax.lax.axis_index(STAGE), keepdims=False))

    def of_device(stacks):
        return jax.tree.map(bring, stacks, is_leaf=is_variable)

    def specs(leading):
        def spec(param):
            return unmapped_spec(tuple(leading if axis == PIPELINED else axis for axis in axes_of(param)))

        return jax.tree.map(spec, stacks, is_leaf=is_variable)

    with jax.named_scope("own_layers"):
        return shard_map(of_device, (specs(PIPELINED),), specs("stages"))(stacks)


def _by_stage(x_n, schedule: Schedule):
    """[n ...] reordered by stage, [N R L ...] with N, R and L flattened; layers that do nothing repeat the last one."""
    missing = schedule.filled - schedule.layers
    x_n = jnp.concatenate([x_n, jnp.broadcast_to(x_n[-1:], (missing, *x_n.shape[1:]))]) if missing else x_n
    x_RNL = x_n.reshape(schedule.rounds, schedule.stages, schedule.chunk, *x_n.shape[1:])
    return x_RNL.swapaxes(0, 1).reshape(-1, *x_n.shape[1:])


def _in_order(x_NRL, schedule: Schedule):
    """The inverse of `_by_stage`."""
    x_NRL = x_NRL.reshape(schedule.stages, schedule.rounds, schedule.chunk, *x_NRL.shape[1:])
    return x_NRL.swapaxes(0, 1).reshape(-1, *x_NRL.shape[3:])[: schedule.layers]


def _in_turns(layer, schedule: Schedule, stacks, x_1MB, context):
    """The program of one stage, given its layers and all microbatches; the turns are a scan."""
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

        return jax.lax.scan(run_layer, x, jnp.arange(L), unroll=unrolls(L))

    def turn(carried, number):
        arrived, x_MB = carried
        unit = number - stage  # index among the M R (microbatch, round) pairs that each stage runs
        working, unit = (unit >= 0) & (unit < M * R), jnp.clip(unit, 0, M * R - 1)
        round_, microbatch = unit // N % R, unit // (N * R) * N + unit % N
        waiting = _at(x_MB, microbatch)
        x = jnp.where((stage == 0) & (round_ == 0), waiting, arrived)
        x, reports = run_chunk(x, _arrays(lambda array: _at(array, microbatch), context), round_)
        left = jnp.where(working & (stage == N - 1) & (round_ == R - 1), x, waiting)
        x_MB = jax.lax.dynamic_update_index_in_dim(x_MB, left, microbatch, 0)  # outputs replace inputs
        reports = jax.tree.map(lambda report: jnp.where(working, report, 0), reports)
        return (jax.lax.ppermute(x, STAGE, ring), x_MB), (reports, round_)

    # In idle turns a stage computes too, and its result is ignored.  Its input is a real state, so that no gradient is
    # 0 times infinity.  Skipping would save no time, and no device may skip a layer's collectives that others run.
    x_MB = x_1MB[0]
    (_, x_MB), (reports, rounds_T) = jax.lax.scan(turn, (x_MB[0], x_MB), jnp.arange(schedule.turns))
    reports = jax.tree.map(lambda each: jax.ops.segment_sum(each, rounds_T, R).reshape(-1, *each.shape[2:]), reports)
    return jnp.where(stage == N - 1, x_MB, 0)[None], reports


def _at(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _constrain(x, *leading: str | None):
    """Shards microbatches [... B S ...] like a batch but not over `stage`; `leading`: axes of dimensions before B."""
    axes = *leading, "microbatch", "sequence"
    return constrain(x, (*axes, *(None,) * (x.ndim - len(axes))))


def _deal(x_B, stages: int, sharing: int, microbatches: int):
    """[B ...] as [M B/M ...] without moving sequences between devices: B is split as N, P, M/N, B/(M P)."""
    x_NPmb = x_B.reshape(stages, sharing, microbatches // stages, -1, *x_B.shape[1:])
    return x_NPmb.swapaxes(1, 2).reshape(microbatches, -1, *x_B.shape[1:])


def _collect(x_MB, stages: int, sharing: int, microbatches: int):
    """The inverse of `_deal`."""
    x_NmPb = x_MB.reshape(stages, microbatches // stages, sharing, -1, *x_MB.shape[2:])
    return x_NmPb.swapaxes(1, 2).reshape(-1, *x_MB.shape[2:])


def _arrays(f, tree):
    """Applies `f` to all leaves that are not scalars."""
    return jax.tree.map(lambda leaf: f(leaf) if leaf.ndim else leaf, tree)
