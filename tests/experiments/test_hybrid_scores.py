"""The tables of the hybrid configs' scores over seeds."""

import sys

import pytest

from deepseek_jax.cli import runtime
from experiments import hybrid_scores, runs


@pytest.fixture
def call(tmp_path, monkeypatch):
    def finished(config, changes, seed, directory):
        score = {"hybrid_series": "mae", "hybrid_detect": "map50", "hybrid_regress": "r2"}.get(config[8:-3], "accuracy")
        baselines = {"final/seasonal naive, mae": 1.52, "final/naive, r2": 0.1, "final/ridge regression, mae": 0.4}
        found = {f"final/{score}": 0.25 + seed / 4, "final/loss": 1.0, "cpu_minutes": 0.2}
        return found | (baselines if score == "mae" else {})

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hybrid_scores", *words])
        hybrid_scores.main()

    monkeypatch.setattr(runtime, "prepare", lambda: None)
    monkeypatch.setattr(hybrid_scores, "finished", finished)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    return run


def test_a_row_has_all_baselines_of_its_score(call, tmp_path, capsys):
    call()
    naive = "1.5200 (seasonal naive), 0.4000 (ridge regression)"
    printed = capsys.readouterr().out
    assert f"| `hybrid_series` | mae | 0.5000 | 0.2500, 0.5000, 0.7500 | {naive} | 0.2 |" in printed
    assert "| `hybrid_detect` | map50 | 0.5000 | 0.2500, 0.5000, 0.7500 |  | 0.2 |" in printed
    assert (tmp_path / "hybrid_scores.md").read_text() + "\n" == printed


def test_a_part_of_a_table_is_only_printed(call, tmp_path, capsys):
    call("transfer", "--only", "EfficientNet")
    printed = capsys.readouterr().out
    assert "| EfficientNet-Lite0's features | accuracy | 0.5000 |" in printed and "newly initialised" not in printed
    assert not list(tmp_path.iterdir())
