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
    row = {"name": "dense", "loss": 0.5, "accuracy": 0.9, "parameters": 10, "disk": 40}
    for model in compression_table.CONFIGS:
        (tmp_path / model).mkdir()
        (tmp_path / model / "dense.json").write_text(json.dumps(row))
    compression_table.main()  # as with --only dense
    assert "| dense | 0.5000 |" in capsys.readouterr().out and kept.read_text() == "both\n"
    for model in compression_table.CONFIGS:
        assert kept.read_text() == "both\n"
        for number, name in enumerate(compression_table.names(model)):
            (tmp_path / model / f"{number}.json").write_text(json.dumps(row | {"name": name}))
        compression_table.main()
    assert kept.read_text().startswith("| V3-tiny |") and "| Wanda 75% |" in kept.read_text()
