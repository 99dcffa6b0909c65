"""Sweeps: the candidates of a grid and of chance, who is stopped at which rung, and the rate that transfers."""

import json

import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.studies import report, running, sweep_report
from deepseek_jax.studies.sweep import Halving, LogUniform, Sweep
from deepseek_jax.studies.sweeping import rungs

TEXT = '''"""Which rate?"""

from experiments import Halving, Sweep

study = Sweep(
    base="{base}",
    budget=5_120,
    search={{"optimizer.peak_lr": (0.1, 0.2, 0.3, 0.4, 2.0)}},
    halving=Halving(rungs=(0.25, 0.5), keep=0.5),
)
'''
QUIET = lambda text: None  # noqa: E731


def test_a_grid_and_bundles():
    sweep = Sweep(
        base="x.py",
        budget=1,
        search={"width": {"8": {"model.hidden_size": 8, "model.head_dim": 2}}, "optimizer.peak_lr": (0.1, 0.2)},
        across="width",
    )
    assert sweep.names == ["8 0.1", "8 0.2"]
    assert sweep.variants[1].changes == {"model.hidden_size": 8, "model.head_dim": 2, "optimizer.peak_lr": 0.2}


def test_random_candidates_are_the_same_each_time():
    search = {"optimizer.peak_lr": LogUniform(1e-4, 1e-1), "optimizer.name": ("sgd", "lion")}
    sweep = Sweep(base="x.py", budget=1, search=search, samples=20)
    assert sweep.names == Sweep(base="x.py", budget=1, search=search, samples=20).names
    rates = [float(variant.changes["optimizer.peak_lr"]) for variant in sweep.variants]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates) and min(rates) < 1e-3 and max(rates) > 1e-2
    assert {variant.changes["optimizer.name"] for variant in sweep.variants} == {"sgd", "lion"}


def test_searches_that_cannot_be():
    with pytest.raises(UserError, match="5 candidates only 2 differ"):
        Sweep(base="x.py", budget=1, search={"a": [1, 2]}, samples=5)
    with pytest.raises(UserError, match="each must be above 0"):
        Sweep(base="x.py", budget=0, search={"a": [1]})
    assert Sweep(base="x.py", budget=1, search={"w": {8: {"a": 1}}}).variants[0].changes == {"a": 1}


def test_the_rule_of_halving():
    halving = Halving(keep=0.5)
    assert halving.survivors({"a": 3.0, "b": 1.0, "c": float("inf"), "d": 2.0, "e": 2.5}) == ["b", "d", "e"]
    assert halving.survivors({"a": 1.0, "b": 1.0}) == ["a"]
    assert halving.survivors({"a": float("nan"), "b": 1.0}) == ["b"]


@pytest.mark.parametrize("settings", [{"rungs": (0.5, 0.25)}, {"rungs": (1.0,)}, {"rungs": ()}, {"keep": 1.0}])
def test_halving_that_cannot_be(settings):
    with pytest.raises(UserError, match="rising shares"):
        Halving(**settings)


def test_hopeless_candidates_are_stopped_rung_by_rung(make, trainer, tmp_path):
    loaded, root = make(text=TEXT), tmp_path / "runs"
    running.work([loaded], root, QUIET)
    first, second, end = rungs(loaded, root)
    assert [run.variant.name for run in second.runs] == ["0.2", "0.3", "0.4"]
    assert [run.variant.name for run in end.runs] == ["0.3", "0.4"]
    assert first.scores["2.0"] == float("inf")
    stopped = next((root / "rate").glob("0.1-0-*"))
    steps = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 5  # a quarter of 20
    assert not running.to_do(loaded, root) and not running.failed(loaded, root)
    folder, choice = report.write(loaded, root)
    assert choice.startswith("0.4: val/loss")
    text = (folder / "report.md").read_text()
    assert "after 25%, 50% of the steps the best 50% by `val/loss` go on" in text and "| 2.0 | failed |" in text
    before = text
    report.write(loaded, root)
    assert (folder / "report.md").read_text() == before
    report.write(loaded, tmp_path / "no_runs_here")
    assert (folder / "report.md").read_text() == before
    with pytest.raises(UserError, match="no run that came to its first rung"):
        report.write(make(text=TEXT.replace("5_120", "2_560")), tmp_path / "no_runs_here")


def test_a_metric_that_no_candidate_measures_stops_the_sweep(make, trainer, tmp_path):
    text = TEXT.replace("budget=5_120,", 'budget=5_120, metric="{metric}",')
    told = make(text=text.replace("{metric}", "final/loss"))
    with pytest.raises(UserError, match="rate.py: no run measures 'final/loss'; choose one of val/loss."):
        running.work([told], tmp_path / "runs", QUIET)
    assert not list((tmp_path / "runs").glob("rate/*"))
    found = make(text=text.replace("{metric}", "val/dropped"))  # some runs have it
    with pytest.raises(UserError, match="0.1, seed 0 measured no val/dropped after 25% of its steps; name a metric"):
        running.work([found], tmp_path / "runs", QUIET)
    assert len(list((tmp_path / "runs").glob("rate/*"))) == 1 and not running.failed(found, tmp_path / "runs")


def test_the_rate_that_holds_across_widths(make):
    text = TEXT.replace("halving=Halving(rungs=(0.25, 0.5), keep=0.5),", 'across="width",')
    text = text.replace("search={{", 'search={{"width": {{"8": {{}}, "16": {{"train.batch_size": 8}}}}, ')
    loaded = make(text=text)
    scores = {"8 0.1": 3.0, "8 0.2": 2.0, "8 0.3": 2.2, "16 0.1": 1.0, "16 0.2": 1.6, "16 0.3": 1.1, "16 0.4": 0.9}
    label, worst = sweep_report.transferable(loaded, scores)
    assert label == "0.3" and worst == pytest.approx(0.2)
    narrow = {name: score for name, score in scores.items() if name.startswith("8 ")}
    assert sweep_report.transferable(loaded, narrow)[0] == "no choice", "nothing came out at width 16"
