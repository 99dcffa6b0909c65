"""Studies that cannot be carried out are refused before anything is trained."""

import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.studies import overview, running, runs
from tests.studies.fake import CANDIDATES, STUDY, quiet, write_speed


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
        ('"start.best": True', "start.best applies to start.checkpoint, which is empty"),
    ],
)
def test_a_variant_that_cannot_be_trained_here_refuses_its_study(make, trainer, root, monkeypatch, changes, why):
    """Also where it is not the first to be trained, or to be tried for its speed."""
    by_the_clock = make(f'Variant("odd", {{{changes}}}),', STUDY.replace("budget=2_560", 'budget=1.0, equal="seconds"'))
    monkeypatch.setattr(runs.budget, "measure_speed", lambda *given: pytest.fail())
    with pytest.raises(UserError, match=f"rate.py: odd: {why}"):
        running.work([by_the_clock], root, quiet)
    loaded = make(f'Variant("odd", {{{changes}}}),')
    with pytest.raises(UserError, match=f"rate.py: odd: {why}"):
        running.work([loaded], root, quiet)
    assert trainer.trained == []
    running.work([make()], root, quiet)
    assert len(trainer.trained) == 6


def test_a_schedule_that_the_steps_by_the_clock_are_too_few_for_refuses_its_study(make, trainer, root, monkeypatch):
    text = STUDY.replace("budget=2_560", 'budget=1.0, equal="seconds"')
    monkeypatch.setattr(runs.budget, "measure_speed", lambda experiment, speed: write_speed(speed))
    with pytest.raises(UserError, match="rate.py: odd: the budget allows it 10 steps, but optimizer.schedule.name="):
        running.work([make('Variant("odd", {"optimizer.schedule.warmup_steps": 11}),', text)], root, quiet)
    assert trainer.trained == []


@pytest.mark.parametrize("here", [True, False])
def test_candidates_that_cannot_be_configured_are_reported_once_and_exit_with_2(make, trainer, root, run_command, here):
    """A grid may contain some; the others are trained."""
    loaded = make(text=CANDIDATES)
    if not here:  # train the valid ones before, so that no worker is started
        running.work([loaded], root, quiet)
    options = ["--root", str(root)] + ["--here"] * here
    status, out, err = run_command("study", "run", str(loaded.path), *options)
    first, second, third, *rest = out.splitlines()
    assert first.startswith("rate: 0 99: failed: a budget of 2560 tokens is less than one step")
    assert second.startswith("rate: 11 4: failed: the budget allows it 10 steps, but optimizer.schedule.name=")
    assert third.startswith("rate: 11 99: failed: ")
    assert len(rest) == (3 if here else 1) and len(trainer.trained) == 3
    assert here or rest[0].startswith("rate: 3 runs failed, and none are left to do; ")
    assert status == 2 and "runs failed: 3 of rate;" in err


def test_a_sweep_without_a_candidate_that_can_be_configured_is_refused(make, trainer, root):
    loaded = make(text=CANDIDATES.replace("(2, 4, 99)", "(98, 99)"))
    with pytest.raises(UserError, match="rate.py: 0 98: a budget of 2560 tokens is less than one step"):
        running.work([loaded], root, quiet)


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


@pytest.mark.parametrize("options", [["--here"], ["--index", "0"], ["--slurm"]])
def test_jobs_are_refused_where_none_are_started(make, trainer, root, run_command, options):
    status, _, err = run_command("study", "run", str(make().path), "--root", str(root), "--jobs", "2", *options)
    assert status == 2 and "--jobs is for worker processes, of which" in err and not trainer.trained
