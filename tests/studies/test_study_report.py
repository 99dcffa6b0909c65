"""Reports of studies: verdicts, tables, and the committed results of runs that are not here."""

import json

import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.studies import outcome, overview, report, results, running, runs
from deepseek_jax.studies.claims import CANNOT_TELL
from deepseek_jax.studies.differences import difference
from deepseek_jax.studies.study import load
from tests.studies import fake
from tests.studies.fake import STUDY, Killed, files_of, quiet


def test_a_study_is_trained_judged_and_reported(make, trainer, root, drawn):
    loaded = make()
    running.work([loaded], root, quiet)
    assert len(trainer.trained) == 6
    folder, verdict = report.write(loaded, root)
    assert verdict == "holds"
    text = (folder / "report.md").read_text()
    assert text.startswith("# Is a higher rate better?\n")
    assert "`optimizer.peak_lr=0.2`" in text and "3 paired seeds" in text and "same tokens: 2,560" in text
    assert "high < low | `final/loss` | 0.05 | holds | difference -0." in text
    assert "loss.png" in text and "<img" in (folder / "report.html").read_text()
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "results.json").read_text())
    assert [len(run["curve"]) for run in found["runs"]] == [10] * 6  # 2,560 tokens in steps of 4 x 64
    assert f"deepseek-jax study run {loaded.path} --root {root}\n" in text
    assert f"deepseek-jax study report {loaded.path} --root {root}\n" in text


def test_a_report_is_reproducible_also_from_its_results_json(make, trainer, root, tmp_path):
    loaded = make()
    running.work([loaded], root, quiet)
    folder, _ = report.write(loaded, root)
    first = files_of(folder)
    report.write(loaded, root)
    assert files_of(folder) == first
    report.write(loaded, tmp_path / "no_runs_here")
    assert files_of(folder) == first


def test_a_study_without_all_its_runs_has_no_verdict(make, trainer, root):
    """The first few seeds may suggest what all seeds together do not show."""
    loaded = make(text=STUDY.replace("seeds=3", "seeds=8"))
    trainer.kill_at = 4
    with pytest.raises(Killed):
        running.work([loaded], root, quiet)
    folder, verdict = report.write(loaded, root)
    assert verdict == overview.lines([loaded.path], root)[0].verdict == "unfinished (4 of 16 runs)"
    text = (folder / "report.md").read_text()
    assert "**Unfinished (4 of 16 runs).** " in text and "holds" not in text
    assert "| high < low | `final/loss` | 0.05 | unfinished | so far: difference -" in text
    trainer.kill_at = None
    running.work([loaded], root, quiet)
    assert report.write(loaded, root)[1] == "holds"


def test_a_claim_changed_after_its_first_run_is_marked(make, trainer, root, tmp_path):
    first = make(text=STUDY.replace("0.05", "0.07"))
    trainer.kill_at = 0
    with pytest.raises(Killed):
        running.work([first], root, quiet)
    trainer.kill_at, loaded = None, make()
    running.work([loaded], root, quiet)  # the first had no finished run, so this margin still counts as stated before
    folder, verdict = report.write(loaded, root)
    assert verdict == "holds" and "changed after its first run" not in (folder / "report.md").read_text()
    changed = make(text=STUDY.replace("0.05", "0.5"))
    running.work([changed], root, quiet)
    other = "does not, by a claim that was changed after its first run"
    assert overview.lines([changed.path], root)[0].verdict == other
    for made_of in (root, tmp_path / "no_runs_here"):  # also from results.json alone
        folder, verdict = report.write(changed, made_of)
        assert verdict.startswith(other)
        assert (
            "Stated before its first run: high < low (by `final/loss`, margin 0.05). "
            "Claimed only since then: high < low (by `final/loss`, margin 0.5)." in (folder / "report.md").read_text()
        )


def test_the_report_names_the_devices_of_the_runs(make, trainer, root, monkeypatch):
    """Not those of the machine that writes the report, which may be a login node."""
    loaded, where = make(), "8 x NVIDIA H100"
    monkeypatch.setattr("os.cpu_count", lambda: 99)
    monkeypatch.setattr(outcome, "_device", lambda: where)
    running.work([loaded], root, quiet)
    text = (report.write(loaded, root)[0] / "report.md").read_text()
    assert f" Measured on {where}.\n" in text and f"minutes in all on {where}.\n" in text
    first = min(root.glob(f"*/*/{runs.TRAINED}"))
    first.write_text(first.read_text().replace(where, "96 CPU cores"))
    text = (report.write(loaded, root)[0] / "report.md").read_text()
    there = f"{where} and 96 CPU cores"
    assert f" Measured on {there}, so speeds do not compare.\n" in text and f"minutes in all on {there}.\n" in text


def test_committed_results_of_an_older_version_are_not_mixed_in(make, trainer, root, tmp_path):
    loaded = make()
    running.work([loaded], root, quiet)
    folder, _ = report.write(loaded, root)
    committed = folder / results.RESULTS_FILE
    committed.write_text(committed.read_text().replace('"device": "', '"device": "not '))
    assert "not " not in str(results.devices(results.gather(loaded, root))), "the runs are here"
    changed = make(text=STUDY.replace("0.2}", "0.3}"))
    found = results.gather(changed, tmp_path / "no_runs_here")
    assert {run["variant"] for run in found["runs"]} == {"low"} and found["missing"] == found["stale"] == 3
    committed.write_text(committed.read_text().replace('"sources": ', '"once": '))
    assert overview.lines([loaded.path], tmp_path / "no_runs_here")[0].verdict == overview.NOT_RUN


def test_new_failures_are_not_hidden_by_committed_results(make, trainer, root, tmp_path, monkeypatch, run_command):
    """As when a change of the code breaks a variant that used to train."""
    loaded = make()
    running.work([loaded], root, quiet)
    report.write(loaded, root)
    assert overview.lines([loaded.path], tmp_path / "no_runs_here")[0].runs == "6 of 6, from results.json"
    _, error_summary, _ = run_command("study", "report", str(loaded.path), "--root", str(tmp_path / "no_runs_here"))
    assert error_summary.endswith(f": holds (from its results.json: {tmp_path / 'no_runs_here'} has no run of it)\n")

    train = trainer.__class__.__call__

    def broken(self, experiment, *arguments, **named):
        if experiment.optimizer.peak_lr == 0.2:
            raise UserError("step 3 is not finite.")
        return train(self, experiment, *arguments, **named)

    monkeypatch.setattr(trainer.__class__, "__call__", broken)
    running.work([loaded], tmp_path / "anew", quiet)
    (line,) = overview.lines([loaded.path], tmp_path / "anew")
    assert (line.runs, line.verdict) == ("3 of 6, 3 failed", CANNOT_TELL)
    folder, verdict = report.write(loaded, tmp_path / "anew")
    assert verdict == CANNOT_TELL and "| high | 2 | step 3 is not finite. |" in (folder / "report.md").read_text()
    assert (
        results.gather(loaded, tmp_path / "no_runs_here")["failed"]
        == results.gather(loaded, tmp_path / "anew")["failed"]
    )
    mended = results.gather(make(text=STUDY.replace("0.2}", "0.3}")), tmp_path / "no_runs_here")
    assert (len(mended["runs"]), mended["failed"], mended["missing"]) == (3, [], 3), (
        "another variant failed by that name"
    )


def test_runs_of_another_study_do_not_hide_committed_results(make, trainer, root, tmp_path):
    loaded = make()
    running.work([loaded], root, quiet)
    report.write(loaded, root)
    other = loaded.path.with_name("other.py")
    other.write_text(loaded.path.read_text().replace("0.2}", "0.3}"))
    running.work([load(other)], tmp_path / "others", quiet)
    assert overview.lines([loaded.path], tmp_path / "others")[0].runs == "6 of 6, from results.json"


def test_the_page_compares_with_the_first_variant(make, trainer, root, monkeypatch):
    """By the paired differences of two seeds.  The first variant here is half as fast as the second."""
    row = fake.row

    def speed(experiment):
        return {"tokens_per_second": 1e4 * experiment.optimizer.peak_lr}

    monkeypatch.setattr(fake, "row", lambda experiment, step: row(experiment, step) | speed(experiment))
    text = STUDY.replace("seeds=3", "seeds=2").replace("from experiments import", "from experiments import Claim,")
    text = text.replace('claim="high < low",', 'claim="high < low", further=[Claim("val/loss", 1, "high < low")],')
    loaded = make('Variant("other data", {"data.fim_rate": 0.5, "optimizer.peak_lr": 0.3}),', text)
    running.work([loaded], root, quiet)
    text = (report.write(loaded, root)[0] / "report.md").read_text()
    found = results.values(results.gather(loaded, root), "final/loss")
    expected = difference(*([found[name][seed] for seed in (0, 1)] for name in ("high", "low")))
    interval = f"{expected.mean:+.4f} [{expected.low:+.4f}, {expected.high:+.4f}]"
    (cells,) = (line.split(" | ") for line in text.splitlines() if line.startswith("| high | 2 | "))
    assert cells[3:7] == [interval, f"{expected.p_t:.3f}", "< 0.001", "2,000"] and float(cells[7]) > 2
    (other,) = (line.split(" | ") for line in text.splitlines() if line.startswith("| other data | 2 | "))
    assert other[6:8] == ["3,000", ""], "of other data a loss says nothing of the time saved"
    assert "\n6 trainings, " in text and "\n| `val/loss` | " in text
    assert "\nWith 2 pairs the bootstrap can resample only these differences and is overconfident;" in text
    many = make(text=STUDY.replace("seeds=3", "seeds=6"))
    running.work([many], root, quiet)
    assert "is overconfident" not in (report.write(many, root)[0] / "report.md").read_text()


def test_a_claim_cannot_be_judged_if_a_run_ended_without_the_metric(make):
    """The variant's remaining runs alone could look better than the variant is."""
    losses = {"low": [5.0, 5.1, 5.2], "high": [4.0, 4.1, None]}
    ended = [
        {"variant": name, "seed": seed, "scores": {"final/loss": loss} if loss else {}}
        for name, of in losses.items()
        for seed, loss in enumerate(of)
    ]
    ((judged,),) = results.verdicts(make(), {"runs": ended, "failed": [], "missing": 0})
    assert (judged.verdict, judged.reason) == (CANNOT_TELL, "high: seed 2 ended without final/loss")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_a_claim_cannot_be_judged_if_a_metric_is_not_finite(make, trainer, root, monkeypatch, lost):
    """As after a run whose every step was skipped (train.on_nonfinite=skip)."""
    row = fake.row

    def broken(experiment):
        return experiment.optimizer.peak_lr == 0.2 and experiment.train.seed == 1

    def of(experiment, step):
        return row(experiment, step) | ({"loss/next": lost} if broken(experiment) else {})

    monkeypatch.setattr(fake, "row", of)
    loaded = make()
    running.work([loaded], root, quiet)
    folder, verdict = report.write(loaded, root)
    text = (folder / "report.md").read_text()
    assert verdict == CANNOT_TELL and f"high: seed 1 ended with final/loss {lost} |" in text
    assert "| high | 3 | " in text and "[+nan, +nan]" in text


def test_a_single_seed_has_a_mean_but_no_deviation(make, trainer, root):
    alone = make(text=STUDY.replace("seeds=3", "seeds=1"))
    running.work([alone], root, quiet)
    text = (report.write(alone, root)[0] / "report.md").read_text()
    assert "| low | 1 | " in text and "±" not in text.partition("## Results")[2].replace("mean ± sd", "")


def test_a_report_without_any_measured_speed(make, trainer, root, monkeypatch):
    """As when the batch grows at every logged step, so that none is timed."""
    write = fake.write

    def without(rows):
        return [{key: row[key] for key in row if key != "tokens_per_second"} for row in rows]

    monkeypatch.setattr(fake, "write", lambda workdir, rows: write(workdir, without(rows)))
    loaded = make()
    running.work([loaded], root, quiet)
    text = (report.write(loaded, root)[0] / "report.md").read_text()
    assert "| high | 3 | " in text and "1,000" not in text
