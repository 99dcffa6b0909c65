"""The loop on a real model in miniature: what it writes, and how it fails."""

import dataclasses
import io
import json
import types

import numpy as np
import psutil
import pytest
from rich.console import Console

from deepseek_jax.errors import UserError
from deepseek_jax.train import loop
from deepseek_jax.train.loop import train
from deepseek_jax.train.setup import prepare
from tests.train import tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("loop")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def test_a_run_writes_its_directory(directory):
    console = quiet()
    scores = train(tiny.experiment(directory), directory / "run", console)
    names = {path.name for path in (directory / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "report.html", "samples.txt", "tokenizer.json"} <= names
    shown = console.file.getvalue()
    for wanted in ("validation bits per byte", "gzip -9", "xz -9", "tokens/s", "run directory"):
        assert wanted in shown
    rows = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss/next" in row]
    assert trained[-1]["loss/next"] < trained[0]["loss/next"] - 0.5
    assert scores["final/bits_per_byte"] < 8 and scores["final/gzip -9"] < 8
    assert [row["step"] for row in rows if "val/loss" in row] == [16, 32, 40]
    seconds = {"step_seconds", "data_wait_seconds", "dispatch_seconds", "overhead_seconds"}
    assert seconds <= trained[-1].keys()


def test_a_step_that_is_not_finite_stops_the_run_and_names_the_place(directory):
    config = tiny.experiment(directory)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, peak_lr=1e30, clip_norm=0.0))
    with pytest.raises(UserError, match=r"step 3 is not finite; it began at \w+ in .*\(.*\.py:\d+"):
        train(config, directory / "stopped", quiet())
    assert "Look here:" in (directory / "stopped" / "report.html").read_text()
    rows = [json.loads(line) for line in (directory / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and rows[-1]["skipped"] == 1


def test_a_directory_of_another_experiment_is_refused(directory):
    config = tiny.experiment(directory, steps=10)
    train(config, directory / "mine", quiet())
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=20))
    with pytest.raises(UserError, match="train.steps"):
        train(longer, directory / "mine", quiet())


def test_a_state_larger_than_the_memory_is_refused_before_a_run_begins(directory, monkeypatch):
    """XLA would wait for an array that no CPU's memory can hold, and not end on SIGTERM either."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=100_000))
    with pytest.raises(
        UserError, match=r"parameters and optimizer take 0.0 GiB, and this machine has 0.0 GiB of memory;"
    ):
        train(tiny.experiment(directory), directory / "large", quiet())
    assert not (directory / "large").exists()


def test_a_run_that_keeps_an_average_is_scored_by_it():
    task = types.SimpleNamespace(scores=lambda score, params, buffers, held_out: {"loss": params})
    setup = types.SimpleNamespace(task=task, held_out_batches=lambda split, limit: ())
    run, state = types.SimpleNamespace(setup=setup, score=None), {"params": 1.0, "buffers": {}}
    assert loop._scores(run, state, "val", 0) == {"val/loss": 1.0}
    assert loop._scores(run, state | {"ema": {"params": 2.0, "buffers": {}}}, "val", 0) == {"val/loss": 2.0}


def test_microbatches_change_nothing_of_what_is_scored(directory):
    """They save memory; a score that moved with them would compare runs of different data."""
    experiment = tiny.experiment(directory)
    found = []
    for size in (1, 2, 4):
        split = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, microbatch_size=size))
        batches = list(prepare(split, quiet()).held_out_batches("val", 2))
        assert len(batches) == 8 // size
        found.append(np.concatenate([batch["tokens"] for batch in batches]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
