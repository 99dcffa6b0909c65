"""Running studies: what is trained, resumed, tried again or left to others, with a fake trainer."""

import dataclasses
import json

import pytest

from deepseek_jax import record
from deepseek_jax.choices import STUDIES_ROOT
from deepseek_jax.config import Experiment, SupervisedExperiment
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.studies import overview, report, results, running, runs, slurm
from deepseek_jax.studies.study import load
from tests.studies.fake import CANDIDATES, STUDY, Killed, files_of, quiet, write_speed


def test_a_killed_study_resumes_and_trains_nothing_twice(make, trainer, root, tmp_path):
    loaded = make()
    running.work([loaded], root / "unbroken", quiet)
    whole, _ = report.write(loaded, root / "unbroken", tmp_path / "whole")
    trainer.trained.clear()
    for lets_finish in (2, 0, 1):
        trainer.kill_at = lets_finish
        with pytest.raises(Killed):
            running.work([loaded], root / "broken", quiet)
    trainer.kill_at = None
    running.work([loaded], root / "broken", quiet)
    assert len(trainer.trained) == len(set(trainer.trained)) == 6  # no run was trained twice
    broken, _ = report.write(loaded, root / "broken", tmp_path / "broken")
    files = files_of(broken, but={"results.json"})
    files = {name: content.replace(b"/broken", b"/unbroken") for name, content in files.items()}  # --root in commands
    assert files == files_of(whole, but={"results.json"})
    numbers = [json.loads((folder / "results.json").read_text())["runs"] for folder in (broken, whole)]
    timeless = [[{key: value for key, value in run.items() if key != "seconds"} for run in runs] for runs in numbers]
    assert timeless[0] == timeless[1]


def test_the_time_spent_is_never_half_written(make, trainer, root, tmp_path):
    """Otherwise a full disk or a kill could leave an empty file, on which every further call would fail."""
    loaded = make()
    trainer.kill_at = 0
    with pytest.raises(Killed):
        running.work([loaded], root, quiet)
    (spent,) = root.glob("*/*/seconds.txt")
    (as_it_was := tmp_path / "spent").hardlink_to(spent)
    trainer.kill_at = None
    running.work([loaded], root, quiet)
    assert float(spent.read_text()) >= 0 and not as_it_was.samefile(spent), "replaced by a whole one, not emptied first"


def test_failing_variants_are_reported_and_the_others_are_trained(make, trainer, root):
    loaded = make('Variant("diverges", {"optimizer.peak_lr": 2.0}), Variant("large", {"optimizer.peak_lr": 0.9}),')
    running.work([loaded], root, quiet)
    folder, verdict = report.write(loaded, root)
    text = (folder / "report.md").read_text()
    assert verdict == "holds" and len(trainer.trained) == 6
    assert "| diverges | 0 | step 3 is not finite; it began in the parameter head[0]. |" in text
    assert "| large | 1 | MemoryError: RESOURCE_EXHAUSTED: 1 TiB |" in text
    assert not running.to_do(loaded, root)
    (kept,) = root.glob("rate/failed/large-1-*.json")
    assert 'raise MemoryError("RESOURCE_EXHAUSTED: 1 TiB")' in kept.with_suffix(".txt").read_text()
    running.forget_failures(loaded, root)
    assert {run.variant.name for run in running.to_do(loaded, root)} == {"diverges", "large"}


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
    running.work([loaded], root, quiet)
    assert len(trainer.trained) == 6 and not running.to_do(loaded, root) and not running.failed(loaded, root)
    report.write(loaded, root)
    (elsewhere,) = overview.lines([loaded.path], root / "no_speeds_here")
    assert (elsewhere.runs, elsewhere.verdict) == ("6 of 6, from results.json", "holds")


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
        running.work([make(text=text.replace("0.2}", change))], root, quiet)
        assert not running.failed(make(text=text.replace("0.2}", change)), root)
    assert tried == [0.1, 0.2, 0.3], "once each, whatever its seed"


def test_a_changed_study_leaves_its_old_runs_out(make, trainer, root):
    running.work([make()], root, quiet)
    changed = make(text=STUDY.replace("2_560", "5_120"))
    assert len(running.to_do(changed, root)) == 6
    found = results.gather(changed, root)
    assert (found["runs"], found["missing"], found["stale"]) == ([], 6, 6)
    running.work([changed], root, quiet)
    text = (report.write(changed, root)[0] / "report.md").read_text()
    assert "6 stale runs, of an older version of this study, are left out." in text
    assert results.gather(make(), root)["stale"] == 6  # changed back: the old runs count again, the new ones are stale
    assert len(results.gather(make(), root)["runs"]) == 6


def test_runs_trained_by_other_code_are_reported(make, trainer, root, run_command, monkeypatch):
    loaded = make()
    words = "study", "run", str(loaded.path), "--root", str(root), "--here"
    assert "different version of the code" not in run_command(*words)[1] and len(trainer.trained) == 6
    monkeypatch.setattr(record, "code_hash", lambda plugins: "another")
    assert "rate: 6 of its runs were trained by a different version of the code; to" in run_command(*words)[1]
    more = make(text=STUDY.replace("seeds=3", "seeds=4"))
    assert "rate: 6 of its runs were trained by a different version of" in run_command(*words)[1]
    assert len(trainer.trained) == 8
    assert "trained by 2 versions of the code" in (report.write(more, root)[0] / "report.md").read_text()


def test_runs_of_the_same_experiment_are_shared_between_studies(make, trainer, root, tmp_path):
    loaded = make()
    running.work([loaded], root, quiet)
    other = loaded.path.with_name("other.py")
    other.write_text(loaded.path.read_text().replace('Variant("low")', 'Variant("base")').replace("low", "base"))
    running.work([load(other)], root, quiet)
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


def test_a_study_of_one_seed_says_before_training_that_it_judges_nothing(make, trainer, root, run_command):
    loaded = make(text=STUDY.replace("seeds=3", "seeds=1"))
    status, out, _ = run_command("study", "run", str(loaded.path), "--root", str(root), "--here")
    first, *rest = out.splitlines()
    assert status == 0 and first == "rate: with seeds=1 no claim can be judged; an interval needs at least 2"
    assert len(rest) == 2


def test_retrying_one_run_keeps_the_failures_of_the_others(make, trainer, root, run_command):
    """They would not be tried again in this process, and their reasons would be lost."""
    loaded = make('Variant("diverges", {"optimizer.peak_lr": 2.0}),')
    running.work([loaded], root, quiet)
    words = "study", "run", str(loaded.path), "--root", str(root)
    assert run_command(*words, "--index", "2", "--retry")[0] == 2
    assert [run.seed for run in running.failed(loaded, root)] == [0, 1, 2] and not running.to_do(loaded, root)
    status, out, _ = run_command(*words, "--slurm", "--retry")
    assert status == 0 and '--index "$SLURM_ARRAY_TASK_ID" --retry &\n' in out


def test_a_slurm_script_has_a_valid_job_name(make, root):
    loaded = make()
    spaced = loaded.path.rename(loaded.path.with_name("Rate and more.py"))
    script = slurm.script(load(spaced), root)
    assert "--job-name=rate_and_more\n" in script and "--output=rate_and_more-%a.log\n" in script
    without_latin = spaced.rename(spaced.with_name("研究.py"))
    assert "--job-name=study\n" in slurm.script(load(without_latin), root)
