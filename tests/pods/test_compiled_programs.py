"""What `deepseek-jax compile` finds in a compiled program (HLO text), and its report."""

import os
import re
import signal
import types

import numpy as np
import pytest

from deepseek_jax.config import Experiment, TrainConfig
from deepseek_jax.parallel.chips import CHIPS
from deepseek_jax.parallel.topology import parse
from deepseek_jax.pods import hlo
from deepseek_jax.pods.collectives import Collective, collectives, first_group, totals
from deepseek_jax.pods.compiling import Outcome
from deepseek_jax.pods.remarks import captured_remarks
from deepseek_jax.pods.report import page, report, scope, source
from deepseek_jax.pods.roofline import bandwidth, bytes_written
from deepseek_jax.pods.text import duration, verdict
from tests.pods import programs
from tests.train import tiny


def test_collectives_of_a_compiled_program(on_devices):
    """A collective in a loop counts once for each iteration; bytes are those that a ring algorithm sends."""
    read = on_devices(8, programs.communication)
    assert read["loops"] == 0
    assert read["found"] == {
        "all-gather": [5, 4, 5 * 3 * 4096],
        "reduce-scatter": [5, 4, 5 * 0.75 * 16384],
        "all-to-all": [5, 2, 5 * 0.5 * 4096],
        "collective-permute": [1, 2, 4096],
        "all-reduce": [1, 8, 2 * 7 / 8 * 4096],
    }
    assert read["groups"]["all-gather"] == [0, 1, 2, 3] and read["groups"]["all-to-all"] == [0, 4]
    assert read["written"] > 5 * (16384 + 4096)


@pytest.mark.parametrize(
    "attributes, group",
    [
        ("replica_groups={{0,2},{1,3}}, to_apply=%add", (0, 2)),
        ("replica_groups=[2,4]<=[8], dimensions={0}", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={1}", (0, 4)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", (0, 4)),
        ("source_target_pairs={{3,5},{5,3}}", (3, 5)),
        ("replica_groups={}, to_apply=%add", tuple(range(8))),
    ],
)
def test_every_spelling_of_replica_groups_is_parsed(attributes, group):
    assert first_group(attributes, 8) == group


PROGRAM = """HloModule jit_step, is_scheduled=true

%condition.1 (arg.1: (s32[], /*index=1*/bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(58)
  %arg.1 = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body.1 (arg.2: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %arg.2 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%arg.2), index=1
  %gathered-start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %gathered = bf16[16,8]{1,0} all-gather-done(%gathered-start)
  ROOT %result = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%x, %x)
}

ENTRY %main (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%p), condition=%condition.1, body=%body.1
}
"""


def test_a_loops_trip_count_is_read_from_its_condition():
    """As TPU programs are written: no trip count, tiled layouts, asynchronous pairs of -start and -done."""
    program = hlo.parse(PROGRAM)
    assert program.entry == "main" and program.unknown_loops == 0
    runs = {each.name: times for each, _, times, _ in program.executed()}
    assert runs["loop"] == 1 and runs["gathered-start"] == 58


def test_a_trip_count_in_a_fused_condition_is_found():
    compared = "  ROOT %less = pred[] compare(%i, %limit), direction=LT"
    i = "  %i = s32[] get-tuple-element(%at.1), index=0"
    fused = [
        "%fused (i: s32[]) -> pred[] {",
        "  %i = s32[] parameter(0)",
        "  %limit = s32[] constant(14)",
        compared,
        "}",
    ]
    condition = ["%over (at.1: (s32[])) -> pred[] {", "  %at.1 = (s32[]) parameter(0)", i]
    condition += ["  ROOT %less.1 = pred[] fusion(%i), kind=kLoop, calls=%fused", "}"]
    body = ["%body (at: (s32[])) -> (s32[]) {", "  ROOT %at = (s32[]) parameter(0)", "}"]
    entry = ["ENTRY %main (p: (s32[])) -> (s32[]) {", "  %p = (s32[]) parameter(0)"]
    entry += ["  ROOT %loop = (s32[]) while(%p), condition=%over, body=%body", "}"]
    program = hlo.parse("\n".join(fused + condition + body + entry))
    assert program.unknown_loops == 0
    assert {each.name: times for each, _, times, _ in program.executed()}["at"] == 14


WRITES = """HloModule jit_step, is_scheduled=true

%put (at: f32[100,8], row: f32[1,8], i: s32[]) -> (f32[100,8], f32[2,8]) {
  %at = f32[100,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %put.1 = f32[100,8]{1,0} dynamic-update-slice(%at, %row, %i, %i)
  %two = f32[2,8]{1,0} broadcast(%row), dimensions={0,1}
  ROOT %both = (f32[100,8]{1,0}, f32[2,8]{1,0}) tuple(%put.1, %two)
}

%scatter (y: f32[8,8]) -> f32[2,8] {
  %y = f32[8,8]{1,0} parameter(0)
  %sum = f32[8,8]{1,0} all-reduce(%y), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[2,8]{1,0} dynamic-slice(%sum), dynamic_slice_sizes={2,8}
}

%yes (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %sine = f32[4,8]{1,0} sine(%a)
}

%no (b: f32[4,8]) -> f32[4,8] {
  %b = f32[4,8]{1,0} parameter(0)
  ROOT %near = f32[4,8]{1,0:T(8,128)S(1)} cosine(%b)
}

%inner (c: f32[4,8]) -> f32[4,8] {
  %c = f32[4,8]{1,0} parameter(0)
  ROOT %chosen = f32[4,8]{1,0} conditional(%c), branch_computations={%yes, %no}
}

%outer (d: f32[4,8]) -> f32[4,8] {
  %d = f32[4,8]{1,0} parameter(0)
  ROOT %turn = f32[4,8]{1,0} while(%d), condition=%never, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
}

ENTRY %main (p: f32[100,8], q: f32[1,8], i.1: s32[]) -> f32[4,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = f32[1,8]{1,0} parameter(1)
  %x = f32[4,8]{1,0} parameter(2)
  %i.1 = s32[] parameter(3)
  %fused = (f32[100,8]{1,0}, f32[2,8]{1,0}) fusion(%p, %q, %i.1), kind=kLoop, calls=%put
  %moved-start = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[]) copy-start(%x)
  %large = f32[8,8]{1,0} negate(%x)
  %part.1 = f32[2,8]{1,0} fusion(%large), kind=kLoop, calls=%scatter
  %sent = f32[4,8]{1,0} ragged-all-to-all(%x, %large, %i.1), replica_groups={{0,4}}
  ROOT %loop = f32[4,8]{1,0} while(%x), condition=%never, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
}
"""
# Rows of 32 bytes: 1 + 2 by %fused, 8 by %large, 2 by %part.1, 4 by %sent, and 4 by %sine in each of 3 x 5 iterations.
# The other branch, %near, writes to the faster memory, S(1), which does not count.
WRITTEN = 32 * (1 + 2 + 8 + 2 + 4 + 3 * 5 * 4)


def test_bytes_written_and_collectives_of_a_program():
    program = hlo.parse(WRITES)
    assert program.unknown_loops == 0
    assert bytes_written(program) == WRITTEN
    found = [(each.kind, each.group, each.operand, each.times) for each in collectives(program, 8)]
    assert found == [("reduce-scatter", (0, 1, 2, 3), 8 * 32, 1), ("ragged-all-to-all", (0, 4), 4 * 32, 1)]


def test_a_loop_with_an_ambiguous_limit_is_unknown_and_counted_once():
    program = hlo.parse(PROGRAM.replace("  %counter", "  %other = s32[]{:T(128)} constant(7)\n  %counter"))
    assert program.unknown_loops == 1
    assert {each.name: times for each, _, times, _ in program.executed()}["gathered-start"] == 1


def test_a_report_says_what_fits_and_how_fast_it_could_be():
    """Times are by the vendors' peaks.  Rematerialised FLOPs are not useful; aliased results take no extra memory."""
    topology = parse("h100:1x8")
    experiment = Experiment(model=tiny.MOE, train=TrainConfig(remat="full"))
    abstract = types.SimpleNamespace(experiment=experiment, batch={"tokens": np.zeros((2, 4, 64), np.int32)})
    mesh = types.SimpleNamespace(shape={"data": 1, "fsdp": 8}, devices=np.full((1, 8), None))

    def of(**sizes):
        memory = types.SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
        executable = types.SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: WRITES)
        return report(abstract, Outcome(executable, "", 1.0, []), topology, mesh)

    room = topology.chip.memory
    found = of(argument=room - 100, temp=60, output=50, alias=10)
    assert found.fits and (found.temporaries, found.results) == (60, 40)
    assert not of(argument=room - 100, temp=60, output=51, alias=10).fits
    assert (found.tokens, found.mesh) == (512, {"fsdp": 8})
    sent = (0.75 * 8 + 0.5 * 4) * 32
    times = found.flops * 4 / 3 / (8 * 989e12), 2 * WRITTEN / 3350e9, sent / 450e9
    assert (found.compute_seconds, found.memory_seconds, found.network_seconds) == pytest.approx(times)
    useful = times[0] * 3 / 4
    assert found.utilisation == pytest.approx((useful / sum(times), useful / max(times)))
    low, high = (f"{share:.0%}" for share in found.utilisation)
    assert low != high and re.search(
        f"all overlapping +{duration(max(times))}, utilisation {high}\n.* nothing overlaps .* {low}\n", page(found)
    )


def test_sizes_of_shapes():
    assert hlo.size("(f32[2,3]{1,0:T(8,128)}, bf16[4]{0:T(1024)}, pred[])") == 24 + 8 + 1
    assert hlo.size("bf16[4,8]{1,0:T(8,128)(2,1)S(1)}", memory=0) == 0


def test_totals_are_sorted_by_bytes_sent():
    few, many = (Collective(kind, (0, 1), 8, times, "") for kind, times in (("all-gather", 1), ("all-reduce", 9)))
    assert list(totals([few, many, few]).items()) == [("all-reduce", (9, 72)), ("all-gather", (2, 16))]


def test_a_groups_bandwidth_follows_from_the_torus_dimensions_it_spans():
    class Device:
        def __init__(self, *coords):
            self.coords = coords

    devices = [Device(x, y, 0) for x in range(2) for y in range(2)]
    v5p, h100 = CHIPS["v5p"], CHIPS["h100"]
    assert bandwidth((0, 1), v5p, devices) == 2 * v5p.link
    assert bandwidth((0, 1, 2, 3), v5p, devices) == 4 * v5p.link
    assert bandwidth((0, 7), h100, []) == h100.link
    assert bandwidth((0, 8), h100, []) == h100.network
    assert bandwidth((0, 7), parse("h100:2x4").chip, []) == h100.network, "hosts of four"


@pytest.mark.parametrize(
    "op_name, expected",
    [
        ("jit(step)/transpose(jvp(layers_3-60))/while/body/moe/dot", "layers_3-60/moe/dot, backward"),
        ("(jit(step)/mtp/moe/psum:jit(step)/transpose(jvp(mla))/psum:jit(step)/a)", "mtp/moe/psum, and 2 more"),
        ("", "a place without a name"),
    ],
)
def test_op_names_are_shortened_to_places_in_the_model(op_name, expected):
    assert scope(op_name) == expected


def test_the_source_line_follows_the_place_where_it_is_known():
    assert source("jit(step)/mtp/dot", "models/mtp.py:7") == "mtp/dot, models/mtp.py:7"
    assert source("jit(step)/mtp/dot", "") == "mtp/dot"


@pytest.mark.parametrize(
    "seconds, text", [(106.424, "106.42 s"), (0.1, "0.10 s"), (0.0364, "36.40 ms"), (9e-6, "9.00 µs"), (0, "0.00 µs")]
)
def test_durations_are_written_in_a_fitting_unit(seconds, text):
    assert duration(seconds) == text


def test_the_verdict_says_whether_the_memory_suffices():
    topology = parse("v5p:2x2x1")
    assert verdict(90 * 2**30, topology) == "fits: 90.0 of 95.0 GiB a device of v5p:2x2x1"
    assert verdict(100 * 2**30, topology) == ("does not fit: 100.0 of 95.0 GiB a device of v5p:2x2x1, 5.0 GiB too much")
    assert verdict(50 * 2**20, topology) == "fits: 50.0 MiB of 95.0 GiB a device of v5p:2x2x1"


def test_compiler_remarks_are_captured_and_other_output_passes_to_stderr(capfd):
    remark = b"W0 [SPMD] Involuntary full rematerialization. %dot\n"
    with captured_remarks() as remarks:
        os.write(2, b"first\n" + remark + b"last")
        assert remarks == []
    os.write(2, b".")
    assert remarks == [remark.decode().rstrip()]
    assert capfd.readouterr().err == "first\nlast."


def test_the_message_of_a_compiler_that_aborts_reaches_stderr(run_python):
    program = """
import os
from deepseek_jax.pods.remarks import captured_remarks
with captured_remarks():
    os.write(2, b"F0 Check failed: what the matter is")
    os.abort()
"""
    result = run_python("-c", program)
    assert result.returncode == -signal.SIGABRT and "Check failed: what the matter is" in result.stderr


# The beginning of one of this project's compiled steps, with most rows left out.  Its stack frames lead from `main` to
# `Block._attend` and on to `constrain`, and from the step to Optax's `tree_norm`.
TABLES = """HloModule jit_step, is_scheduled=true, entry_computation_layout={()->f32[]}, num_partitions=8

FileNames
1 "<frozen runpy>"
2 "ROOT/deepseek_jax/__main__.py"
3 "ROOT/deepseek_jax/models/block.py"
4 "ROOT/deepseek_jax/parallel/rules.py"
5 "ROOT/.venv/lib/python3.11/site-packages/optax/tree_utils/_tree_math.py"
6 "ROOT/deepseek_jax/train/step.py"

FunctionNames
1 "_run_module_as_main"
2 "main"
3 "Block._attend"
4 "constrain"
5 "tree_norm"
6 "make_step.<locals>.step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=198 end_line=198 column=0 end_column=0}
2 {file_name_id=2 function_name_id=2 line=70 end_line=70 column=4 end_column=4}
3 {file_name_id=3 function_name_id=3 line=86 end_line=86 column=15 end_column=15}
4 {file_name_id=4 function_name_id=4 line=199 end_line=199 column=11 end_column=11}
5 {file_name_id=6 function_name_id=6 line=54 end_line=54 column=17 end_column=17}
6 {file_name_id=5 function_name_id=5 line=131 end_line=131 column=11 end_column=11}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}
5 {file_location_id=5 parent_frame_id=3}
6 {file_location_id=6 parent_frame_id=6}


ENTRY %main () -> f32[] {
  ROOT %zero = f32[] constant(0), metadata={op_name="jit(step)/zeros" stack_frame_id=6}
}
"""


@pytest.mark.parametrize(
    "metadata, expected",
    [
        ('op_name="a" stack_frame_id=2', "deepseek_jax/__main__.py:70"),
        ('op_name="a" stack_frame_id=4', "deepseek_jax/models/block.py:86"),  # which calls `constrain`
        ('op_name="a" stack_frame_id=6', "deepseek_jax/train/step.py:54"),  # which calls Optax
        ('op_name="a" stack_frame_id=1', ""),
        ('op_name="a" stack_frame_id=7', ""),
        ('op_name="a"', ""),
        ('op_name="a" source_file="a.py" source_line=7', "a.py:7"),  # as older versions of XLA write it
    ],
)
def test_metadata_leads_to_the_innermost_line_of_this_package(metadata, expected):
    frames = hlo.parse(TABLES.replace("ROOT", str(hlo.PACKAGE.parent))).frames
    assert hlo.place(metadata, frames) == expected
    assert all((hlo.PACKAGE.parent / name).is_file() for name in hlo.HELPERS)


def test_a_compiler_remark_leads_to_its_source_line(on_devices):
    """With what this XLA really prints: the remark on standard error and the program with the stack frames."""
    assert on_devices(8, programs.remarks) == [
        ["jit(moved)/layers/sharding_constraint", "deepseek_jax/models/moved.py:4"],
    ]
