"""Early stopping: when patience runs out, and that the parameters of the best evaluation are restored."""

import dataclasses
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.config import Experiment, OptimizerConfig, ScheduleConfig, StoppingConfig
from deepseek_jax.errors import UserError
from deepseek_jax.tasks.scores import NAMES
from deepseek_jax.train import early_stopping, language_model
from deepseek_jax.train.checkpoints import integrity, restore
from deepseek_jax.train.checkpoints.checkpoint import Checkpoints, RunPosition
from deepseek_jax.train.early_stopping import check, judge
from deepseek_jax.train.loop import train
from deepseek_jax.train.reporting import plots
from deepseek_jax.train.reporting.shown import SHOWN
from tests.train import tiny


def course(config, values):
    """(best step, evaluations waited, stopped) after each evaluation."""
    done, seen = RunPosition(), []
    for step, value in enumerate(values, start=1):
        done = judge(config, done, {config.metric: value}, step)
        seen.append((done.best_step, done.waited, done.stopped))
    return seen


def test_patience_counts_evaluations_without_a_better_one():
    config = StoppingConfig(patience=2)
    assert course(config, [3.0, 2.0, 2.5, 1.5, 1.5, 9.0]) == [
        *((1, 0, False), (2, 0, False), (2, 1, False)),
        *((4, 0, False), (4, 1, False), (4, 2, True)),
    ]


def test_better_by_less_than_min_delta_does_not_count():
    assert course(StoppingConfig(patience=2, min_delta=0.5), [3.0, 2.8, 2.6]) == [(1, 0, 0), (1, 1, 0), (1, 2, 1)]
    higher = StoppingConfig("val/accuracy", highest=True, patience=2, min_delta=0.5)
    assert course(higher, [3.0, 3.2, 3.4]) == [(1, 0, 0), (1, 1, 0), (1, 2, 1)]


def test_a_metric_may_be_better_when_higher():
    assert course(StoppingConfig("val/accuracy", highest=True, patience=1), [0.5, 0.6, 0.6])[-1] == (2, 1, True)


def test_without_patience_nothing_stops_but_the_best_is_still_recorded():
    assert course(StoppingConfig(), [1.0, 2.0, 3.0])[-1] == (1, 2, False)


def test_a_nan_score_is_never_the_best():
    assert course(StoppingConfig(patience=9), [float("nan"), 2.0, float("nan")])[-1] == (2, 1, False)


def test_an_infinite_score_gives_way_to_the_first_finite_one():
    assert course(StoppingConfig("val/own", highest=True), [float("inf"), 0.5, 0.4])[-1] == (2, 1, False)


def test_a_metric_that_is_not_measured_is_named():
    with pytest.raises(UserError, match="stopping.metric is 'val/f1'.*val/loss"):
        check(StoppingConfig("val/f1"), ("val/loss",))
    with pytest.raises(UserError, match="stopping.patience is 2, but nothing is held out .*comes to no record"):
        check(StoppingConfig(patience=2), ())
    with pytest.raises(UserError, match="eval.every is 0"):
        Experiment(stopping=StoppingConfig(patience=2))


def test_a_direction_that_contradicts_the_metric_is_refused():
    measured = tuple(f"val/{name}" for kind in NAMES.values() for name in kind)
    lower = {"val/calibration_error", "val/mse", "val/mae"}
    for metric in lower | {"val/loss", "val/bits_per_byte/prose"}:
        there = (*measured, metric)
        check(StoppingConfig(metric), there)
        with pytest.raises(UserError, match=f"'{metric}', of which less is better; set stopping.highest=false"):
            check(StoppingConfig(metric, highest=True), there)
    for metric in set(measured) - lower:
        check(StoppingConfig(metric, highest=True), measured)
        with pytest.raises(UserError, match=f"'{metric}', of which more is better; set stopping.highest=true"):
            check(StoppingConfig(metric), measured)


def test_an_evaluation_without_the_metric_changes_nothing():
    assert judge(StoppingConfig("val/f1", patience=1), RunPosition(), {"val/loss": 1.0}, 1) == RunPosition()


def getting_worse(directory):
    """An experiment with far too high a learning rate.  Its final score is on the same batches as its evaluations."""
    experiment = tiny.experiment(directory)
    return dataclasses.replace(
        experiment,
        optimizer=OptimizerConfig(name="sgd", peak_lr=10.0, clip_norm=0.0, schedule=ScheduleConfig(name="constant")),
        eval=dataclasses.replace(experiment.eval, every=2, batches=2, final_batches=2, samples=0),
        stopping=StoppingConfig(patience=2),
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture
def checked(monkeypatch):
    """A list that collects the steps of the checkpoints that are checked for damage."""
    found, damage = [], integrity.damage

    def watched(directory, *below):
        found.append(int(directory.name))
        return damage(directory, *below)

    monkeypatch.setattr(integrity, "damage", watched)
    return found


def test_a_run_that_gets_worse_stops_and_restores_its_best_parameters(directory, tmp_path, train_alike, checked):
    experiment, console = getting_worse(directory), Console(file=(tmp_path / "log").open("w"))
    scores = train_alike(experiment, tmp_path / "run", console)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}
    best = min(held_out, key=held_out.get)
    assert max(held_out) == best + 4 < 40, held_out
    assert checked == [best]
    assert scores["final/loss"] == held_out[best]
    assert rows[-1]["stopping/kept_step"] == best
    axes = Figure().subplots()
    plots._loss(axes, rows, SHOWN["language_model"])
    (mark,) = (line for line in axes.lines if line.get_label() == f"step {best} is kept")
    assert set(mark.get_xdata()) == {best}
    again = train_alike(experiment, tmp_path / "run", console)  # nothing is left to do
    assert again["final/loss"] == scores["final/loss"]
    kept = restore.restore_model(tmp_path / "run", best), restore.restore_model(tmp_path / "run")
    np.testing.assert_array_equal(*(model.params["norm"]["scale"] for model in kept))


def test_where_the_best_checkpoint_is_damaged_the_last_parameters_stay(
    directory, tmp_path, train_alike, monkeypatch, checked
):
    is_intact = Checkpoints.is_intact

    def is_intact_after_harm(checkpoints, step):
        checkpoints.wait()
        largest = max((tmp_path / f"run/checkpoints/{step}").rglob("*"), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1])
        return is_intact(checkpoints, step)

    monkeypatch.setattr(Checkpoints, "is_intact", is_intact_after_harm)
    console = Console(file=(tmp_path / "log").open("w+"), width=200)
    scores = train_alike(getting_worse(directory), tmp_path / "run", console)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}
    best, last = min(held_out, key=held_out.get), max(held_out)
    console.file.seek(0)
    said = console.file.read()
    assert f"the best checkpoint, of step {best}, is damaged: keeping the last parameters" in said
    assert said.count("keeping the last parameters") == 1
    assert checked == [best]
    assert scores["final/loss"] == held_out[last] > held_out[best]
    assert rows[-1]["stopping/kept_step"] == last == best + 4
    assert restore.restore_model(tmp_path / "run").step == last


def test_a_run_that_stops_without_any_finite_score_says_so(directory, tmp_path, train_alike, monkeypatch):
    """Such as the R2 of a single record."""
    scores = language_model.evaluate
    unknown = {"loss": float("nan")}
    monkeypatch.setattr(language_model, "evaluate", lambda *given: scores(*given) | unknown)
    console = Console(file=(tmp_path / "log").open("w+"), width=200)
    train_alike(getting_worse(directory), tmp_path / "run", console)
    console.file.seek(0)
    assert "val/loss was no finite number in 2 evaluations: stopping with the last parameters" in console.file.read()
    assert restore.restore_model(tmp_path / "run").step == 4


@pytest.mark.slow
def test_a_model_that_is_still_being_pruned_is_not_the_best(directory, tmp_path, monkeypatch):
    """With `highest` set, a falling loss makes the first evaluation the best, but it precedes the end of pruning."""
    monkeypatch.setattr(early_stopping, "check", lambda *_: None)
    given = getting_worse(directory)
    experiment = dataclasses.replace(
        given,
        optimizer=dataclasses.replace(given.optimizer, peak_lr=0.1),
        stopping=StoppingConfig(patience=2, highest=True),
        prune=PruneConfig(method="magnitude", sparsity=0.75, end=0.3),  # of 40 steps, the 13th prunes the last weights
    )
    train(experiment, tmp_path / "run", Console(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}
    assert rows[-1]["stopping/kept_step"] == 14 and max(held_out, key=held_out.get) == 2
    out = restore.restore_model(tmp_path / "run").params["layers"]["0-0"]["attention"]["out"]
    assert np.mean(np.asarray(out) == 0) == 0.75
