"""Layers spread over stages: the schedule, equality with one device, where parameters lie and what is sent."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from deepseek_jax.errors import UserError
from deepseek_jax.models import presets, schedule
from deepseek_jax.parallel import pipeline, rules


@pytest.fixture
def measured(python):
    def run(*arguments):
        result = python("-m", "tests.sharding.pipelined", *arguments, devices=8)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


def test_turns_are_as_many_as_the_schedule_says_and_empty_ones_change_nothing(measured):
    found = measured("schedule")
    assert len(found) == 4
    for each in found:
        assert each["turns"] == each["microbatches"] + each["stages"] - 1
        assert each["error"] < 2e-6, each  # NaN is not


SLOW = pytest.mark.slow


@pytest.mark.parametrize("model", ["v3", pytest.param("v3-four", marks=SLOW), pytest.param("v4", marks=SLOW)])
def test_stages_give_the_curve_of_one_device(measured, model):
    curves = measured("curves", model)
    alone = curves.pop("one")
    assert curves
    for mesh, curve in curves.items():
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(curve[name], alone[name], rtol=1e-5, err_msg=f"{name} of {mesh}")
        assert curve["load"] == alone["load"], mesh


@SLOW
def test_each_stage_holds_its_own_layers_and_only_activations_move(measured):
    found = measured("layout")
    for part in ("parameters", "moments"):
        assert found[part] == {"0-0": [1], "1-4": [2]}, "two of four layers on each stage, the one before them on all"
    assert found["passed on"] == ["f32[1,32,32]"], "the states of one microbatch"
    assert found["parameters gathered"] == []
    assert found["restored"] == [True, True], "a checkpoint does not depend on stages"


def mesh(**sizes):
    sizes = dict.fromkeys(("stage", "data", "fsdp", "context", "expert", "tensor"), 1) | sizes
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))


def test_microbatches_that_stages_do_not_divide_are_refused():
    with pytest.raises(UserError, match="train.pipeline_microbatches is 6, .*mesh.stage.* multiple of 4"):
        pipeline.check(mesh(stage=4), 6, "train.batch_size", 24)


def test_a_batch_without_equal_microbatches_is_refused():
    with pytest.raises(UserError, match="train.batch_size is 24; .* multiple of 16"):
        pipeline.check(mesh(stage=4, data=2), 8, "train.batch_size", 24)
    pipeline.check(mesh(stage=4, data=2), 8, "train.batch_size", 32)
    pipeline.check(mesh(data=2), 8, "train.batch_size", 2)  # without stages the number has no meaning


def test_the_longest_run_of_layers_is_the_pipeline():
    expected = {"v2-lite": ["1-26"], "v3": ["3-60"], "v4-flash": ["3-41by2", "4-42by2"]}
    for name, stacks in expected.items():
        assert [stack.name for stack in schedule.pipelined(presets.PRESETS[name])] == stacks


def test_stages_that_do_not_divide_the_layers_are_refused():
    shapes = {"kernel": jax.ShapeDtypeStruct((58, 4), "float32")}
    with pytest.raises(UserError, match="pipelined_layers = 58, which the 4 devices of mesh.stage do not divide"):
        rules.shardings(mesh(stage=4), {"kernel": ("pipelined_layers", None)}, shapes)
