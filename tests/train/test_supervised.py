"""The hybrid network on the loop: it learns, resumes, is scored, and answers on new inputs as it did in training."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax.config import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    OptimizerConfig,
    SupervisedExperiment,
    TrainConfig,
)
from deepseek_jax.data.augment.config import AugmentConfig, ImageAugmentConfig
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.errors import UserError
from deepseek_jax.infer.predict import load_predictor
from deepseek_jax.models.hybrid_config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.tasks.config import ObjectiveConfig
from deepseek_jax.tasks.scores import NAMES, of_boxes, of_numbers
from deepseek_jax.train import loop
from deepseek_jax.train.loop import train
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.supervised import SupervisedTask

MODEL = HybridConfig(
    convolution=ConvolutionConfig(filters=(16,), norm="batch"),
    recurrent=RecurrentConfig(hidden_size=32),
    attention=AttentionConfig(num_heads=2, key_dim=16),
    dropout=0.1,
)


def experiment(**changes) -> SupervisedExperiment:
    """scikit-learn's digits."""
    return dataclasses.replace(
        SupervisedExperiment(
            model=MODEL,
            dataset=DatasetConfig(name="digits"),
            augment=AugmentConfig(image=ImageAugmentConfig(rotate=5.0)),
            optimizer=OptimizerConfig(peak_lr=1e-2),
            train=TrainConfig(steps=120, batch_size=64, microbatch_size=32),
            eval=EvalConfig(every=60, batch_size=128),
            checkpoint=CheckpointConfig(every=25),
            log=LogConfig(every=10, tensorboard=False),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    return Console(file=(tmp_path_factory.mktemp("log") / "log").open("w"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, quiet):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(experiment(), workdir, quiet)


def test_digits_are_learned_and_stand_beside_logistic_regression(run):
    _, scores = run
    assert scores["final/accuracy"] > 0.9 and scores["final/macro_f1"] > 0.9
    assert scores["final/logistic regression, accuracy"] > 0.9
    assert scores["records_per_second"] > 0


def test_the_run_directory_shows_what_is_confused(run):
    workdir, _ = run
    assert (workdir / "pictures/confusion.png").read_bytes().startswith(b"\x89PNG")
    page = (workdir / "report.html").read_text()
    assert "Confusion" in page and "finished, best held-out loss" in page


def test_an_interrupted_run_goes_on_bit_for_bit(run, tmp_path, quiet, monkeypatch):
    """Dropout, augmentation and the averages of batch norms included."""
    workdir, scores = run
    from deepseek_jax.train import checkpoint

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


def test_what_fails_after_the_last_step_loses_no_step(tmp_path, quiet, monkeypatch):
    few = experiment(train=TrainConfig(steps=3, batch_size=64), checkpoint=CheckpointConfig())

    def fail(*_):
        raise RuntimeError("rivals")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="rivals"):
        patched.setattr(SupervisedTask, "rivals", fail)
        train(few, tmp_path, quiet)
    monkeypatch.setattr(loop, "_take_steps", fail)  # there is nothing left to train
    scores = train(few, tmp_path, quiet)
    assert scores["final/loss"] > 0 and "final/logistic regression, accuracy" in scores
    assert train(few, tmp_path, quiet) == scores


def test_without_a_test_split_a_run_ends_unscored(tmp_path, quiet):
    few = experiment(train=TrainConfig(steps=2, batch_size=64), dataset=DatasetConfig(name="digits", test=0.0))
    assert not any(name.startswith("final/") for name in train(few, tmp_path, quiet))


def test_every_measure_has_its_name(run):
    workdir, _ = run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = {name.removeprefix("val/") for row in rows for name in row if name.startswith("val/")}
    assert names == {*prepare(experiment(), Console(quiet=True)).task.measured("val")}
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


def test_eval_and_predict_from_the_command_line(run, tmp_path, deepseek_jax):
    from PIL import Image
    from sklearn.datasets import load_digits

    workdir, scores = run
    status, out, _ = deepseek_jax("eval", "--workdir", str(workdir))
    assert status == 0 and f"{scores['final/accuracy']:.5g}" in out
    picture = tmp_path / "digit.png"
    Image.fromarray((load_digits().images[0] * 255 / 16).astype(np.uint8)).save(picture)
    status, out, _ = deepseek_jax("predict", "--workdir", str(workdir), str(picture))
    assert status == 0 and json.loads(out)["class"] == str(load_digits().target[0])


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (("generate", "--prompt", "x"), "holds no language model"),
        (("eval", "--source", "code"), "--source is for language models"),
        (("predict", "missing.png"), "cannot read missing.png"),
        (("predict", __file__), "does not decode as an image"),
    ],
)
def test_what_does_not_fit_the_run_is_said(run, deepseek_jax, argv, sentence):
    status, _, err = deepseek_jax(argv[0], "--workdir", str(run[0]), *argv[1:])
    assert status == 2 and sentence in err


def test_seeds_updates_and_microbatches_have_dropout_of_their_own():
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
