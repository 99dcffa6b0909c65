"""Study files: what they may say, where their results go, and the verbs that only look at them."""

import types

import pytest

from deepseek_jax import record
from deepseek_jax.config import Experiment, SupervisedExperiment
from deepseek_jax.errors import UserError
from deepseek_jax.studies import metrics, overview, report, running
from deepseek_jax.studies.study import Variant, load, slugs
from deepseek_jax.studies.sweep import Sweep
from deepseek_jax.tasks import scores
from deepseek_jax.train import evaluate
from tests.paths import ROOT
from tests.studies.fake import STUDY, quiet


@pytest.mark.parametrize("path", overview.files(ROOT / "experiments" / "studies"), ids=lambda path: path.stem)
def test_the_repositorys_studies_use_existing_metrics(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    metrics.check(load(path))


def test_a_custom_text_score_is_known_to_studies_and_early_stopping(monkeypatch):
    monkeypatch.setitem(scores.OF_TEXT, "likely", True)
    assert {"val/likely", "final/likely"} <= metrics.names_of(Experiment())
    assert "likely" in evaluate.names(types.SimpleNamespace(domains=("one",), held_out_targets={"one": 7}))


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
    running.work([loaded], root, quiet)
    (line,) = overview.lines([loaded.path], root)
    assert (line.name, line.runs, line.verdict) == ("rate", "6 of 6", "holds")
    status, out, _ = run_command("study", "list", str(loaded.path), "--root", str(root))
    assert status == 0 and "holds" in out
    low, high = (next((root / "rate").glob(f"{name}-0-*")) for name in ("low", "high"))
    status, out, _ = run_command("study", "diff", str(low), str(high))
    assert (status, out) == (0, "optimizer.peak_lr: 0.1 in the first, 0.2 in the second\n")


def test_diff_says_which_setting_is_empty(make, trainer, root, run_command):
    loaded = make('Variant("tuned", {"tune.freeze": "embedding", "optimizer.groups": "head lr=2"}),')
    running.work([loaded], root, quiet)
    plain, tuned = (next((root / "rate").glob(f"{name}-0-*")) for name in ("low", "tuned"))
    _, out, _ = run_command("study", "diff", str(plain), str(tuned))
    assert "tune.freeze: empty in the first, embedding in the second" in out
    assert "optimizer.groups: empty in the first, ('head lr=2',) in the second" in out


def test_diff_says_which_setting_is_absent(tmp_path, run_command):
    one, other = tmp_path / "one", tmp_path / "other"
    record.claim(one, Experiment())
    record.claim(other, SupervisedExperiment())
    _, out, _ = run_command("study", "diff", str(one), str(other))
    assert "data.source: mix in the first, absent in the second\n" in out
    assert "dataset.name: absent in the first, digits in the second\n" in out


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
    running.work([loaded], root, quiet)
    folder, verdict = report.write(loaded, root)
    assert verdict == "holds" and "| lr > 1 | 2 | step 3 is not finite" in (folder / "report.md").read_text()
    called = {path.parent.name.rpartition("-0-")[0] for path in root.glob("rate/*-0-*/trained.json")}
    assert called == {"variant", "variant_2", "lr_1"}
    assert list(slugs(["A", "a", "a_2", "a 2"]).values()) == ["a", "a_2", "a_2_2", "a_2_3"]


def test_variants_may_not_set_steps_or_seeds():
    with pytest.raises(UserError, match="^'longer' sets train.steps"):
        Variant("longer", {"train.steps": 400})
    with pytest.raises(UserError, match="^'7' sets train.seed"):
        Sweep(base="x.py", budget=1, search={"train.seed": (7, 8)})


def test_a_missing_study_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no study"):
        load(tmp_path / "none.py")
