"""A user's own table of numbers or texts: networks trained on it, begun from such a run, and asked for predictions."""

import csv
import dataclasses
import gzip
import io
import json
import shutil

import pytest
from rich.console import Console

from deepseek_jax import record
from deepseek_jax.config import CheckpointConfig, EvalConfig, StartConfig, SupervisedExperiment, TrainConfig
from deepseek_jax.data.augment.config import AugmentConfig
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.train.loop import train
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import first_state
from tests.train.digits import experiment
from tests.user_files import people, write_csv, write_jsonl, write_parquet

QUIET = Console(file=io.StringIO())


def write_table(path, **changed):
    write_csv(path, "age,size,kind", people(60, **changed))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The folder of a user's own table and a run on it."""
    folder = tmp_path_factory.mktemp("table")
    write_table(folder / "t.csv")
    train(of_table(folder), folder / "run", QUIET)
    return folder


def of_table(folder) -> SupervisedExperiment:
    columns = ColumnsConfig(features=("age", "size"), label="kind")
    return experiment(
        model=HybridConfig(
            convolution=ConvolutionConfig(filters=(8,), kernel_size=1, pool="none"),
            recurrent=RecurrentConfig(kind="none"),
            attention=AttentionConfig(num_heads=0),
            readout="max",
        ),
        dataset=DatasetConfig(name=str(folder / "t.csv"), columns=columns),
        augment=AugmentConfig(),
        train=TrainConfig(steps=2, batch_size=8),
        eval=EvalConfig(),
        checkpoint=CheckpointConfig(),
    )


@pytest.mark.parametrize("sizes", [{"batch_size": 1}, {"batch_size": 8, "microbatch_size": 1}])
def test_batch_norm_over_a_single_record_of_a_table_is_refused(table, tmp_path, sizes):
    normed = dataclasses.replace(of_table(table).model, convolution=ConvolutionConfig((8,), norm="batch"))
    alone = dataclasses.replace(of_table(table), model=normed, train=TrainConfig(steps=1, **sizes))
    with pytest.raises(UserError, match="norm is batch, which of a single record .* raise train.microbatch_size"):
        train(alone, tmp_path / "run")


def test_starting_from_a_run_on_other_data_says_how_the_data_differ(table):
    begun = dataclasses.replace(of_table(table), start=StartConfig(checkpoint=str(table / "run")))

    def say(experiment=begun, **columns) -> list[str]:
        columns = dataclasses.replace(experiment.dataset.columns, **columns)
        said, dataset = [], dataclasses.replace(experiment.dataset, columns=columns)
        first_state(prepare(dataclasses.replace(experiment, dataset=dataset), QUIET), said.append)
        return said

    assert not say()
    with pytest.raises(UserError, match="the features age, size, which are in another order"):
        say(features=("size", "age"))
    with pytest.raises(UserError, match="classes a, b, .* give dataset.columns.classes in that order, or begin with a"):
        say(classes=("b", "a"))
    new_head = dataclasses.replace(begun.start, fresh="head")
    assert not say(dataclasses.replace(begun, start=new_head), classes=("b", "a"))
    write_table(table / "u.csv", older=9, kinds="ac")
    (table / "u.csv").write_text((table / "u.csv").read_text().replace("age", "years"))
    other = dataclasses.replace(begun, dataset=dataclasses.replace(begun.dataset, name=str(table / "u.csv")))
    assert say(other, features=("years", "size")) == [
        f"beginning from {table}/run, where the features are ('age', 'size') and here ('years', 'size'), the classes "
        "are ('a', 'b') and here ('a', 'c'), data was standardised by other means and deviations"
    ]


def test_predictions_for_a_table_name_file_and_line(table, tmp_path, run_command):
    new, more = tmp_path / "new.csv", tmp_path / "more.csv"
    new.write_text('note,size,age\n"two\nlines",1,2\n\nx,3,4\n')
    more.write_text("age,size\n5,6\n")
    status, out, _ = run_command("predict", "--workdir", f"{table}/run", str(new), str(more))
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [(each["file"], each["line"]) for each in found] == [(str(new), 3), (str(new), 5), (str(more), 2)]
    assert [list(each) for each in found] == [["file", "line", "class", "probability"]] * 3


def test_predictions_for_parquet_and_compressed_tables_are_those_of_a_csv(table, tmp_path, run_command):
    rows = {"age": [2, 4, 6], "size": [1, 3, 5]}
    write_parquet(tmp_path / "new.parquet", rows)
    write_csv(tmp_path / "new.csv", "age,size", ["2,1", "4,3", "6,5"])
    (tmp_path / "new.csv.gz").write_bytes(gzip.compress((tmp_path / "new.csv").read_bytes()))
    answers = {}
    for name, first in (("new.csv", 2), ("new.csv.gz", 2), ("new.parquet", 1)):
        status, out, err = run_command("predict", "--workdir", f"{table}/run", f"{tmp_path}/{name}")
        found = [json.loads(line) for line in out.splitlines()]
        assert status == 0, err
        assert [(each.pop("file"), each.pop("line")) for each in found] == [
            (f"{tmp_path}/{name}", first + number) for number in range(3)
        ]
        answers[name] = found
    assert answers["new.csv"] == answers["new.csv.gz"] == answers["new.parquet"]
    write_parquet(tmp_path / "new.parquet", {"age": [2, 4, None], "size": [1, 3, 5]})
    status, _, err = run_command("predict", "--workdir", f"{table}/run", f"{tmp_path}/new.parquet")
    expected = f"deepseek-jax: {tmp_path}/new.parquet row 3: age is None; it must be a number.\n"
    assert (status, err) == (2, expected)
    (tmp_path / "new.parquet").write_bytes(b"age,size\n1,2\n")
    status, _, err = run_command("predict", "--workdir", f"{table}/run", f"{tmp_path}/new.parquet")
    assert status == 2 and err.startswith(f"deepseek-jax: {tmp_path}/new.parquet is damaged or not Parquet; ")


@pytest.mark.parametrize("entry", ["", "nan", "-inf", "1e39", "x"])
def test_a_table_entry_that_is_not_a_finite_number_is_refused_with_its_line(table, tmp_path, run_command, entry):
    (tmp_path / "new.csv").write_text(f"age,size\n1,2\n\n{entry},3\n")
    status, _, err = run_command("predict", "--workdir", f"{table}/run", f"{tmp_path}/new.csv")
    assert status == 2 and err.count("\n") == 1
    assert (
        f"new.csv line 4: age is {entry!r}; it must be" in err
        or f"new.csv line 4: age is {float(entry)}; correct" in err
    )


@pytest.mark.parametrize(("entry", "said"), [("true", "True"), ('"40"', "'40'")])
def test_a_json_entry_that_is_not_a_number_is_refused_with_its_line(table, tmp_path, run_command, entry, said):
    (tmp_path / "new.jsonl").write_text(f'{{"age": {entry}, "size": 3}}\n')
    status, _, err = run_command("predict", "--workdir", f"{table}/run", f"{tmp_path}/new.jsonl")
    assert (status, err) == (2, f"deepseek-jax: {tmp_path}/new.jsonl line 1: age is {said}; it must be a number.\n")


def test_all_faults_of_a_table_to_predict_are_reported_together(table, tmp_path, run_command):
    argv = "predict", "--workdir", f"{table}/run", f"{tmp_path}/new.csv"
    (tmp_path / "new.csv").write_text("age,size\n1,x\n2\n3,4\n")
    assert run_command(*argv)[::2] == (
        2,
        f"deepseek-jax: {tmp_path}/new.csv has 2 faults:\n  line 2: size is 'x'; it must be a number.\n"
        "  line 3: the row does not have as many fields as the header.\n",
    )
    (tmp_path / "new.csv").write_text("age,length\n1,2\n")
    expected = f"deepseek-jax: {tmp_path}/new.csv has no column 'size'; its columns are age, length.\n"
    assert run_command(*argv)[::2] == (2, expected)


@pytest.fixture(scope="module")
def mail(tmp_path_factory):
    """The folder of a table with texts and a run on it, and the table's rows."""
    folder = tmp_path_factory.mktemp("mail")
    bodies = ("buy {} now\nit is cheap, very", "the meeting, number {}")
    rows = [{"body": bodies[number % 2].format(number), "folder": "ab"[number % 2]} for number in range(60)]
    write_rows(folder / "mail.csv", rows)
    train(of_mail(folder), folder / "run", QUIET)
    return folder, rows


def of_mail(folder) -> SupervisedExperiment:
    dataset = DatasetConfig(
        name=str(folder / "mail.csv"),
        directory=str(folder),
        vocab_size=300,
        length=16,
        columns=ColumnsConfig(text="body", label="folder"),
    )
    return dataclasses.replace(of_table(folder), dataset=dataset)


def write_rows(path, rows: list[dict]):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_predictions_for_texts_in_a_table_use_the_text_column_not_whole_lines(mail, tmp_path, run_command):
    folder, rows = mail
    texts = [row["body"].replace("\n", " ") for row in rows[:3]]
    rows = [{"number": str(number), "body": text} for number, text in enumerate(texts)]
    write_rows(tmp_path / "new.csv", rows)
    write_jsonl(tmp_path / "new.JSONL", rows)
    write_parquet(tmp_path / "new.parquet", {"body": texts})
    (tmp_path / "new.txt").write_text("\n".join(texts) + "\n")
    found = {}
    for name in ("new.csv", "new.JSONL", "new.parquet", "new.txt"):
        status, out, _ = run_command("predict", "--workdir", f"{folder}/run", f"{tmp_path}/{name}")
        answers = [json.loads(line) for line in out.splitlines()]
        assert status == 0 and [answer["line"] for answer in answers] == ([2, 3, 4] if name == "new.csv" else [1, 2, 3])
        found[name] = [(answer["class"], answer["probability"]) for answer in answers]
    assert found["new.csv"] == found["new.JSONL"] == found["new.parquet"] == found["new.txt"]
    status, out, _ = run_command("predict", "--workdir", f"{folder}/run", f"{folder}/mail.csv")
    assert status == 0 and len(out.splitlines()) == 60


def test_starting_from_another_tokenizers_embeddings_is_refused_unless_they_are_fresh(mail, tmp_path):
    folder, _ = mail
    other = shutil.copytree(folder / "run", tmp_path / "other")
    (other / "tokenizer.json").write_text("{}")

    def begin(checkpoint, **start):
        begun = dataclasses.replace(of_mail(folder), start=StartConfig(checkpoint=str(checkpoint), **start))
        first_state(prepare(begun, QUIET), print)

    begin(folder / "run")
    with pytest.raises(UserError, match="another tokenizer; .* start.fresh=embedding"):
        begin(other)
    begin(other, fresh="embedding")


def test_a_table_without_the_text_column_is_refused(mail, tmp_path, run_command, monkeypatch):
    folder, _ = mail
    write_rows(tmp_path / "new.csv", [{"text": "buy", "folder": "a"}])
    argv = "predict", "--workdir", f"{folder}/run", f"{tmp_path}/new.csv"
    expected = f"deepseek-jax: {tmp_path}/new.csv has no column 'body'; its columns are text, folder.\n"
    assert run_command(*argv)[::2] == (2, expected)
    monkeypatch.setattr(record, "read", lambda *_: SupervisedExperiment())  # as if trained on a built-in set
    status, _, err = run_command(*argv)
    assert status == 2 and "new.csv is a table, but dataset.columns.text of the training names no column" in err


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "buy\n".encode("utf-16")])
def test_binary_files_are_refused_as_text(mail, tmp_path, run_command, data):
    (tmp_path / "new").write_bytes(data)
    status, out, err = run_command("predict", "--workdir", f"{mail[0]}/run", f"{tmp_path}/new")
    assert (status, out, err.count("\n")) == (2, "", 1) and "new is not text in UTF-8, as it holds zero bytes;" in err


@pytest.mark.parametrize("name", ["new.txt", "new.csv"])
def test_texts_that_are_not_utf8_are_refused_with_the_line(mail, tmp_path, run_command, name):
    """Refused as in training: replacing the undecodable letters would change the text."""
    (tmp_path / name).write_bytes("body\ncafé now\n".encode("latin-1"))
    expected = f"deepseek-jax: {tmp_path}/{name} is not UTF-8 in line 2; save it in that encoding.\n"
    assert run_command("predict", "--workdir", f"{mail[0]}/run", f"{tmp_path}/{name}") == (2, "", expected)


@pytest.mark.parametrize(("changed", "what"), [({"kinds": "abc"}, "class_names"), ({"older": 100}, "scaling")])
def test_a_table_that_changed_after_training_is_refused(table, run_command, changed, what):
    kept = (table / "run/dataset.json").read_bytes()
    write_table(table / "t.csv", **changed)
    try:
        status, _, err = run_command("eval", "--workdir", f"{table}/run")
        assert status == 2 and "is not what" in err and what in err
        with pytest.raises(UserError, match="t.csv is not what .*run was trained on"):
            train(of_table(table), table / "run", QUIET)
        assert (table / "run/dataset.json").read_bytes() == kept
    finally:
        write_table(table / "t.csv")
