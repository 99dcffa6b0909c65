"""Sweeps: grid and random candidates, successive halving, and a choice that holds across widths."""

import contextlib
import json
import math
import statistics
import types
from pathlib import Path

import pytest

from deepseek_jax.config import TrainConfig
from deepseek_jax.errors import UserError
from deepseek_jax.studies import metrics, overview, report, running, runs, sweep_picture, sweep_report
from deepseek_jax.studies.study import Loaded
from deepseek_jax.studies.sweep import Halving, LogUniform, Sweep
from deepseek_jax.studies.sweeping import rungs, score_at, step_at
from tests.paths import ROOT
from tests.studies import fake
from tests.studies.fake import quiet

TEXT = '''"""Which rate?"""

from experiments import Halving, Sweep

study = Sweep(
    base="{base}",
    budget=5_120,
    search={{"optimizer.peak_lr": (0.1, 0.2, 0.3, 0.4, 2.0)}},
    halving=Halving(rungs=(0.25, 0.5), keep=0.5),
)
'''


def test_a_grid_may_contain_bundles_of_settings():
    sweep = Sweep(
        base="x.py",
        budget=1,
        search={"width": {"8": {"model.hidden_size": 8, "model.head_dim": 2}}, "optimizer.peak_lr": (0.1, 0.2)},
        across="width",
    )
    assert sweep.names == ["8 0.1", "8 0.2"]
    assert sweep.variants[1].changes == {"model.hidden_size": 8, "model.head_dim": 2, "optimizer.peak_lr": 0.2}


def test_random_candidates_are_reproducible_and_log_uniform():
    search = {"optimizer.peak_lr": LogUniform(1e-4, 1e-1), "optimizer.name": ("sgd", "lion")}
    sweep = Sweep(base="x.py", budget=1, search=search, samples=20)
    assert sweep.names == Sweep(base="x.py", budget=1, search=search, samples=20).names
    rates = [float(variant.changes["optimizer.peak_lr"]) for variant in sweep.variants]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates) and min(rates) < 1e-3 and max(rates) > 1e-2
    assert 1e-3 < statistics.median(rates) < 1e-2  # uniform draws would mostly be above
    assert {variant.changes["optimizer.name"] for variant in sweep.variants} == {"sgd", "lion"}


def test_impossible_searches_are_refused():
    with pytest.raises(UserError, match="5 candidates only 2 differ"):
        Sweep(base="x.py", budget=1, search={"a": [1, 2]}, samples=5)
    with pytest.raises(UserError, match="each choice at every value of a"):
        Sweep(base="x.py", budget=1, search={"a": [1, 2], "b": LogUniform(1, 2)}, samples=4, across="a")
    with pytest.raises(UserError, match="each must be above 0"):
        Sweep(base="x.py", budget=0, search={"a": [1]})
    for values in ((), {}, 1e-3, "adamw"):
        with pytest.raises(UserError, match="^the search over a is .*; list its values, or give LogUniform"):
            Sweep(base="x.py", budget=1, search={"a": values})
    with pytest.raises(UserError, match="^search is empty"):
        Sweep(base="x.py", budget=1, search={})
    for low, high in ((0, 1), (2, 1), (1, 1)):
        with pytest.raises(UserError, match="the first must be above 0 and below the second"):
            LogUniform(low, high)
    assert Sweep(base="x.py", budget=1, search={"w": {8: {"a": 1}}}).variants[0].changes == {"a": 1}


def test_halving_keeps_the_best_share():
    halving = Halving(keep=0.5)
    assert halving.survivors({"a": 3.0, "b": 1.0, "c": float("inf"), "d": 2.0, "e": 2.5}) == ["b", "d", "e"]
    assert halving.survivors({"a": 1.0, "b": 1.0}) == ["a"]
    assert halving.survivors({"a": float("nan"), "b": 1.0}) == ["b"]


@pytest.mark.parametrize(
    "settings",
    [
        {"rungs": (0.5, 0.25)},
        {"rungs": (1.0,)},
        {"rungs": (0.5, 1.0)},
        {"rungs": (0.0, 0.5)},
        {"rungs": ()},
        {"keep": 1.0},
    ],
)
def test_invalid_halving_is_refused(settings):
    with pytest.raises(UserError, match="rising shares"):
        Halving(**settings)


def test_the_worst_candidates_are_stopped_at_each_rung(make, trainer, tmp_path):
    loaded, root = make(text=TEXT), tmp_path / "runs"
    running.work([loaded], root, quiet)
    first, second, end = rungs(loaded, root)
    assert [run.variant.name for run in second.runs] == ["0.2", "0.3", "0.4"]
    assert [run.variant.name for run in end.runs] == ["0.3", "0.4"]
    assert first.scores["2.0"] == float("inf")
    stopped = next((root / "rate").glob("0.1-0-*"))
    steps = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 5  # 25% of 20 steps
    assert not running.to_do(loaded, root) and not running.failed(loaded, root)
    folder, choice = report.write(loaded, root)
    assert choice.startswith("0.4: val/loss")
    text = (folder / "report.md").read_text()
    assert "after 25%, 50% of the steps the best 50% by `val/loss` continue" in text and "| 2.0 | failed |" in text
    assert f"deepseek-jax study report {loaded.path} --root {root}\n" in text
    before = text
    report.write(loaded, root)
    assert (folder / "report.md").read_text() == before
    _, of_file = report.write(loaded, tmp_path / "no_runs_here")
    assert (folder / "report.md").read_text() == before
    assert of_file == f"{choice} (from its results.json: {tmp_path / 'no_runs_here'} has no run of it)"
    (line,) = overview.lines([loaded.path], tmp_path / "no_runs_here")
    assert (line.runs, line.verdict) == ("5 candidates, from results.json", choice)
    with pytest.raises(UserError, match="no run that reached its first rung"):  # scores of another metric
        other = make(text=TEXT.replace("halving", 'metric="val/bits_per_byte",\n    halving'))
        report.write(other, tmp_path / "no_runs_here")
    with pytest.raises(UserError, match="no run that reached its first rung.* --root .*no_runs_here` makes them"):
        report.write(make(text=TEXT.replace("5_120", "2_560")), tmp_path / "no_runs_here")


def test_candidates_are_compared_by_their_mean_over_seeds_at_the_rung(make, trainer, tmp_path):
    loaded, root = make(text=TEXT.replace("budget=5_120,", "budget=5_120, seeds=2,")), tmp_path / "runs"
    running.work([loaded], root, quiet)
    first = rungs(loaded, root)[0]
    one, other = (score_at(run, "val/loss", 0.25) for run in first.runs if run.variant.name == "0.2")
    assert one != other and first.scores["0.2"] == pytest.approx((one + other) / 2)
    (run,) = (run for run in first.runs if str(run) == "0.4, seed 0")
    early, late = (score_at(run, "val/loss", share) for share in (0.25, 1.0))
    assert run.trained and early > late + 1, "what it came to later changes no rung"


def test_a_rung_is_the_nearest_step():
    def of(steps):
        return types.SimpleNamespace(experiment=types.SimpleNamespace(train=TrainConfig(steps=steps)))

    assert [step_at(of(100), 0.29), step_at(of(10), 0.25), step_at(of(2), 0.1)] == [29, 2, 1]


def test_candidates_that_came_further_are_listed_first():
    """Whatever their scores: with `across`, a choice may be stopped for its score at another value."""
    study = types.SimpleNamespace(metric="val/loss", names=["failed", "stopped", "ended"])
    rungs = [{"share": 0.5, "scores": {"stopped": 1.0, "ended": 2.0, "failed": None}}]
    results = {"rungs": [*rungs, {"share": 1.0, "scores": {"ended": 1.5}}]}
    table = sweep_report._table(types.SimpleNamespace(study=study), results)
    assert table.rows == [["ended", "2.0000", "1.5000"], ["stopped", "1.0000", ""], ["failed", "failed", ""]]


def test_a_candidate_with_a_nan_score_is_not_chosen(make, trainer, tmp_path, monkeypatch):
    """Such as with a learning rate at which every step was skipped (train.on_nonfinite=skip)."""

    def row(experiment, step):
        lost = {"val/loss": math.nan} if experiment.optimizer.peak_lr == 0.1 else {}
        return rows(experiment, step) | lost

    rows = fake.row
    monkeypatch.setattr(fake, "row", row)
    loaded, root = make(text=TEXT.replace("halving=Halving(rungs=(0.25, 0.5), keep=0.5),", "")), tmp_path / "runs"
    running.work([loaded], root, quiet)
    folder, choice = report.write(loaded, root)
    assert choice.startswith("0.4: val/loss") and "| 0.1 | failed |" in (folder / "report.md").read_text()


def test_a_metric_that_no_candidate_measures_stops_the_sweep(make, trainer, tmp_path):
    text = TEXT.replace("budget=5_120,", 'budget=5_120, metric="{metric}",')
    told = make(text=text.replace("{metric}", "final/loss"))
    with pytest.raises(UserError, match="rate.py: no run measures 'final/loss'; choose one of val/loss."):
        running.work([told], tmp_path / "runs", quiet)
    assert not list((tmp_path / "runs").glob("rate/*"))
    found = make(text=text.replace("{metric}", "val/dropped"))  # a metric that only some kinds of runs have
    with pytest.raises(UserError, match="0.1, seed 0 measured no val/dropped after 25%"):
        running.work([found], tmp_path / "runs", quiet)
    assert len(list((tmp_path / "runs").glob("rate/*"))) == 1 and not running.failed(found, tmp_path / "runs")


GRID = TEXT.replace("halving=Halving(rungs=(0.25, 0.5), keep=0.5),", "")


def test_already_trained_candidates_can_be_halved(make, trainer, tmp_path):
    """They were evaluated at other steps than the rungs, or only at the end; the nearest evaluation counts."""
    root = tmp_path / "runs"
    running.work([make(text=GRID)], root, quiet)
    for path in root.glob("rate/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        only = (4, 8) if "0.4" in path.parent.name else (20,)
        fake.write(path.parent, [row for row in rows if row["step"] in only or "val/loss" not in row])
    loaded = make(text=TEXT)
    running.work([loaded], root, quiet)
    first, *_, end = rungs(loaded, root)
    assert len(trainer.trained) == 4 and end.complete and [run.failure for run in end.runs] == [None, None]
    for name, step in {"0.4": 4, "0.3": 20}.items():
        (run,) = (run for run in first.runs if run.variant.name == name)
        assert first.scores[name] == fake.row(run.experiment, step)["val/loss"]


def test_changed_rungs_resume_from_the_candidates_checkpoints(make, trainer, tmp_path):
    root = tmp_path / "runs"
    running.work([make(text=TEXT.replace("(0.25, 0.5)", "(0.5,)"))], root, quiet)
    (stopped,) = root.glob("rate/0.1-0-*")
    rows = (stopped / "metrics.jsonl").read_text().splitlines()
    loaded = make(text=TEXT)
    (run,) = (run for run in runs.plan(loaded, root) if run.directory == stopped)
    assert len(rows) == 10 and running._train(run, until=5)
    running.work([loaded], root, quiet)
    assert rungs(loaded, root)[-1].complete and not running.to_do(loaded, root)


def test_a_candidate_that_stopped_early_is_scored_by_its_kept_step(make, trainer, tmp_path, monkeypatch):
    """At later rungs too it is compared by the kept step; its last evaluation was of parameters that it discarded."""

    def write(workdir, rows):
        if "0.4" in workdir.name:
            rows = [row for row in rows if row["step"] <= 4]
            rows[-2] |= {"val/loss": 0.5}
            rows[-1] |= {"val/loss": 99.0}
            rows += [{"step": 4, "final/loss": 1.0, "stopping/kept_step": 3}]
        write_all(workdir, rows)

    write_all, train = fake.write, trainer.__class__.__call__

    def whole(self, experiment, workdir, console=None, until=None, programs=None):
        return train(self, experiment, workdir, until=None if "0.4" in workdir.name else until)

    monkeypatch.setattr(fake, "write", write)
    monkeypatch.setattr(trainer.__class__, "__call__", whole)
    loaded, root = make(text=TEXT), tmp_path / "runs"
    running.work([loaded], root, quiet)
    first, *_, end = rungs(loaded, root)
    assert end.complete and first.scores["0.4"] == end.scores["0.4"] == 0.5


def test_halving_by_a_training_metric_is_refused(make, trainer, tmp_path):
    """Training rows are written every log.every steps, which need not be the steps of the rungs."""
    text = TEXT.replace("budget=5_120,", 'budget=5_120, metric="loss/total",')
    with pytest.raises(UserError, match="no run measures 'loss/total'; choose one of val/bits"):
        running.work([make(text=text)], tmp_path / "runs", quiet)


@pytest.mark.parametrize(
    ("base", "metric"),
    [("hybrid_mnist", "val/accuracy"), ("hybrid_mnist", "records_per_second"), ("v3_tiny", "load_entropy")],
)
def test_a_metric_of_which_more_is_better_is_refused_for_a_sweep(base, metric):
    sweep = Sweep(base=f"{ROOT}/configs/{base}.py", budget=1, search={"optimizer.peak_lr": (0.1, 0.2)}, metric=metric)
    with pytest.raises(UserError, match=f"higher is better for '{metric}', but a sweep minimises its metric"):
        metrics.check(Loaded(Path("rate.py"), "Which rate?", sweep))


def test_candidates_held_by_another_worker_are_left_to_it(make, trainer, tmp_path, monkeypatch):
    """They are waited for only when nothing else is left."""
    loaded, root, asked = make(text=GRID), tmp_path / "runs", []
    planned, held = runs.plan(loaded, root), runs.held

    def elsewhere(run, root, *, wait=False):
        asked.append((run.variant.name, wait))
        return contextlib.nullcontext(False) if run.variant.name == "0.1" and not wait else held(run, root, wait=wait)

    monkeypatch.setattr(runs, "held", elsewhere)
    running.work([loaded], root, quiet)
    names = [run.variant.name for run in planned]
    assert asked == [*((name, False) for name in names), ("0.1", True)]


WIDTHS = TEXT.replace("search={{", 'across="width", search={{"width": {{"8": {{}}, "16": {{"train.batch_size": 8}}}}, ')


def test_regret_of_a_choice_is_its_worst_loss_above_the_best_over_widths(make):
    sweep = make(text=WIDTHS).study
    scores = {"8 0.1": 3.0, "8 0.2": 2.0, "8 0.3": 2.2, "16 0.1": 1.0, "16 0.2": 1.6, "16 0.3": 1.1, "16 0.4": 0.9}
    regrets = {"0.1": pytest.approx(1.0), "0.2": pytest.approx(0.7), "0.3": pytest.approx(0.2), "0.4": math.inf}
    assert sweep.regrets(scores) == regrets
    narrow = {name: score for name, score in scores.items() if name.startswith("8 ")}
    assert set(sweep.regrets(narrow).values()) == {math.inf}, "nothing came out at width 16"


def test_a_width_without_finite_scores_has_no_point_in_the_picture(monkeypatch):
    monkeypatch.setattr(sweep_picture, "png", lambda figure: figure)
    sweep = Sweep(base="x.py", budget=1, search={"width": {"8": {}, "16": {}}, "rate": (0.1, 0.2)}, across="width")
    (axes,) = sweep_picture.across(sweep.by_value({"16 0.1": 0.9, "16 0.2": 1.6, "8 0.1": math.inf}), sweep).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[], [0.9, 1.6]]


def test_the_axis_is_labelled_with_names_if_choices_are_not_numbers(monkeypatch):
    monkeypatch.setattr(sweep_picture, "png", lambda figure: figure)
    search = {"width": {"8": {}, "16": {}}, "optimizer.name": ("adamw", "muon"), "rate": (0.1, 0.2)}
    sweep = Sweep(base="x.py", budget=1, search=search, across="width")
    (axes,) = sweep_picture.across(sweep.by_value(dict.fromkeys(sweep.names, 1.0)), sweep).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["adamw 0.1", "adamw 0.2", "muon 0.1", "muon 0.2"]


def test_halving_keeps_a_choice_at_every_width_or_at_none_of_them():
    sweep = Sweep(
        base="x.py",
        budget=1,
        search={"width": {"8": {}, "16": {}}, "optimizer.peak_lr": (0.1, 0.2, 0.3)},
        across="width",
        halving=Halving(keep=0.5),
    )
    scores = {"8 0.1": 3.0, "8 0.2": 2.0, "8 0.3": 2.2, "16 0.1": 0.9, "16 0.2": 1.6, "16 0.3": 1.1}  # lower at 16
    left = sweep.survivors(scores)
    assert left == ["8 0.2", "8 0.3", "16 0.2", "16 0.3"]
    assert sweep.survivors({name: scores[name] for name in left}) == ["8 0.3", "16 0.3"]
    failed = scores | {"8 0.3": math.inf, "16 0.2": math.nan}
    assert sweep.survivors(failed) == ["8 0.1", "8 0.2", "16 0.1", "16 0.2"]


def test_a_sweep_across_widths_with_halving_makes_a_choice(make, trainer, tmp_path):
    loaded, root = make(text=WIDTHS), tmp_path / "runs"
    running.work([loaded], root, quiet)
    ends = [run.variant.name for run in rungs(loaded, root)[-1].runs]  # both widths, though 8 has lower losses
    assert ends == ["8 0.3", "8 0.4", "16 0.3", "16 0.4"]
    folder, choice = report.write(loaded, root)
    assert choice.startswith("0.4 holds across width: at worst 0.0")
    text = (folder / "report.md").read_text()
    assert "by `val/loss` continue, each choice at all values of `width` or at none." in text
