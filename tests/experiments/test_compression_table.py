"""The table of compressed models: partial results are printed, only complete ones replace the saved table."""

import json
import sys

import pytest

from deepseek_jax.cli import runtime
from experiments import compression_table, runs


def test_a_partial_table_does_not_replace_a_complete_one(tmp_path, monkeypatch, capsys):
    kept = tmp_path / "compression.md"
    kept.write_text("both\n")
    monkeypatch.setattr(runtime, "prepare", lambda: None)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["compression_table", "--workdir", str(tmp_path)])
    with pytest.raises(SystemExit):
        compression_table.main()
    assert "name a run by --v3 or --hybrid" in capsys.readouterr().err
    dense = {"name": "dense", "loss": 0.5, "accuracy": 0.9, "parameters": 10, "disk": 40}
    for model, written in {"hybrid": "both\n", "v3": "| V3-tiny |"}.items():
        (tmp_path / model).mkdir()
        (tmp_path / model / "dense.json").write_text(json.dumps(dense))
        compression_table.main()
        assert "| dense | 0.5000 |" in capsys.readouterr().out and kept.read_text().startswith(written)
