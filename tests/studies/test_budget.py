"""Budgets: steps that spend equal tokens, FLOPs or seconds, also with a batch-size ramp."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from deepseek_jax.config import DataConfig, Experiment, StartConfig, TrainConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models.flops import attention_a_token
from deepseek_jax.studies import budget
from deepseek_jax.train import loop
from deepseek_jax.train.flops import training_flops
from deepseek_jax.train.optim import schedules
from tests.train import tiny

PLAIN = Experiment(data=DataConfig(sequence_length=64), train=TrainConfig(batch_size=4))
RAMP = TrainConfig(batch_size=8, microbatch_size=2, ramp_start=2, ramp_stages=3, ramp_fraction=0.5)


def test_steps_of_a_token_budget_are_rounded_down():
    assert budget.steps(PLAIN, "tokens", 2560, None) == 10
    assert budget.steps(PLAIN, "tokens", 2815, None) == 10
    assert budget.steps(PLAIN, "steps", 7, None) == 7


def test_a_growing_batch_spends_the_same_tokens_in_more_steps():
    ramp = dataclasses.replace(PLAIN, train=RAMP)
    steps = budget.steps(ramp, "tokens", 64 * 8 * 100, None)
    spent = budget.units(dataclasses.replace(ramp, train=dataclasses.replace(RAMP, steps=steps)))
    assert steps > 100 and 64 * 8 * 99 < spent[-1] <= 64 * 8 * 100
    assert spent[0] == 64 * 2 and spent[-1] - spent[-2] == 64 * 8


@pytest.mark.parametrize("fraction", [0.1, 0.37, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100, 1009])
def test_total_sequences_are_the_sum_over_steps(steps, fraction):
    for train in (PLAIN.train, RAMP, dataclasses.replace(RAMP, ramp_stages=6)):
        train = dataclasses.replace(train, steps=steps, ramp_fraction=fraction)
        assert 64 * schedules.sequences(train) == budget.units(dataclasses.replace(PLAIN, train=train))[-1]


def test_a_large_budget_without_a_ramp_builds_no_list_of_steps(monkeypatch):
    monkeypatch.setattr(budget, "units", lambda experiment: pytest.fail())
    assert budget.steps(PLAIN, "tokens", 10**11, None) == 10**11 // 256


def test_flops_give_a_wider_model_fewer_steps():
    narrow = dataclasses.replace(PLAIN, model=tiny.DENSE)
    wide = dataclasses.replace(PLAIN, model=dataclasses.replace(tiny.DENSE, intermediate_size=512))
    few, many = (budget.steps(experiment, "flops", 1e10, None) for experiment in (wide, narrow))
    assert 1.5 * few < many


def test_flops_of_a_budget_are_those_that_a_run_counts():
    experiment = dataclasses.replace(PLAIN, model=tiny.DENSE)
    row = float(attention_a_token(tiny.DENSE, jnp.arange(1, 65)).sum())
    ten_steps = training_flops(tiny.DENSE, 10 * 4 * 64, 10 * 4 * row)
    assert [budget.steps(experiment, "flops", share * ten_steps, None) for share in (0.999, 1.001)] == [9, 10]


def test_a_budget_of_seconds_needs_a_measured_speed(tmp_path):
    speed = tmp_path / "low.speed.json"
    with pytest.raises(budget.Unmeasured, match="speed has not been measured yet"):
        budget.steps(PLAIN, "seconds", 10, speed)
    speed.write_text(json.dumps({"per_second": 512.0}))
    assert budget.steps(PLAIN, "seconds", 10, speed) == 20


@pytest.mark.parametrize("equal", ["tokens", "flops", "seconds"])
def test_a_budget_of_less_than_a_step_is_refused(tmp_path, equal):
    speed = tmp_path / "low.speed.json"
    speed.write_text(json.dumps({"per_second": 2.0}))
    with pytest.raises(UserError, match=f"^a budget of 10 {equal} is less than one step"):
        budget.steps(PLAIN, equal, 10, speed)


def test_records_are_no_budget_of_a_language_model():
    with pytest.raises(UserError, match="^equal='records' is for labelled sets"):
        budget.steps(PLAIN, "records", 10_000, None)


def test_a_stopped_speed_trial_counts_as_interrupted_not_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: {})
    with pytest.raises(KeyboardInterrupt):
        budget.measure_speed(PLAIN, tmp_path / "speed.json")
    assert not (tmp_path / "speed.json").exists()


def test_speed_is_measured_without_the_batch_ramp(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(loop, "train", lambda trial, *_: tried.append(trial) or {"tokens_per_second": 7.0})
    budget.measure_speed(dataclasses.replace(PLAIN, train=RAMP), tmp_path / "speed.json")
    assert [schedules.batch_size(trial.train, 0) for trial in tried] == [8]
    assert json.loads((tmp_path / "speed.json").read_text()) == {"per_second": 7.0}


def test_speed_is_measured_from_the_first_step_of_a_variant_that_branches_later(tmp_path, monkeypatch):
    """The trial has fewer steps than the run that the variant branches from."""
    tried = []
    monkeypatch.setattr(loop, "train", lambda trial, *_: tried.append(trial) or {"tokens_per_second": 7.0})
    start = StartConfig(checkpoint="runs/stable", step=4000, full_state=True)
    budget.measure_speed(dataclasses.replace(PLAIN, start=start), tmp_path / "speed.json")
    assert [trial.start for trial in tried] == [dataclasses.replace(start, full_state=False)]
