"""The hybrid network in the training loop: it learns, resumes, is scored, and predicts as it was scored."""

import dataclasses
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax.config import (
    CheckpointConfig,
    TrainConfig,
)
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.scaling import Scaling
from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid.config import AttentionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.predict.predict import load_predictor
from deepseek_jax.tasks.config import ObjectiveConfig
from deepseek_jax.tasks.objectives import penalty
from deepseek_jax.tasks.scores import NAMES, of_boxes, of_numbers
from deepseek_jax.train import loop
from deepseek_jax.train.checkpoints import checkpoint
from deepseek_jax.train.loop import train
from deepseek_jax.train.optim.optimizer import decays
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.supervised.program import supervised_program
from deepseek_jax.train.supervised.task import SupervisedTask, scores_of
from tests.train.digits import MODEL, experiment


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


def test_a_failure_after_the_last_step_loses_no_step(tmp_path, quiet, monkeypatch, train_alike):
    few = experiment(train=TrainConfig(steps=3, batch_size=64), checkpoint=CheckpointConfig())

    def fail(*_):
        raise RuntimeError("baselines")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="baselines"):
        patched.setattr(SupervisedTask, "baselines", fail)
        train_alike(few, tmp_path, quiet)
    monkeypatch.setattr(loop, "_take_steps", fail)  # must not be called: all steps were taken
    scores = train_alike(few, tmp_path, quiet)
    assert scores["final/loss"] > 0 and "final/logistic regression, accuracy" in scores
    assert train_alike(few, tmp_path, quiet) == scores


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


def test_a_network_that_would_see_only_the_last_row_is_refused(tmp_path):
    blind = HybridConfig(recurrent=RecurrentConfig("none"), attention=AttentionConfig(0))
    with pytest.raises(UserError, match="last of 4 steps .* set model.readout to mean or"):
        train(experiment(model=blind), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
