"""The hybrid network in the training loop: it learns, resumes, is scored, and predicts as it was scored."""

import csv
import dataclasses
import json
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax import record
from deepseek_jax.config import (
    CheckpointConfig,
    EvalConfig,
    StartConfig,
    SupervisedExperiment,
    TrainConfig,
)
from deepseek_jax.data.augment.config import AugmentConfig
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.data.sets.scaling import Scaling
from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid_config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.predict.predict import load_predictor
from deepseek_jax.tasks.config import ObjectiveConfig
from deepseek_jax.tasks.objectives import penalty
from deepseek_jax.tasks.scores import NAMES, of_boxes, of_numbers
from deepseek_jax.train import checkpoint, loop
from deepseek_jax.train.loop import train
from deepseek_jax.train.optimizer import decays
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import first_state
from deepseek_jax.train.supervised import SupervisedTask, scores_of
from deepseek_jax.train.supervised_program import supervised_program
from tests.train.digits import MODEL, experiment
from tests.user_files import people, write_csv, write_jsonl


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    return Console(file=(tmp_path_factory.mktemp("log") / "log").open("w"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, quiet):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(experiment(), workdir, quiet)


def test_digits_are_learned_and_scored_beside_logistic_regression(run):
    _, scores = run
    assert scores["final/accuracy"] > 0.9 and scores["final/macro_f1"] > 0.9
    assert scores["final/logistic regression, accuracy"] > 0.9
    assert scores["records_per_second"] > 0


def test_a_batch_larger_than_the_memory_is_refused_before_a_run_begins(tmp_path, quiet):
    large = experiment(train=TrainConfig(batch_size=2**30))
    with pytest.raises(UserError, match=r"a step takes at least .* GiB beside .* of memory; lower train.batch_size\."):
        train(large, tmp_path / "large", quiet)
    assert not (tmp_path / "large").exists()


def test_the_run_directory_shows_the_confusion_matrix(run):
    workdir, _ = run
    assert (workdir / "pictures/confusion.png").read_bytes().startswith(b"\x89PNG")
    page = (workdir / "report.html").read_text()
    assert "Confusion" in page and "finished, best held-out loss" in page


def test_an_interrupted_run_resumes_bit_for_bit(run, tmp_path, quiet, monkeypatch):
    """Including dropout, augmentation and the running averages of batch norms."""
    workdir, scores = run

    saved = checkpoint.Checkpoints.save

    def save_then_fail(self, state, progress, score=None):
        saved(self, state, progress)
        self.wait()
        if progress.step == 25:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoint.Checkpoints, "save", save_then_fail)
        train(experiment(), tmp_path / "again", quiet)
    again = train(experiment(), tmp_path / "again", quiet)
    measured = [{name: value for name, value in found.items() if "final" in name} for found in (again, scores)]
    assert measured[0] == measured[1]


def test_a_failure_after_the_last_step_loses_no_step(tmp_path, quiet, monkeypatch):
    few = experiment(train=TrainConfig(steps=3, batch_size=64), checkpoint=CheckpointConfig())

    def fail(*_):
        raise RuntimeError("baselines")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="baselines"):
        patched.setattr(SupervisedTask, "baselines", fail)
        train(few, tmp_path, quiet)
    monkeypatch.setattr(loop, "_take_steps", fail)  # must not be called: all steps were taken
    scores = train(few, tmp_path, quiet)
    assert scores["final/loss"] > 0 and "final/logistic regression, accuracy" in scores
    assert train(few, tmp_path, quiet) == scores


def test_without_a_test_split_a_run_ends_unscored(tmp_path, quiet):
    few = experiment(train=TrainConfig(steps=2, batch_size=64), dataset=DatasetConfig(name="digits", test=0.0))
    assert not any(name.startswith("final/") for name in train(few, tmp_path, quiet))


def test_the_declared_metric_names_are_those_that_are_written(run):
    workdir, _ = run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = {name.removeprefix("val/") for row in rows for name in row if name.startswith("val/")}
    assert names == {*prepare(experiment(), Console(quiet=True)).task.measured()}
    assert tuple(of_numbers(np.eye(3), np.ones((3, 3)))) == NAMES["numbers"]
    nothing = np.zeros((0, 4)), np.zeros(0)
    assert tuple(of_boxes([(*nothing, np.zeros(0))], [nothing], 1)) == NAMES["boxes"]


def test_a_predictor_answers_as_the_run_scored(run):
    workdir, scores = run
    predictor = load_predictor(workdir)
    setup = prepare(experiment(), Console(quiet=True))
    test = setup.task.dataset.splits["test"]
    inputs = test["inputs"].astype(np.float32) / (255 if test["inputs"].dtype == np.uint8 else 1)
    answers = [int(found["class"]) for found in predictor.predict(inputs)]
    assert (np.array(answers) == test["labels"]).mean() == pytest.approx(scores["final/accuracy"])


def test_many_pictures_are_standardised_in_chunks(run, monkeypatch):
    """All at once took 26 times the memory of the pictures.  Bytes and numbers up to 1 get the same answers."""
    predictor = load_predictor(run[0])
    pictures = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 1)).astype(np.uint8)
    scaled, inputs = [], Scaling.inputs
    monkeypatch.setattr(Scaling, "inputs", lambda self, values: scaled.append(len(values)) or inputs(self, values))
    found = predictor.predict(pictures)
    assert max(scaled) <= 256 and len(found) == 600
    assert predictor.predict(pictures.astype(np.float32) / 255) == found


def test_eval_and_predict_from_the_command_line(run, tmp_path, run_command):
    from PIL import Image
    from sklearn.datasets import load_digits

    workdir, scores = run
    status, out, _ = run_command("eval", "--workdir", str(workdir))
    assert status == 0 and f"{scores['final/accuracy']:.5g}" in out
    picture = tmp_path / "digit.png"
    Image.fromarray((load_digits().images[0] * 255 / 16).astype(np.uint8)).save(picture)
    status, out, _ = run_command("predict", "--workdir", str(workdir), str(picture))
    found = json.loads(out)
    assert status == 0 and found["class"] == str(load_digits().target[0]) and found["file"] == str(picture)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation tag of a phone held upright: the viewer has to rotate
    with Image.open(picture) as upright:
        upright.transpose(Image.Transpose.ROTATE_90).save(picture, exif=exif)
    assert json.loads(run_command("predict", "--workdir", str(workdir), str(picture))[1]) == found


def test_running_averages_of_batch_norms_move_by_a_tenth_towards_a_batch():
    """As in PyTorch, whose default momentum is 0.1."""
    program = supervised_program(experiment(), MODEL)
    moved = program.update_buffers({}, {"mean": jnp.float32(2)}, {"statistics": {"mean": jnp.float32(12)}}, 1)
    assert moved["mean"] == pytest.approx(3)


def write_table(path, **changed):
    write_csv(path, "age,size,kind", people(60, **changed))


def test_a_network_that_would_see_only_the_last_row_is_refused(tmp_path):
    blind = HybridConfig(recurrent=RecurrentConfig("none"), attention=AttentionConfig(0))
    with pytest.raises(UserError, match="last of 4 steps knows nothing of the others; set model.readout to mean or"):
        train(experiment(model=blind), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def table(tmp_path_factory, quiet):
    """The folder of a user's own table and a run on it."""
    folder = tmp_path_factory.mktemp("table")
    write_table(folder / "t.csv")
    train(of_table(folder), folder / "run", quiet)
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


def test_starting_from_a_run_on_other_data_says_how_the_data_differ(table, quiet):
    begun = dataclasses.replace(of_table(table), start=StartConfig(checkpoint=str(table / "run")))

    def say(experiment=begun, **columns) -> list[str]:
        columns = dataclasses.replace(experiment.dataset.columns, **columns)
        said, dataset = [], dataclasses.replace(experiment.dataset, columns=columns)
        first_state(prepare(dataclasses.replace(experiment, dataset=dataset), quiet), said.append)
        return said

    assert not say()
    with pytest.raises(UserError, match="trained with the features age, size, which are in another order here; give"):
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
def mail(tmp_path_factory, quiet):
    """The folder of a table with texts and a run on it, and the table's rows."""
    folder = tmp_path_factory.mktemp("mail")
    bodies = ("buy {} now\nit is cheap, very", "the meeting, number {}")
    rows = [{"body": bodies[number % 2].format(number), "folder": "ab"[number % 2]} for number in range(60)]
    write_rows(folder / "mail.csv", rows)
    train(of_mail(folder), folder / "run", quiet)
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
    (tmp_path / "new.txt").write_text("\n".join(texts) + "\n")
    found = {}
    for name in ("new.csv", "new.JSONL", "new.txt"):
        status, out, _ = run_command("predict", "--workdir", f"{folder}/run", f"{tmp_path}/{name}")
        answers = [json.loads(line) for line in out.splitlines()]
        assert status == 0 and [answer["line"] for answer in answers] == ([2, 3, 4] if name == "new.csv" else [1, 2, 3])
        found[name] = [(answer["class"], answer["probability"]) for answer in answers]
    assert found["new.csv"] == found["new.JSONL"] == found["new.txt"]
    status, out, _ = run_command("predict", "--workdir", f"{folder}/run", f"{folder}/mail.csv")
    assert status == 0 and len(out.splitlines()) == 60


def test_starting_from_another_tokenizers_embeddings_is_refused_unless_they_are_fresh(mail, tmp_path, quiet):
    folder, _ = mail
    other = shutil.copytree(folder / "run", tmp_path / "other")
    (other / "tokenizer.json").write_text("{}")

    def begin(checkpoint, **start):
        begun = dataclasses.replace(of_mail(folder), start=StartConfig(checkpoint=str(checkpoint), **start))
        first_state(prepare(begun, quiet), print)

    begin(folder / "run")
    with pytest.raises(UserError, match="another tokenizer; begin with new embeddings, by start.fresh=embedding, or"):
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
def test_a_table_that_changed_after_training_is_refused(table, run_command, quiet, changed, what):
    kept = (table / "run/dataset.json").read_bytes()
    write_table(table / "t.csv", **changed)
    try:
        status, _, err = run_command("eval", "--workdir", f"{table}/run")
        assert status == 2 and "is not what" in err and what in err
        with pytest.raises(UserError, match="t.csv is not what .*run was trained on"):
            train(of_table(table), table / "run", quiet)
        assert (table / "run/dataset.json").read_bytes() == kept
    finally:
        write_table(table / "t.csv")


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (("generate", "--prompt", "x"), "has a hybrid network; use `predict` for it."),
        (("eval", "--source", "code"), "--source is for language models"),
        (("predict", "missing.png"), "cannot read missing.png"),
        (("predict", __file__), "does not decode as an image"),
        (("predict", "photos.csv"), "photos.csv is a table, but this network takes pictures; give the picture files"),
        (("predict", str(Path(__file__).parent)), "tests/train is a directory; give the files in it, such as /"),
    ],
)
def test_commands_that_do_not_fit_the_run_are_refused(run, run_command, argv, sentence):
    status, _, err = run_command(argv[0], "--workdir", str(run[0]), *argv[1:])
    assert status == 2 and sentence in err


def test_seeds_updates_and_microbatches_each_have_their_own_dropout():
    setup = prepare(experiment(), Console(quiet=True))
    params, buffers = setup.program.make_parameters()
    batch = next(setup.train_batches())
    totals = setup.program.totals(batch)

    @jax.jit
    def loss(seed, update, microbatch):
        seeded, now = batch | {"seed": seed[None]}, {"update": update, "microbatch": microbatch}
        return setup.program.loss(params, buffers, seeded, totals, now)[0]

    numbers = np.int32([(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)])
    values = {float(loss(*each)) for each in numbers}
    assert len(values) == 4


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"objective": ObjectiveConfig(name="mse")}, "objective.name is mse, but digits asks for classes"),
        ({"model": dataclasses.replace(MODEL, height=30)}, "model.height is 30, but digits has 8; leave it out"),
        ({"dataset": DatasetConfig(name="digit")}, "neither a set"),
    ],
)
def test_what_does_not_fit_the_set_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare(experiment(**changes), Console(quiet=True))


def test_numbers_are_scored_in_the_units_of_the_data():
    dataset = types.SimpleNamespace(kind="numbers", scaling=Scaling(target_mean=(10.0,), target_deviation=(2.0,)))
    found = {"answer": np.float32([[0], [1], [2]]), "targets": np.float32([[0.5], [1], [3]])}
    expected = of_numbers(np.float32([[10], [12], [14]]), np.float32([[11], [12], [16]]))
    assert scores_of(found, dataset) == pytest.approx(expected) and expected["mae"] == pytest.approx(1)


def test_microbatches_share_the_penalty_and_batch_norm_statistics():
    objective = ObjectiveConfig(l1=1e-3, l2=1e-2)
    setup = prepare(experiment(objective=objective), Console(quiet=True))
    (params, buffers), batches = setup.program.make_parameters(), setup.train_batches()
    parts = [next(batches) for _ in range(2)]
    batches.close()
    both = setup.program.totals({name: np.stack([part[name] for part in parts]) for name in parts[0]})
    loss = jax.jit(
        lambda part, totals: setup.program.loss(params, buffers, part, totals, {"update": 0, "microbatch": 0})[1]
    )
    shares = [loss(part, both) for part in parts]
    np.testing.assert_allclose(
        sum(each["loss/penalty"] for each in shares), penalty(params, objective, decays), rtol=1e-5
    )
    np.testing.assert_allclose(shares[0]["loss/total"], shares[0]["loss/fit"] + shares[0]["loss/penalty"], rtol=1e-5)
    alone = loss(parts[0], setup.program.totals(parts[0]))["statistics"]
    for one, half in zip(jax.tree.leaves(alone), jax.tree.leaves(shares[0]["statistics"]), strict=True):
        np.testing.assert_allclose(half, one / 2, rtol=1e-4, atol=1e-6)
