"""Study files: what is run, resumed, left out and reported, with a fake trainer."""

import dataclasses
import json
import types
from pathlib import Path

import pytest

from deepseek_jax import record
from deepseek_jax.choices import STUDIES_ROOT
from deepseek_jax.config import Experiment, SupervisedExperiment
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.errors import UserError
from deepseek_jax.studies import measuring, metrics, outcome, overview, report, results, running, runs, slurm
from deepseek_jax.studies.claims import CANNOT_TELL, UNFINISHED
from deepseek_jax.studies.differences import difference
from deepseek_jax.studies.study import Variant, load, slugs
from deepseek_jax.studies.sweep import Sweep
from deepseek_jax.tasks import scores
from deepseek_jax.train import evaluate, restore
from tests.paths import ROOT
from tests.studies import fake
from tests.studies.fake import STUDY, Killed


def QUIET(text):
    return None


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def files_of(folder, *, but=()):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in but}


def test_a_study_is_trained_judged_and_reported(make, trainer, root, drawn):
    loaded = make()
    running.work([loaded], root, QUIET)
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
    running.work([loaded], root, QUIET)
    folder, _ = report.write(loaded, root)
    first = files_of(folder)
    report.write(loaded, root)
    assert files_of(folder) == first
    report.write(loaded, tmp_path / "no_runs_here")
    assert files_of(folder) == first


def test_a_killed_study_resumes_and_trains_nothing_twice(make, trainer, root, tmp_path):
    loaded = make()
    running.work([loaded], root / "unbroken", QUIET)
    whole, _ = report.write(loaded, root / "unbroken", tmp_path / "whole")
    trainer.trained.clear()
    for lets_finish in (2, 0, 1):
        trainer.kill_at = lets_finish
        with pytest.raises(Killed):
            running.work([loaded], root / "broken", QUIET)
    trainer.kill_at = None
    running.work([loaded], root / "broken", QUIET)
    assert len(trainer.trained) == len(set(trainer.trained)) == 6  # no run was trained twice
    broken, _ = report.write(loaded, root / "broken", tmp_path / "broken")
    files = files_of(broken, but={"results.json"})
    files = {name: content.replace(b"/broken", b"/unbroken") for name, content in files.items()}  # --root in commands
    assert files == files_of(whole, but={"results.json"})
    numbers = [json.loads((folder / "results.json").read_text())["runs"] for folder in (broken, whole)]
    timeless = [[{key: value for key, value in run.items() if key != "seconds"} for run in runs] for runs in numbers]
    assert timeless[0] == timeless[1]


def test_a_study_without_all_its_runs_has_no_verdict(make, trainer, root):
    """The first few seeds may suggest what all seeds together do not show."""
    loaded = make(text=STUDY.replace("seeds=3", "seeds=8"))
    trainer.kill_at = 4
    with pytest.raises(Killed):
        running.work([loaded], root, QUIET)
    folder, verdict = report.write(loaded, root)
    assert verdict == overview.lines([loaded.path], root)[0].verdict == "unfinished (4 of 16 runs)"
    text = (folder / "report.md").read_text()
    assert "**Unfinished (4 of 16 runs).** " in text and "holds" not in text
    assert "| high < low | `final/loss` | 0.05 | unfinished | so far: difference -" in text
    trainer.kill_at = None
    running.work([loaded], root, QUIET)
    assert report.write(loaded, root)[1] == "holds"


def test_a_claim_changed_after_its_first_run_is_marked(make, trainer, root, tmp_path):
    first = make(text=STUDY.replace("0.05", "0.07"))
    trainer.kill_at = 0
    with pytest.raises(Killed):
        running.work([first], root, QUIET)
    trainer.kill_at, loaded = None, make()
    running.work([loaded], root, QUIET)  # the first had no finished run, so this margin still counts as stated before
    folder, verdict = report.write(loaded, root)
    assert verdict == "holds" and "changed after its first run" not in (folder / "report.md").read_text()
    changed = make(text=STUDY.replace("0.05", "0.5"))
    running.work([changed], root, QUIET)
    other = "does not, by a claim that was changed after its first run"
    assert overview.lines([changed.path], root)[0].verdict == other
    for made_of in (root, tmp_path / "no_runs_here"):  # also from results.json alone
        folder, verdict = report.write(changed, made_of)
        assert verdict.startswith(other)
        assert (
            "Stated before its first run: high < low (by `final/loss`, margin 0.05). "
            "Claimed only since then: high < low (by `final/loss`, margin 0.5)." in (folder / "report.md").read_text()
        )


def test_the_time_spent_is_never_half_written(make, trainer, root, tmp_path):
    """Otherwise a full disk or a kill could leave an empty file, on which every further call would fail."""
    loaded = make()
    trainer.kill_at = 0
    with pytest.raises(Killed):
        running.work([loaded], root, QUIET)
    (spent,) = root.glob("*/*/seconds.txt")
    (as_it_was := tmp_path / "spent").hardlink_to(spent)
    trainer.kill_at = None
    running.work([loaded], root, QUIET)
    assert float(spent.read_text()) >= 0 and not as_it_was.samefile(spent), "replaced by a whole one, not emptied first"


def test_failing_variants_are_reported_and_the_others_are_trained(make, trainer, root):
    loaded = make('Variant("diverges", {"optimizer.peak_lr": 2.0}), Variant("large", {"optimizer.peak_lr": 0.9}),')
    running.work([loaded], root, QUIET)
    folder, verdict = report.write(loaded, root)
    text = (folder / "report.md").read_text()
    assert verdict == "holds" and len(trainer.trained) == 6
    assert "| diverges | 0 | step 3 is not finite; it began in the parameter head[0]. |" in text
    assert "| large | 1 | MemoryError: RESOURCE_EXHAUSTED: 1 TiB |" in text
    assert not running.to_do(loaded, root)
    (kept,) = root.glob("rate/failed/large-1-*.json")
    assert 'raise MemoryError("RESOURCE_EXHAUSTED: 1 TiB")' in kept.with_suffix(".txt").read_text()
    kept.write_text('{"reason": "it was too large"}')  # as older versions wrote it
    assert [run.failure for run in running.failed(loaded, root) if run.failed == kept] == ["it was too large"]
    running.forget_failures(loaded, root)
    assert {run.variant.name for run in running.to_do(loaded, root)} == {"diverges", "large"}


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize(
    "changes, why",
    [
        ('"optimizer.peek_lr": 1.0', "has no key optimizer.peek_lr; did you mean optimizer.peak_lr?"),
        ('"train.batch_size": 99', "a budget of 2560 tokens is less than one step"),
        ('"optimizer.schedule.warmup_steps": 11', "the budget allows it 10 steps, but optimizer.schedule.name="),
        ('"optimizer.schedule.warmup_steps": 6, "train.batch_size": 8', "the budget allows it 5 steps, but opt"),
    ],
)
def test_a_variant_that_cannot_be_trained_as_configured_refuses_its_study(
    make, trainer, root, tmp_path, run_command, changes, why, here
):
    """Before the others are trained, whose verdict would have to wait for it; the study after it too."""
    whole = make().path.rename(tmp_path / "whole.py")
    loaded = make(f'Variant("odd", {{{changes}}}),')
    options = ["--root", str(root)] + ["--here"] * here
    status, out, err = run_command("study", "run", str(whole), str(loaded.path), *options)
    assert (status, out, trainer.trained) == (2, "", [])
    assert "/rate.py: odd: " in err and why in err and err.count("\n") == 1
    report_err = run_command("study", "report", str(loaded.path), "--root", str(root))[2]
    assert report_err == err and not loaded.results.exists(), "a page without any run would have said: cannot tell"
    assert overview.lines([loaded.path], root)[0].verdict == overview.NOT_RUN


@pytest.mark.parametrize(
    "changes, why",
    [
        ('"mesh.fsdp": 7, "train.batch_size": 7', "the mesh .* needs a multiple of 7 devices, and there is 1"),
        ('"model.vocab_size": 200', "model.vocab_size is 200; a byte-level vocabulary needs at least 262"),
        ('"data.tokenizer": "nowhere.json"', "data.tokenizer: there is no file "),
        ('"train.ramp_stages": 7', "train.ramp_stages is 7 and train.ramp_start 0"),
    ],
)
def test_a_variant_that_cannot_be_trained_here_refuses_its_study(make, trainer, root, monkeypatch, changes, why):
    """Also where it is not the first to be trained, or to be tried for its speed."""
    by_the_clock = make(f'Variant("odd", {{{changes}}}),', STUDY.replace("budget=2_560", 'budget=1.0, equal="seconds"'))
    monkeypatch.setattr(runs.budget, "measure_speed", lambda *given: pytest.fail())
    with pytest.raises(UserError, match=f"rate.py: odd: {why}"):
        running.work([by_the_clock], root, QUIET)
    loaded = make(f'Variant("odd", {{{changes}}}),')
    with pytest.raises(UserError, match=f"rate.py: odd: {why}"):
        running.work([loaded], root, QUIET)
    assert trainer.trained == []
    running.work([make()], root, QUIET)
    assert len(trainer.trained) == 6


def test_a_schedule_that_the_steps_by_the_clock_are_too_few_for_refuses_its_study(make, trainer, root, monkeypatch):
    text = STUDY.replace("budget=2_560", 'budget=1.0, equal="seconds"')
    monkeypatch.setattr(runs.budget, "measure_speed", lambda experiment, speed: write_speed(speed))
    with pytest.raises(UserError, match="rate.py: odd: the budget allows it 10 steps, but optimizer.schedule.name="):
        running.work([make('Variant("odd", {"optimizer.schedule.warmup_steps": 11}),', text)], root, QUIET)
    assert trainer.trained == []


@pytest.mark.parametrize("here", [True, False])
def test_candidates_that_cannot_be_configured_are_reported_once_and_exit_with_2(make, trainer, root, run_command, here):
    """A grid may contain some; the others are trained."""
    loaded = make(text=CANDIDATES)
    if not here:  # train the valid ones before, so that no worker is started
        running.work([loaded], root, QUIET)
    options = ["--root", str(root)] + ["--here"] * here
    status, out, err = run_command("study", "run", str(loaded.path), *options)
    first, second, third, *rest = out.splitlines()
    assert first.startswith("rate: 0 99: failed: a budget of 2560 tokens is less than one step")
    assert second.startswith("rate: 11 4: failed: the budget allows it 10 steps, but optimizer.schedule.name=")
    assert third.startswith("rate: 11 99: failed: ")
    assert len(rest) == (3 if here else 1) and len(trainer.trained) == 3
    assert here or rest[0].startswith("rate: 3 runs failed, and none are left to do; ")
    assert status == 2 and "runs failed: 3 of rate;" in err


CANDIDATES = '''"""Which batch, and which rise?"""

from experiments import Sweep

study = Sweep(
    base="{base}",
    budget=2_560,
    search={{"optimizer.schedule.warmup_steps": (0, 11), "train.batch_size": (2, 4, 99)}},
)
'''


def test_a_sweep_without_a_candidate_that_can_be_configured_is_refused(make, trainer, root):
    loaded = make(text=CANDIDATES.replace("(2, 4, 99)", "(98, 99)"))
    with pytest.raises(UserError, match="rate.py: 0 98: a budget of 2560 tokens is less than one step"):
        running.work([loaded], root, QUIET)


def test_workers_leave_reporting_of_failures_to_their_parent(make, trainer, root, run_command, monkeypatch):
    monkeypatch.setenv(running.PARENT, "1")
    monkeypatch.setattr(running, "_end_with_parent", lambda: None)
    path = make(text=CANDIDATES).path
    status, out, _ = run_command("study", "run", str(path), "--root", str(root), "--here")
    assert status == 0 and "0 99" not in out


def test_planning_takes_no_device(make, root, run_python, monkeypatch):
    """A process that only starts workers would take the memory of a GPU, or a TPU, from them."""
    path = make(text=STUDY.replace("budget=2_560", 'budget=1e10, equal="flops"')).path
    monkeypatch.setenv("JAX_PLATFORMS", "nowhere")  # which fails where devices are asked for
    found = run_python("-m", "deepseek_jax", "study", "run", str(path), "--slurm", "--root", str(root))
    assert found.returncode == 0 and "--array=0-5" in found.stdout, found.stderr


def test_unmeasured_speeds_are_measured_and_no_failure(make, trainer, root, monkeypatch):
    loaded = make(text=STUDY.replace("budget=2_560", 'budget=1.0, equal="seconds"'))
    assert len(running.to_do(loaded, root)) == 6
    monkeypatch.setattr(runs.budget, "measure_speed", lambda experiment, speed: write_speed(speed))
    running.work([loaded], root, QUIET)
    assert len(trainer.trained) == 6 and not running.to_do(loaded, root) and not running.failed(loaded, root)


def test_a_variant_whose_speed_trial_fails_is_reported_and_not_tried_again(make, trainer, root, monkeypatch):
    """Such as a variant that is too large for the memory."""

    def measure(experiment, speed):
        if experiment.optimizer.peak_lr == 0.2:
            raise MemoryError("RESOURCE_EXHAUSTED: 1 TiB")
        write_speed(speed)

    loaded, told = make(text=STUDY.replace("budget=2_560", 'budget=1.0, equal="seconds"')), []
    monkeypatch.setattr(runs.budget, "measure_speed", measure)
    for _ in range(2):  # the second time it is not tried again
        running.work([loaded], root, told.append)
        assert len(trainer.trained) == 3 and not running.to_do(loaded, root) and len(running.failed(loaded, root)) == 3
        monkeypatch.setattr(runs.budget, "measure_speed", lambda *_: pytest.fail())
    reason = "MemoryError: RESOURCE_EXHAUSTED: 1 TiB"
    assert [line for line in told if "high" in line] == [
        f"rate: high: failed: the trial that measures its speed failed: {reason}"
    ] * 2
    assert (
        f"| high | 2 | the trial that measures its speed failed: {reason} |"
        in (report.write(loaded, root)[0] / "report.md").read_text()
    )
    running.forget_failures(loaded, root)
    assert {run.variant.name for run in running.to_do(loaded, root)} == {"high"}


def test_a_changed_variants_speed_is_measured_anew(make, trainer, root, monkeypatch):
    tried, text = [], STUDY.replace("budget=2_560", 'budget=1.0, equal="seconds"')

    def measure(experiment, speed):
        record.claim(speed.with_suffix(""), experiment)  # the run directory of the trial
        tried.append(experiment.optimizer.peak_lr)
        write_speed(speed)

    monkeypatch.setattr(runs.budget, "measure_speed", measure)
    for change in ("0.2}", "0.3}", "0.2}"):
        running.work([make(text=text.replace("0.2}", change))], root, QUIET)
        assert not running.failed(make(text=text.replace("0.2}", change)), root)
    assert tried == [0.1, 0.2, 0.3], "once each, whatever its seed"


def write_speed(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"per_second": 2560.0}))


def test_a_misspelt_metric_is_refused_before_anything_is_trained(make, trainer, root, run_command):
    path = make(text=STUDY.replace('"final/loss"', '"final/los"')).path
    for options in (["--here"], []):
        status, out, err = run_command("study", "run", str(path), "--root", str(root), *options)
        assert (status, out, trainer.trained) == (2, "", [])
        assert err.endswith("rate.py: no run measures 'final/los'; choose one of final/loss, val/loss, final/bytes.\n")


@pytest.mark.parametrize("equal", ["budget=255", 'equal="steps", budget=0.5'])
def test_a_budget_of_no_step_is_refused_before_anything_is_trained(make, trainer, root, run_command, equal):
    path = make(text=STUDY.replace("budget=2_560", equal)).path
    for options in (["--here"], []):
        status, out, err = run_command("study", "run", str(path), "--root", str(root), *options)
        assert (status, out, trainer.trained) == (2, "", [])
        assert "rate.py: low: a budget of " in err and "is less than one step" in err


@pytest.mark.parametrize("path", overview.files(ROOT / "experiments" / "studies"), ids=lambda path: path.stem)
def test_the_repositorys_studies_use_existing_metrics(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    metrics.check(load(path))


def test_a_custom_text_score_is_known_to_studies_and_early_stopping(monkeypatch):
    monkeypatch.setitem(scores.OF_TEXT, "likely", True)
    assert {"val/likely", "final/likely"} <= metrics.names_of(Experiment())
    assert "likely" in evaluate.names(types.SimpleNamespace(domains=("one",), held_out_targets={"one": 7}))


def test_variants_that_do_not_differ_are_refused_before_anything_is_trained(make, trainer, root, run_command):
    """Their difference would be exactly 0: they set what does not matter, or a value that the base already has."""
    lora = " (tune.lora.dora has no effect: tune.lora.rank is 0)"
    for changes, why in ('"log.every": 5', ""), ('"optimizer.peak_lr": 0.1', ""), ('"tune.lora.dora": True', lora):
        path = make(f'Variant("same", {{{changes}}}),').path
        status, out, err = run_command("study", "run", str(path), "--root", str(root), "--here")
        assert (status, out, trainer.trained) == (2, "", [])
        assert err.endswith(
            f"low and same differ in nothing that learning depends on{why}; leave one out, or change it.\n"
        )


FURTHER = """claim="high < low", further=[Claim("gaps", 1, "low < high")], measures=[{0}],"""
GAP = "def gap(run):\n    return {{'gap': 1 + run.seed}}\n\n\nfrom experiments import Claim,"


def with_gap(of_measure, gives=""):
    text = STUDY.replace("from experiments import", GAP.replace("from exp", f"{gives}\n\nfrom exp"))
    return text.replace('claim="high < low",', FURTHER.format(of_measure))


def test_a_measure_may_declare_the_names_of_its_scores(make, trainer, root, monkeypatch):
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    with pytest.raises(UserError, match="no run measures 'gaps'; choose one of gap.$"):
        running.work([make(text=with_gap("gap", "gap.gives = ['gap']"))], root, QUIET)
    assert trainer.trained == []
    running.work([make(text=with_gap("gap", "gap.gives = ['gap', 'gaps']"))], root, QUIET)  # only declared
    assert len(trainer.trained) == 6


def test_a_score_missing_from_an_undeclared_measure_stops_after_the_first_run(make, trainer, root, monkeypatch):
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    loaded = make(text=with_gap("gap"))
    for _ in range(2):  # the second time there is no need to train
        with pytest.raises(UserError, match="rate.py: low ended without 'gaps'; choose one of gap.$"):
            running.work([loaded], root, QUIET)
        assert len(trainer.trained) == 1
    folder, _ = report.write(loaded, root)
    text = (folder / "report.md").read_text()
    assert "| low < high | `gaps` | 1 | not measured: gaps | no finished run has it |" in text
    (main,) = {clause.verdict for clause in results.verdicts(loaded, results.gather(loaded, root))[0]}
    assert main == UNFINISHED


def test_a_metric_that_no_run_has_is_reported_as_not_measured(make, trainer, root):
    running.work([make()], root, QUIET)
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


def test_a_changed_study_leaves_its_old_runs_out(make, trainer, root):
    running.work([make()], root, QUIET)
    changed = make(text=STUDY.replace("2_560", "5_120"))
    assert len(running.to_do(changed, root)) == 6
    found = results.gather(changed, root)
    assert (found["runs"], found["missing"], found["stale"]) == ([], 6, 6)
    running.work([changed], root, QUIET)
    text = (report.write(changed, root)[0] / "report.md").read_text()
    assert "6 stale runs, of an older version of this study, are left out." in text
    assert results.gather(make(), root)["stale"] == 6  # changed back: the old runs count again, the new ones are stale
    assert len(results.gather(make(), root)["runs"]) == 6


def test_runs_trained_by_other_code_are_reported(make, trainer, root, run_command, monkeypatch):
    loaded = make()
    words = "study", "run", str(loaded.path), "--root", str(root), "--here"
    assert "different version of the code" not in run_command(*words)[1] and len(trainer.trained) == 6
    monkeypatch.setattr(record, "code_hash", lambda: "another")
    assert "rate: 6 of its runs were trained by a different version of the code; to" in run_command(*words)[1]
    more = make(text=STUDY.replace("seeds=3", "seeds=4"))
    assert "rate: 6 of its runs were trained by a different version of" in run_command(*words)[1]
    assert len(trainer.trained) == 8
    assert "trained by 2 versions of the code" in (report.write(more, root)[0] / "report.md").read_text()


def test_the_report_names_the_devices_of_the_runs(make, trainer, root, monkeypatch):
    """Not those of the machine that writes the report, which may be a login node."""
    loaded, where = make(), "8 x NVIDIA H100"
    monkeypatch.setattr("os.cpu_count", lambda: 99)
    monkeypatch.setattr(outcome, "_device", lambda: where)
    running.work([loaded], root, QUIET)
    text = (report.write(loaded, root)[0] / "report.md").read_text()
    assert f" Measured on {where}.\n" in text and f"minutes in all on {where}.\n" in text
    (first, *_, last) = sorted(root.glob(f"*/*/{runs.TRAINED}"))
    first.write_text(first.read_text().replace(where, "96 CPU cores"))
    trained = json.loads(last.read_text())
    del trained["device"]  # as in old runs, which did not record it
    last.write_text(json.dumps(trained))
    text = (report.write(loaded, root)[0] / "report.md").read_text()
    there = f"{where} and 96 CPU cores and a device that was not written down"
    assert f" Measured on {there}, so speeds do not compare.\n" in text and f"minutes in all on {there}.\n" in text


def test_committed_results_of_an_older_version_are_not_mixed_in(make, trainer, root, tmp_path):
    loaded = make()
    running.work([loaded], root, QUIET)
    folder, _ = report.write(loaded, root)
    committed = folder / results.RESULTS_FILE
    committed.write_text(committed.read_text().replace('"device": "', '"device": "not '))
    assert "not " not in str(results.devices(results.gather(loaded, root))), "the runs are here"
    changed = make(text=STUDY.replace("0.2}", "0.3}"))
    found = results.gather(changed, tmp_path / "no_runs_here")
    assert {run["variant"] for run in found["runs"]} == {"low"} and found["missing"] == found["stale"] == 3


def test_new_failures_are_not_hidden_by_committed_results(make, trainer, root, tmp_path, monkeypatch, run_command):
    """As when a change of the code breaks a variant that used to train."""
    loaded = make()
    running.work([loaded], root, QUIET)
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
    running.work([loaded], tmp_path / "anew", QUIET)
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


def test_scores_of_a_changed_measure_or_edit_are_discarded(make, trainer, root, tmp_path, monkeypatch):
    """Neither in run directories nor in results.json."""
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    monkeypatch.setattr(measuring, "held_out_scores", lambda trained: {"final/loss": 9.0})
    edit = "def spoil(*model):\n    return model\n\n\nfrom experiments import"
    text = with_gap("gap").replace("low < high", "low <= high").replace('"gaps"', '"gap"')
    text = text.replace("from experiments import", edit).replace("{further}", 'Variant("spoilt", edit=spoil),')
    loaded = make(text=text)
    running.work([loaded], root, QUIET)
    report.write(loaded, root)
    assert len(results.gather(loaded, tmp_path / "no_runs_here")["runs"]) == 9
    for old, new, left in (("1 + run.seed", "2 + run.seed", 0), ("return model", "return list(model)", 6)):
        changed = make(text=text.replace(old, new))
        found = results.gather(changed, tmp_path / "no_runs_here")
        assert (len(found["runs"]), found["missing"]) == (left, 9 - left)
        assert len(results.gather(changed, root)["runs"]) == left


def test_runs_of_another_study_do_not_hide_committed_results(make, trainer, root, tmp_path):
    loaded = make()
    running.work([loaded], root, QUIET)
    report.write(loaded, root)
    other = loaded.path.with_name("other.py")
    other.write_text(loaded.path.read_text().replace("0.2}", "0.3}"))
    running.work([load(other)], tmp_path / "others", QUIET)
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
    running.work([loaded], root, QUIET)
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
    running.work([many], root, QUIET)
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
    running.work([loaded], root, QUIET)
    folder, verdict = report.write(loaded, root)
    text = (folder / "report.md").read_text()
    assert verdict == CANNOT_TELL and f"high: seed 1 ended with final/loss {lost} |" in text
    assert "| high | 3 | " in text and "[+nan, +nan]" in text


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
    running.work([loaded], root, QUIET)
    reason = "the edit spoil must return (experiment, params, buffers), as it was given them."
    assert [run.failure for run in running.failed(loaded, root)] == 3 * [reason]
    mended = make('Variant("spoilt", edit=spoil),', text.replace("model[1:]", "model"))
    assert len(running.to_do(mended, root)) == 3 and not running.failed(mended, root)
    running.work([mended], root, QUIET)
    assert results.values(results.gather(mended, root), "final/loss")["spoilt"] == dict.fromkeys(range(3), 9.0)


def test_an_edited_model_without_scores_does_not_inherit_any(make, trainer, root, monkeypatch):
    """Otherwise the score of the unedited model, whose training it shares, would be reported for it."""
    monkeypatch.setattr(measuring, "restore", lambda run: run)
    monkeypatch.setattr(measuring, "held_out_scores", lambda trained: {})
    edit = "def spoil(*model):\n    return model\n\n\nfrom experiments import"
    text = STUDY.replace("from experiments import", edit).replace('claim="high < low"', 'claim="low <= spoilt"')
    loaded = make('Variant("spoilt", edit=spoil),', text)
    running.work([loaded], root, QUIET)
    found = results.gather(loaded, root)
    ((judged,),) = results.verdicts(loaded, found)
    assert (judged.verdict, judged.reason) == (CANNOT_TELL, "spoilt: seed 2 ended without final/loss")
    assert "spoilt" not in results.values(found, "val/loss") and "spoilt" in results.values(found, "memory_bytes")


def test_runs_of_the_same_experiment_are_shared_between_studies(make, trainer, root, tmp_path):
    loaded = make()
    running.work([loaded], root, QUIET)
    other = loaded.path.with_name("other.py")
    other.write_text(loaded.path.read_text().replace('Variant("low")', 'Variant("base")').replace("low", "base"))
    running.work([load(other)], root, QUIET)
    assert len(trainer.trained) == 6
    assert len(results.gather(load(other), root)["runs"]) == 6


def test_a_new_setting_that_is_off_does_not_make_runs_stale(make):
    """A run's identity covers only settings that differ from their defaults and matter for learning."""
    (run, *_) = runs.plan(make(), STUDIES_ROOT)
    experiment = dataclasses.replace(run.experiment, log=dataclasses.replace(run.experiment.log, every=3))
    assert runs.identity(experiment) == runs.identity(run.experiment)
    shown = dataclasses.replace(run.experiment.eval, samples=2, sample_tokens=7)
    assert runs.identity(dataclasses.replace(run.experiment, eval=shown)) == runs.identity(run.experiment)
    here = dataclasses.replace(run.experiment.data, directory="elsewhere")
    assert runs.identity(dataclasses.replace(run.experiment, data=here)) == runs.identity(run.experiment)
    sets = [SupervisedExperiment(dataset=DatasetConfig(directory=directory)) for directory in ("", "elsewhere")]
    assert runs.identity(sets[0]) == runs.identity(sets[1])
    changes = {"optimizer": {"b1": 0.8}, "data": {"source": "code"}, "eval": {"final_batches": 3}, "train": {"seed": 9}}
    others = [
        dataclasses.replace(run.experiment, **{room: dataclasses.replace(getattr(run.experiment, room), **settings)})
        for room, settings in changes.items()
    ]
    learnt = [run.experiment, *others, sets[0], Experiment()]
    assert len(set(map(runs.identity, learnt))) == len(learnt)


def test_one_run_of_a_slurm_array_is_trained_by_index(make, trainer, root, run_command):
    loaded = make()
    script = slurm.script(loaded, root)
    assert "#SBATCH --array=0-5" in script and '--index "$SLURM_ARRAY_TASK_ID"' in script
    status, out, _ = run_command("study", "run", str(loaded.path), "--root", str(root), "--index", "3")
    assert status == 0 and len(trainer.trained) == 1 and out.startswith("rate: high, seed 1: final/loss")
    status, _, err = run_command("study", "run", str(loaded.path), "--root", str(root), "--index", "6")
    assert status == 2 and "has runs 0 to 5" in err


def test_retrying_one_run_keeps_the_failures_of_the_others(make, trainer, root, run_command):
    """They would not be tried again in this process, and their reasons would be lost."""
    loaded = make('Variant("diverges", {"optimizer.peak_lr": 2.0}),')
    running.work([loaded], root, QUIET)
    words = "study", "run", str(loaded.path), "--root", str(root)
    assert run_command(*words, "--index", "2", "--retry")[0] == 2
    assert [run.seed for run in running.failed(loaded, root)] == [0, 1, 2] and not running.to_do(loaded, root)
    status, out, _ = run_command(*words, "--slurm", "--retry")
    assert status == 0 and '--index "$SLURM_ARRAY_TASK_ID" --retry &\n' in out


@pytest.mark.parametrize("options", [["--here"], ["--index", "0"], ["--slurm"]])
def test_jobs_are_refused_where_none_are_started(make, trainer, root, run_command, options):
    status, _, err = run_command("study", "run", str(make().path), "--root", str(root), "--jobs", "2", *options)
    assert status == 2 and "--jobs is for worker processes, of which" in err and not trainer.trained


def test_a_slurm_script_has_a_valid_job_name(make, root):
    loaded = make()
    spaced = loaded.path.rename(loaded.path.with_name("Rate and more.py"))
    script = slurm.script(load(spaced), root)
    assert "--job-name=rate_and_more\n" in script and "--output=rate_and_more-%a.log\n" in script
    without_latin = spaced.rename(spaced.with_name("研究.py"))
    assert "--job-name=study\n" in slurm.script(load(without_latin), root)


def test_a_single_seed_has_a_mean_but_no_deviation(make, trainer, root):
    alone = make(text=STUDY.replace("seeds=3", "seeds=1"))
    running.work([alone], root, QUIET)
    text = (report.write(alone, root)[0] / "report.md").read_text()
    assert "| low | 1 | " in text and "±" not in text.partition("## Results")[2].replace("mean ± sd", "")


def test_a_report_without_any_measured_speed(make, trainer, root, monkeypatch):
    """As when the batch grows at every logged step, so that none is timed."""
    write = fake.write

    def without(rows):
        return [{key: row[key] for key in row if key != "tokens_per_second"} for row in rows]

    monkeypatch.setattr(fake, "write", lambda workdir, rows: write(workdir, without(rows)))
    loaded = make()
    running.work([loaded], root, QUIET)
    text = (report.write(loaded, root)[0] / "report.md").read_text()
    assert "| high | 3 | " in text and "1,000" not in text


def test_a_study_file_can_import_from_the_working_directory(make, tmp_path, monkeypatch):
    (tmp_path / "helpers_of_studies.py").touch()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a" / "b" / "c" / "mine.py"
    path.parent.mkdir(parents=True)
    text = make().path.read_text().replace("from experiments", "import helpers_of_studies\nfrom deepseek_jax.studies")
    path.write_text(text)
    assert load(path).study.names == ["low", "high"]


def test_results_go_beside_the_folder_of_studies_for_any_working_directory(make, monkeypatch):
    path = make().path
    expected = path.parent.parent / "results" / "rate"
    for here, named in (("/", path), (path.parent, "rate.py"), (path.parent, "./rate.py"), (path.parent.parent, None)):
        monkeypatch.chdir(here)
        assert load(named or "studies/rate.py").results.resolve() == expected
    monkeypatch.chdir(path.parent.parent)
    assert str(load("studies/rate.py").results) == "results/rate"
    path.rename("elsewhere.py")
    assert str(load("elsewhere.py").results) == "results/elsewhere"


@pytest.mark.parametrize("words", [["report", "--output"], ["run", "--root"]])
def test_impossible_output_directories_are_refused(make, root, run_command, words):
    path, (verb, option) = make().path, words
    status, _, err = run_command("study", verb, str(path), "--root", str(root), option, str(path))
    assert status == 2 and err == f"deepseek-jax: {path} cannot be made a directory: Not a directory; give another.\n"


def test_list_shows_verdicts_and_diff_shows_settings(make, trainer, root, run_command):
    loaded = make()
    assert overview.lines([loaded.path], root)[0].verdict == "not run yet"
    running.work([loaded], root, QUIET)
    (line,) = overview.lines([loaded.path], root)
    assert (line.name, line.runs, line.verdict) == ("rate", "6 of 6", "holds")
    status, out, _ = run_command("study", "list", str(loaded.path), "--root", str(root))
    assert status == 0 and "holds" in out
    low, high = (next((root / "rate").glob(f"{name}-0-*")) for name in ("low", "high"))
    status, out, _ = run_command("study", "diff", str(low), str(high))
    assert (status, out) == (0, "optimizer.peak_lr: 0.1 in the first, 0.2 in the second\n")


def test_diff_says_which_setting_is_empty(make, trainer, root, run_command):
    loaded = make('Variant("tuned", {"tune.freeze": "embedding", "optimizer.groups": "head lr=2"}),')
    running.work([loaded], root, QUIET)
    plain, tuned = (next((root / "rate").glob(f"{name}-0-*")) for name in ("low", "tuned"))
    _, out, _ = run_command("study", "diff", str(plain), str(tuned))
    assert "tune.freeze: empty in the first, embedding in the second" in out
    assert "optimizer.groups: empty in the first, ('head lr=2',) in the second" in out


def test_brackets_in_a_question_are_not_taken_for_markup(make, root, run_command):
    loaded = make(text=STUDY.replace("Is a higher rate better?", "Is [bold] or [/bold] better?"))
    status, out, _ = run_command("study", "list", str(loaded.path), "--root", str(root))
    assert status == 0 and "[bold]" in out and "[/bold]" in out


def test_a_report_without_runs_is_refused(make, root, run_command):
    status, _, err = run_command("study", "report", str(make().path), "--root", str(root))
    assert status == 2 and "has no finished run; `deepseek-jax study run" in err and err.count("\n") == 1
    assert f" --root {root}` makes them" in err


@pytest.mark.parametrize(
    "change, message",
    [
        (('claim="high < low"', 'claim="high < lower"'), "the claim names 'lower'"),
        (('"low"', '"high"'), "variants are named high, high; give each its own name"),
        (("seeds=3", "seeds=2.5"), "seeds is 2.5 and budget 2560; write a whole number of seeds"),
        (("budget=2_560", "budget='2_560'"), "budget '2_560'; write"),
        (('metric="final/loss"', "metric=3"), "metric is 3; write the name of a score in quotes"),
        (("budget=2_560", 'budget=2_560, equal="apples"'), "equal is 'apples'; choose one of tokens"),
        (("margin=0.05", "margin=0"), "margin is 0"),
        (('"""Is a higher rate better?"""', ""), "a study's docstring is its question"),
        (("study = Study", "studie = Study"), "has no variable study"),
        (("seeds=3", "seeds=three"), "rate.py line 8: NameError"),
    ],
)
def test_invalid_study_files_are_refused(make, change, message):
    with pytest.raises(UserError, match=message):
        make(text=STUDY.replace(*change))


def test_variants_may_have_any_names_and_get_distinct_directories(make, trainer, root):
    text = STUDY.replace('"low"', '"γ"').replace('"high"', '"β"').replace("high < low", "β < γ")
    loaded = make('Variant("lr < 1", {"optimizer.peak_lr": 0.3}), Variant("lr > 1", {"optimizer.peak_lr": 2.0}),', text)
    running.work([loaded], root, QUIET)
    folder, verdict = report.write(loaded, root)
    assert verdict == "holds" and "| lr > 1 | 2 | step 3 is not finite" in (folder / "report.md").read_text()
    called = {path.parent.name.rpartition("-0-")[0] for path in root.glob("rate/*-0-*/trained.json")}
    assert called == {"variant", "variant_2", "lr_1"}
    assert list(slugs(["A", "a", "a_2", "a 2"]).values()) == ["a", "a_2", "a_2_2", "a_2_3"]


def test_variants_may_not_set_steps_or_seeds():
    with pytest.raises(UserError, match="^'longer' sets train.steps, which budget and seeds decide for all; leave"):
        Variant("longer", {"train.steps": 400})
    with pytest.raises(UserError, match="^'7' sets train.seed"):
        Sweep(base="x.py", budget=1, search={"train.seed": (7, 8)})


def test_a_missing_study_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no study"):
        load(tmp_path / "none.py")
