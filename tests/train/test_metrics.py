"""Rows of metrics.jsonl: expert balance, step times, and the sinks to which rows are written."""

import dataclasses
import errno
import json
import math
import sys
import types
import unittest.mock

import numpy as np
import pytest

from deepseek_jax.config import Experiment, LogConfig
from deepseek_jax.errors import UserError
from deepseek_jax.train import metrics
from deepseek_jax.train.flops import training_flops
from deepseek_jax.train.loop import train
from deepseek_jax.train.reporting.sinks import Sinks, flat, read_rows
from tests.train import tiny

LOAD = {
    "layers/1-2": np.array([[4.0, 4, 4, 4], [16, 0, 0, 0]]),
    "mtp/0/block": np.array([8.0, 8, 0, 0]),
}
ENTROPY = {"layers/1-2": np.array([1.3, 0.1]), "mtp/0/block": np.array(0.7)}


def test_router_health_is_named_by_layer():
    health = metrics.router_health(LOAD, ENTROPY)
    assert health["router/max_violation"] == {"1": 0, "2": 3, "mtp 0": 1}
    assert health["router/dead_experts"] == {"1": 0, "2": 3, "mtp 0": 2}
    assert health["router/load_entropy"] == pytest.approx({"1": 1, "2": 0, "mtp 0": 0.5})
    assert health["router/entropy"] == pytest.approx({"1": 1.3, "2": 0.1, "mtp 0": 0.7})


def test_layers_are_in_numerical_order_and_mtp_modules_after_them():
    """JAX sorts the keys of dicts as strings, so "10-10" would come before "2-3"."""
    by_block = {"layers/10-10": [1.0], "layers/2-3": [1.0, 1.0], "mtp/0/block": 1.0}
    assert list(metrics.by_layer(by_block)) == ["2", "3", "10", "mtp 0"]


def test_a_dense_model_has_no_router_health():
    assert metrics.router_health({}, {}) == {}


def test_a_single_expert_has_health_metrics_without_nan():
    health = metrics.router_health({"layers/0-0": np.array([[8.0]])}, {"layers/0-0": np.array([0.0])})
    assert health["router/load_entropy"] == {"0": 0} and health["router/max_violation"] == {"0": 0}


def test_bits_per_byte():
    assert metrics.bits_per_byte(math.log(256) * 10, 10) == pytest.approx(8)


def taken(ended):
    return metrics.FinishedStep(ended, units=100, data_wait=0.1, dispatch=0.002, overhead=0.003)


def started(now):
    clock = metrics.Clock("tokens")
    clock.start(now)
    return clock


def test_a_lap_gives_means_per_step():
    clock = started(10.0)
    for ended in (10.5, 11.0, 11.1, 12.0):
        clock.step(taken(ended))
    assert clock.lap() == pytest.approx(
        {
            "step_seconds": 0.5,
            "data_wait_seconds": 0.1,
            "dispatch_seconds": 0.002,
            "overhead_seconds": 0.003,
            "tokens_per_second": 200,
        }
    )
    assert clock.lap() == {}
    clock.step(taken(12.25))
    assert clock.lap()["step_seconds"] == 0.25


def test_steps_of_different_sizes_are_added_up():
    """As where a batch-size ramp reaches its next stage between two rows."""
    clock = started(10.0)
    for ended, units in ((10.5, 100), (11.0, 100), (12.0, 300)):
        clock.step(taken(ended)._replace(units=units))
    assert clock.lap()["tokens_per_second"] == pytest.approx(500 / 2)


def test_a_pause_is_left_out_of_a_lap_and_what_was_before_it_is_not():
    clock = started(0.0)
    for ended in (1.0, 2.0, 3.0):
        clock.step(taken(ended))
    clock.start(10.0)
    clock.step(taken(10.2))
    assert clock.lap()["step_seconds"] == pytest.approx((3 + 0.2) / 4)
    clock.start(20.0)
    clock.step(taken(20.04))  # too short a lap: the step before the pause is averaged in
    assert clock.lap()["step_seconds"] == pytest.approx((0.2 + 0.04) / 2)


def test_a_lap_too_short_to_measure_includes_earlier_steps():
    clock = started(0.0)
    seconds = []
    for ended in (0.06, 0.119, 0.12, 0.18, 0.48):  # the end of the second was seen late
        clock.step(taken(ended))
        seconds.append(clock.lap().get("step_seconds", 0))
    assert seconds == pytest.approx([0, 0.0595, 0.04, 0.04, 0.3])


def test_a_run_too_short_to_measure_has_no_times():
    """Two steps whose ends were seen at almost the same moment once gave 71 million records a second."""
    clock = started(10.0)
    for ended in (10.000003, 10.000005):
        clock.step(taken(ended))
    assert clock.lap() == {}
    clock.step(taken(10.06))
    assert clock.lap()["step_seconds"] == pytest.approx(0.02)


def test_rows_after_the_checkpoint_are_dropped_on_resuming(tmp_path):
    with Sinks(tmp_path, Experiment(log=LogConfig(tensorboard=False)), resumed_at=0) as sinks:
        for step in (1, 2, 3):
            sinks.write({"step": step, "loss/total": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss/to')  # killed while writing
    with Sinks(tmp_path, Experiment(log=LogConfig(tensorboard=False)), resumed_at=2) as sinks:
        sinks.write({"step": 3, "loss/total": 0.25})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss/total": 1.0}, {"step": 2, "loss/total": 0.5}, {"step": 3, "loss/total": 0.25}]
    assert list(read_rows(tmp_path / "metrics.jsonl")) == rows


def test_non_finite_numbers_are_null_in_json_and_read_back_as_nan(tmp_path):
    row = {"step": 1, "loss/total": math.inf, "router/entropy": {"1": math.nan, "2": 0.5}, "router/share": {"1": [0.5]}}
    for step in (0, 1):  # first written, then kept when the run resumes
        with Sinks(tmp_path, Experiment(log=LogConfig(tensorboard=False)), resumed_at=step) as sinks:
            if not step:
                sinks.write(row)

    def refused(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refused)["loss/total"] is None
    (read,) = read_rows(tmp_path / "metrics.jsonl")
    assert math.isnan(read["loss/total"]) and math.isnan(read["router/entropy"]["1"])
    assert read["router/entropy"]["2"] == 0.5 and read["router/share"] == row["router/share"]


def test_nested_numbers_get_flat_names():
    row = {"step": 3, "loss/next": 1.5, "router/dead_experts": {"1": 0}, "router/share": {"1": [0.5, 0.5]}}
    assert dict(flat(row)) == {"loss/next": 1.5, "router/dead_experts/1": 0}


def test_tensorboard_gets_events(tmp_path):
    with Sinks(tmp_path, Experiment(log=LogConfig()), resumed_at=0) as sinks:
        sinks.write({"step": 1, "loss/next": 1.5})
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert b"loss/next" in file.read_bytes()


def test_tensorboard_raises_at_once_on_a_full_disk(tmp_path, monkeypatch):
    from tensorboardX.event_file_writer import EventsWriter

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventsWriter, "flush", full)
    sinks = Sinks(tmp_path, Experiment(log=LogConfig()), resumed_at=0)
    with pytest.raises(OSError, match="No space"):
        sinks.write({"step": 1, "loss/next": math.nan})


def test_wandb_gets_rows_with_our_step_as_step_metric(tmp_path, monkeypatch):
    told, about = unittest.mock.Mock(), {}

    def init(**given):
        return about.update(given) or told

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=OSError))
    with Sinks(tmp_path, Experiment(log=LogConfig(tensorboard=False, wandb_project="p")), resumed_at=0) as sinks:
        sinks.write({"step": 1, "loss/next": 1.5})
    call = unittest.mock.call
    assert told.mock_calls == [
        call.define_metric("*", step_metric="step"),
        call.log({"step": 1, "loss/next": 1.5}),
        call.finish(),
    ]
    assert about["config"]["optimizer.peak_lr"] == Experiment().optimizer.peak_lr and about["allow_val_change"]


def test_wandb_that_is_missing_or_not_logged_in_is_refused_before_data_is_prepared(tmp_path, monkeypatch):
    wanted = dataclasses.replace(tiny.experiment(tmp_path), log=LogConfig(tensorboard=False, wandb_project="p"))
    login = unittest.mock.Mock(side_effect=OSError("No API key configured. Use `wandb login` to log in."))
    for module, message in (
        (None, "pip install wandb"),
        (types.SimpleNamespace(login=login, Error=OSError), "says: No API key .*WANDB_MODE=offline"),
    ):
        monkeypatch.setitem(sys.modules, "wandb", module)
        with pytest.raises(UserError, match=message):
            train(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "prepared").exists()


def test_a_language_models_row_has_bits_per_byte_and_utilisation_of_all_devices(monkeypatch):
    device = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(metrics.jax, "devices", lambda: [device, device])
    measured = {"loss/next": 2.0, "targets": 90.0, "tokens": 100.0, "bytes": 360.0, "attention": 5e3}
    measured |= {"router/load": {}, "router/entropy": {}}
    flops = training_flops(tiny.DENSE, 100, 5e3) / 0.5
    assert metrics.language_model_row(measured, {"step_seconds": 0.5}, tiny.DENSE) == pytest.approx(
        {"bits_per_byte": 180 / math.log(2) / 360, "flops_per_second": flops, "utilisation": flops / 2 / 989e12}
    )
    assert metrics.language_model_row(measured | {"bytes": 0.0}, {}, tiny.DENSE) == {}
