"""Measures and edits that a study file defines: their scores, failures and changes."""

from pathlib import Path

import pytest

from deepseek_jax.config import Experiment
from deepseek_jax.errors import UserError
from deepseek_jax.studies import measuring, report, results, running
from deepseek_jax.studies.claims import CANNOT_TELL, UNFINISHED
from deepseek_jax.train.checkpoints import restore
from tests.studies.fake import STUDY, quiet

FURTHER = """claim="high < low", further=[Claim("gaps", 1, "low < high")], measures=[{0}],"""
GAP = "def gap(run):\n    return {{'gap': 1 + run.seed}}\n\n\nfrom experiments import Claim,"


def with_gap(of_measure, gives=""):
    text = STUDY.replace("from experiments import", GAP.replace("from exp", f"{gives}\n\nfrom exp"))
    return text.replace('claim="high < low",', FURTHER.format(of_measure))


def test_a_measure_may_declare_the_names_of_its_scores(make, trainer, root, monkeypatch):
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    with pytest.raises(UserError, match="no run measures 'gaps'; choose one of gap.$"):
        running.work([make(text=with_gap("gap", "gap.gives = ['gap']"))], root, quiet)
    assert trainer.trained == []
    running.work([make(text=with_gap("gap", "gap.gives = ['gap', 'gaps']"))], root, quiet)  # only declared
    assert len(trainer.trained) == 6


def test_a_score_missing_from_an_undeclared_measure_stops_after_the_first_run(make, trainer, root, monkeypatch):
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    loaded = make(text=with_gap("gap"))
    for _ in range(2):  # the second time there is no need to train
        with pytest.raises(UserError, match="rate.py: low ended without 'gaps'; choose one of gap.$"):
            running.work([loaded], root, quiet)
        assert len(trainer.trained) == 1
    folder, _ = report.write(loaded, root)
    text = (folder / "report.md").read_text()
    assert "| low < high | `gaps` | 1 | not measured: gaps | no finished run has it |" in text
    (main,) = {clause.verdict for clause in results.verdicts(loaded, results.gather(loaded, root))[0]}
    assert main == UNFINISHED


def test_a_metric_that_no_run_has_is_reported_as_not_measured(make, trainer, root):
    running.work([make()], root, quiet)
    loaded = make(text=STUDY.replace('"final/loss"', '"final/Los"'))
    folder, verdict = report.write(loaded, root)
    assert verdict == "not measured: final/Los, by a claim that was changed after its first run"
    assert f"**N{verdict[1:]}.** high < low: not measured: final/Los" in (folder / "report.md").read_text()


def test_a_failing_measure_costs_no_other_score(make, trainer, root, monkeypatch):
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    text = STUDY.replace("from experiments", "def gap(run):\n    return {{'gap': 1 / run.seed}}\n\n\nfrom experiments")
    text = text.replace('claim="high < low"', 'claim="high < low", measures=[gap]')
    loaded, told = make(text=text), []
    running.work([loaded], root, told.append)
    assert sum("the measure gap failed: ZeroDivisionError: division by zero" in line for line in told) == 2
    assert all(Path(line.split("(")[1].split(")")[0]).exists() for line in told if "gap failed" in line)
    found = results.gather(loaded, root)
    assert len(found["runs"]) == 6 and found["failed"] == [] and len(found["unmeasured"]) == 2
    folder, verdict = report.write(loaded, root)
    assert verdict == "holds"
    assert "| low | 0 | the measure gap failed: ZeroDivisionError" in (folder / "report.md").read_text()
    assert not running.to_do(loaded, root)
    running.forget_failures(loaded, root)
    assert {run.seed for run in running.to_do(loaded, root)} == {0}
    assert len(running.to_do(make(text=text.replace("1 / run.seed", "1 + run.seed")), root)) == 6


def test_scores_of_a_changed_measure_or_edit_are_discarded(make, trainer, root, tmp_path, monkeypatch):
    """Neither in run directories nor in results.json."""
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    monkeypatch.setattr(measuring, "held_out_scores", lambda trained: {"final/loss": 9.0})
    edit = "def spoil(*model):\n    return model\n\n\nfrom experiments import"
    text = with_gap("gap").replace("low < high", "low <= high").replace('"gaps"', '"gap"')
    text = text.replace("from experiments import", edit).replace("{further}", 'Variant("spoilt", edit=spoil),')
    loaded = make(text=text)
    running.work([loaded], root, quiet)
    report.write(loaded, root)
    assert len(results.gather(loaded, tmp_path / "no_runs_here")["runs"]) == 9
    for old, new, left in (("1 + run.seed", "2 + run.seed", 0), ("return model", "return list(model)", 6)):
        changed = make(text=text.replace(old, new))
        found = results.gather(changed, tmp_path / "no_runs_here")
        assert (len(found["runs"]), found["missing"]) == (left, 9 - left)
        assert len(results.gather(changed, root)["runs"]) == left


def test_an_edited_variant_has_the_scores_of_its_edited_model(make, trainer, root, monkeypatch):
    """It shares its training with another variant, but must not be given that one's scores and speed-up."""
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    monkeypatch.setattr(measuring, "held_out_scores", lambda trained: {"final/loss": 9.0})
    edit = "def spoil(*model):\n    return model\n\n\nfrom experiments import"
    loaded = make('Variant("spoilt", edit=spoil),', STUDY.replace("from experiments import", edit))
    told = []
    running.work([loaded], root, told.append)
    assert len(trainer.trained) == 6 and sum("final/loss 9.0000" in line for line in told) == 3
    text = (report.write(loaded, root)[0] / "report.md").read_text()
    assert results.values(results.gather(loaded, root), "final/loss")["spoilt"] == dict.fromkeys(range(3), 9.0)
    speed_ups = {line.split(" | ")[0]: line.split(" | ")[7] for line in text.splitlines() if " | 1,000 | " in line}
    assert speed_ups["| spoilt"] == "" != speed_ups["| high"]


def test_an_edit_that_failed_is_tried_again_once_it_is_changed(make, trainer, root, monkeypatch):
    trained = restore.Trained(root, Experiment(), 0, Experiment().model, {}, {})
    monkeypatch.setattr(restore, "restore_model", lambda directory: trained)
    monkeypatch.setattr(measuring, "held_out_scores", lambda trained: {"final/loss": 9.0})
    edit = "def spoil(*model):\n    return model[1:]\n\n\nfrom experiments import"
    text = STUDY.replace("from experiments import", edit)
    loaded = make('Variant("spoilt", edit=spoil),', text)
    running.work([loaded], root, quiet)
    reason = "the edit spoil must return (experiment, params, buffers), as it was given them."
    assert [run.failure for run in running.failed(loaded, root)] == 3 * [reason]
    mended = make('Variant("spoilt", edit=spoil),', text.replace("model[1:]", "model"))
    assert len(running.to_do(mended, root)) == 3 and not running.failed(mended, root)
    running.work([mended], root, quiet)
    assert results.values(results.gather(mended, root), "final/loss")["spoilt"] == dict.fromkeys(range(3), 9.0)


def test_an_edited_model_without_scores_does_not_inherit_any(make, trainer, root, monkeypatch):
    """Otherwise the score of the unedited model, whose training it shares, would be reported for it."""
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    monkeypatch.setattr(measuring, "held_out_scores", lambda trained: {})
    edit = "def spoil(*model):\n    return model\n\n\nfrom experiments import"
    text = STUDY.replace("from experiments import", edit).replace('claim="high < low"', 'claim="low <= spoilt"')
    loaded = make('Variant("spoilt", edit=spoil),', text)
    running.work([loaded], root, quiet)
    found = results.gather(loaded, root)
    ((judged,),) = results.verdicts(loaded, found)
    assert (judged.verdict, judged.reason) == (CANNOT_TELL, "spoilt: seed 2 ended without final/loss")
    assert "spoilt" not in results.values(found, "val/loss") and "spoilt" in results.values(found, "memory_bytes")
