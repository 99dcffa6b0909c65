"""deepseek-jax data check: a report page, a filter list for training, and one-sentence refusals."""

import json
import re

import numpy as np
import pytest

from deepseek_jax.data.quality import corpus
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.registry import open_set
from tests.user_files import TOPICS, write_csv


@pytest.fixture
def table(tmp_path):
    """A .csv of 300 rows of two classes, the first ten labelled wrongly, and copies of the last ten appended."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    rows = rng.normal(size=(300, 4)) + 4 * labels[:, None]
    labels[:10] = 1 - labels[:10]  # lines 2 to 11
    lines = [",".join([*(f"{value:.6f}" for value in row), "ab"[label]]) for row, label in zip(rows, labels)]
    write_csv(tmp_path / "table.csv", "w,x,y,z,kind", [*lines, *lines[-10:]])
    return tmp_path / "table.csv"


COLUMNS = ["--config.dataset.columns.features=w,x,y,z", "--config.dataset.columns.label=kind"]


def test_the_filter_list_lists_planted_faults_and_training_applies_it(run_command, table, monkeypatch):
    from deepseek_jax.data.sets.config import ColumnsConfig

    monkeypatch.chdir(table.parent)
    # Nothing is held out, so every fault is in the training split, which the filter list covers.
    none = ["--config.dataset.val=0", "--config.dataset.test=0"]
    status, out, err = run_command("data", "check", str(table), *COLUMNS, *none)
    assert (status, err) == (0, "") and "nothing is held out" in out and "wrote table-check.html" in out
    listed = (table.parent / "table-exclude.txt").read_text().splitlines()
    ids = {int(line.split("#")[0]) for line in listed if line and line[0] != "#"}
    assert set(range(302, 312)) <= ids  # the appended copies
    assert len(set(range(2, 12)) & ids) >= 9 and len(ids) < 25  # nearly all wrong labels, and few others
    columns = ColumnsConfig(features=("w", "x", "y", "z"), label="kind")
    kept = open_set(DatasetConfig(str(table), val=0, test=0, columns=columns, exclude="table-exclude.txt"))
    assert set(kept.splits["train"]["ids"].tolist()) == set(range(2, 312)) - ids


def test_the_page_for_pictures_has_all_sections(run_command, tmp_path):
    page, exclude = tmp_path / "page.html", tmp_path / "list.txt"
    status, out, err = run_command("data", "check", "digits", "--output", str(page), "--exclude", str(exclude))
    assert (status, err) == (0, "")
    stages = [
        "comparing records",
        "looking for copies",
        "describing records",
        "looking for label doubts",
        "looking for outliers",
    ]
    places = [out.rindex(stage) for stage in (*stages, "looking at coverage", "Leakage: ")]
    assert places == sorted(places)  # the stages in order, then the findings
    text = page.read_text()
    titles = [
        "Leakage",
        "Duplicates",
        "Empty or broken records",
        "Label doubts",
        "Outliers",
        "Class balance",
        "Coverage",
    ]
    assert [text.index(f"<h2>{title}</h2>") for title in titles] == sorted(
        text.index(f"<h2>{title}</h2>") for title in titles
    )
    assert text.count("data:image/png") >= 2 and "labelled" in exclude.read_text()


@pytest.mark.filterwarnings("error")
def test_coverage_of_a_single_training_record_is_reported_as_unknown(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{row},{row**2},{'val' if row else 'train'}" for row in range(30)]
    write_csv(tmp_path / "table.csv", "x,y,split", lines)
    columns = {"features": "x", "targets": "y", "split": "split"}
    given = [f"--config.dataset.columns.{name}={column}" for name, column in columns.items()]
    status, out, err = run_command("data", "check", "table.csv", *given)
    assert (status, err) == (0, "") and "Coverage: the only training record has no other" in out


def test_a_built_in_set_takes_precedence_over_a_directory_of_its_name(tmp_path, monkeypatch):
    from deepseek_jax.cli.data_check import names_corpus

    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "a.txt").touch()
    assert not names_corpus("digits", {}) and names_corpus("./digits", {}) and names_corpus("code", {})
    (tmp_path / "digits" / "a.csv").touch()
    assert names_corpus("./digits", {}) and not names_corpus("./digits/a.csv", {})
    assert not names_corpus("./digits", {"dataset.columns.text": "body"})


def test_a_text_corpus_is_checked_for_copies_and_broken_records(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_JAX_DATA", str(tmp_path / "cache"))
    lines = [json.dumps({"text": text}) for text in TOPICS + [text.replace("the", "this", 1) for text in TOPICS[:5]]]
    (tmp_path / "topics.jsonl").write_text("\n".join(["{", *lines]) + "\n")
    status, out, err = run_command("data", "check", "topics.jsonl", "--config.data.held_out=0.2")
    assert (status, err) == (0, "") and "1 record was skipped in reading" in out
    page = (tmp_path / "topics-check.html").read_text()
    assert "topics.jsonl:1: broken JSON" in page and "<td>held_out</td><td>topics</td>" in page
    assert "topics.jsonl:2" in page  # listed with its copy
    assert not (tmp_path / "topics-exclude.txt").exists()


def test_a_sample_of_a_large_corpus_is_checked(run_command, tmp_path, monkeypatch):
    """All held-out documents are checked, as they are few; the training sample is the same every time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_JAX_DATA", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(map(str, rng.integers(1000, 9999, 20)))}) for _ in range(400)]
    (tmp_path / "large.jsonl").write_text("\n".join(lines) + "\n")
    command = ["data", "check", "large.jsonl", "--config.data.held_out=0.2"]
    whole = run_command(*command)[1]
    assert "Sample:" not in whole and "400 documents of 1 domains" in whole
    monkeypatch.setattr(corpus, "MOST_BYTES", 30_000)
    sampled = [run_command(*command) for _ in range(2)]
    sentences = [out[out.index("Sample: ") :] for _, out, _ in sampled]
    assert sentences[0] == sentences[1] and [status for status, *_ in sampled] == [0, 0]
    looked = int(re.match(r"Sample: (\d+) of 400 documents were looked at, drawn at random", sentences[0])[1])
    assert 100 < looked < 200 and f"{looked} documents of 1 domains" in sentences[0]
    assert "<td>held_out</td><td>large</td><td>80</td>" in (tmp_path / "large-check.html").read_text()


@pytest.mark.parametrize("name", ["few-check.html", "few-exclude.txt"])
def test_unwritable_outputs_are_refused_before_anything_is_read(run_command, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    status, out, err = run_command("data", "check", "few.csv")  # a file that does not exist
    assert (status, out, err) == (2, "", f"deepseek-jax: {name} is a directory; name a file in it.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "'digit' is neither a labelled set (digits, mnist5k"),
        (["cde"], "nor a corpus (prose, literature, code, operations, mix), nor a file or directory."),
        (["absent.csv"], "'absent.csv' is neither a labelled set"),
        (["absent.csv", *COLUMNS], "'absent.csv' is neither a labelled set"),
        (["empty.txt"], "the source holds no document; 1 record was skipped, the first: "),
        (
            ["digits", "--config.dataset.text=0.2"],
            "a labelled set has no key dataset.text; did you mean dataset.columns.text?",
        ),
        (["digits", "--config.dataset.val=1"], "leave nothing to train on"),
        (
            ["photos"],
            "photos is a directory without Parquet files; name a .csv, .jsonl or .parquet with a line for each",
        ),
        (
            ["few.CSV"],
            "name the input's column in one of text, image, features and series, as in dataset.columns.text=NAME; the",
        ),
        (["few.CSV", "--config.dataset.columns.features=age"], "label=NAME; the columns of few.CSV are age, kind."),
        (["few.CSV", "--config.dataset.columns.classes=a,b,a"], "dataset.columns.classes has 'a' twice"),
        (["photos/b.png"], "'photos/b.png' is neither a set (digits"),
        (["few.txt", "--exclude", "list.txt"], "--exclude is for labelled sets; documents"),
        (["few.txt", "--config.data.held_out=0"], "few has 1 records; a check needs at least 20"),
    ],
)
def test_sources_that_cannot_be_checked_are_refused(run_command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_JAX_DATA", str(tmp_path / "cache"))
    (tmp_path / "few.txt").write_text("A single document.\n")
    (tmp_path / "few.CSV").write_text("age,kind\n1,a\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "photos").mkdir()
    for name in ("a.JPG", "b.png", "notes.txt"):
        (tmp_path / "photos" / name).touch()
    status, out, err = run_command("data", "check", *arguments)
    assert status == 2 and err.count("\n") == 1 and message in err, err
    assert not out.strip() or arguments[0].endswith(".txt")  # preparing a text prints its stages
    assert not list(tmp_path.glob("*.html"))


def test_what_is_to_be_known_of_a_set_is_said_and_stands_on_the_page(run_command, table, monkeypatch):
    monkeypatch.chdir(table.parent)
    status, out, err = run_command("data", "check", str(table), *COLUMNS, "--config.dataset.val=0.0001")
    note = f"dataset.val is 0.0001, which comes to no record of {table}: the split val is empty."
    assert (status, err) == (0, "") and f"{note}\n" in out
    assert f"<p>{note}</p>" in (table.parent / "table-check.html").read_text()
