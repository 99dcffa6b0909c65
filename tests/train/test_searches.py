"""Searches before a run: `find-lr` for a learning rate and `tune-batch` for a batch size."""

import dataclasses
import re
import types

import numpy as np
import pytest
from rich.console import Console

from deepseek_jax.config import OptimizerConfig, SupervisedExperiment, TrainConfig
from deepseek_jax.data.augment.config import AugmentConfig
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.tasks.config import ObjectiveConfig
from deepseek_jax.train import batch_sizes, lr_range
from deepseek_jax.train.batch_sizes import trials
from deepseek_jax.train.lr_range import range_test, steepest
from deepseek_jax.train.supervised.task import SupervisedTask
from tests.train.digits import experiment
from tests.user_files import write_config

NO_CONVOLUTION = ConvolutionConfig(filters=())


def test_the_steepest_fall_before_the_minimum_is_suggested():
    rates = np.logspace(-5, 0, 51)
    losses = 2 - np.tanh(2 * (np.log10(rates) + 3)) + np.where(rates > 0.1, rates * 50, 0)
    assert steepest(rates, losses) == pytest.approx(1e-3)


def test_the_noise_of_the_first_batches_suggests_nothing():
    """The smoothed loss of the first batch differs from that of two by more than ten steps of learning make."""
    rates = np.logspace(-5, 0, 51)
    losses = 2 - np.tanh(2 * (np.log10(rates) + 3))
    losses[0] += 0.9
    assert steepest(rates, losses) == pytest.approx(1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_noise_of_later_batches_suggests_nothing(seed):
    """Between two steps noise is steeper than learning: its steepest fall may be where the rate is too low to learn."""
    rates = np.logspace(-6, 0, 200)
    noise = np.random.default_rng(seed).normal(0, 0.5, len(rates))
    mean, losses = 0.0, []
    for step, loss in enumerate(2 - np.tanh(2 * (np.log10(rates) + 2.5)) + noise, start=1):
        mean = lr_range.MEMORY * mean + (1 - lr_range.MEMORY) * loss
        losses.append(mean / (1 - lr_range.MEMORY**step))
    assert 1e-3 < steepest(rates, np.array(losses)) < 3e-2


def test_a_loss_that_never_falls_is_refused():
    with pytest.raises(UserError, match="never fell"):
        steepest(np.logspace(-3, 0, 10), np.arange(10.0))


def test_range_test_of_a_real_network_stops_where_it_diverges():
    digits = dataclasses.replace(experiment(), optimizer=OptimizerConfig(name="sgd", clip_norm=0.0, weight_decay=0.0))
    found = range_test(digits, low=1e-3, high=1e4, steps=70, console=Console(quiet=True))
    assert len(found.rates) < 70 and found.rates[0] == pytest.approx(1e-3)
    assert 1e-3 < found.suggested < 10
    assert found.picture().startswith(b"\x89PNG")
    points = found.points()
    assert len(points) == 12 and points[0] == (found.rates[0], found.losses[0])
    assert points[-1] == (found.rates[-1], found.losses[-1])


def test_the_range_ends_at_one_and_a_half_times_the_best_loss(monkeypatch):
    """The running mean falls to 2.84 in the fifth step, and rises to 4.37 in the sixth."""
    monkeypatch.setattr(lr_range, "prepare", lambda *_: types.SimpleNamespace(task=SupervisedTask))
    losses = 5.0, 4.0, 2.0, 2.0, 2.0, 10.0, 10.0, 10.0
    rows = [{"loss/fit": loss, "learning_rate": 2.0**n, "skipped": 0} for n, loss in enumerate(losses)]
    monkeypatch.setattr(lr_range, "_steps", lambda *_: rows)
    found = range_test(experiment(), 1.0, 128.0, 8, Console(quiet=True))
    assert found.rates.tolist() == [1, 2, 4, 8, 16, 32]
    assert found.losses[-2:] == pytest.approx([2.84, 4.37], abs=0.005)


def test_the_range_ends_at_a_gradient_that_is_not_finite(monkeypatch):
    """Such a step is dropped, so its rate would appear twice."""
    monkeypatch.setattr(lr_range, "prepare", lambda *_: types.SimpleNamespace(task=SupervisedTask))
    losses = [(5.0, 0), (4.0, 0), (2.0, 0), (2.0, 0), (1.9, 1), (1.8, 1)]
    rows = [{"loss/fit": loss, "learning_rate": 2.0**n, "skipped": skipped} for n, (loss, skipped) in enumerate(losses)]
    monkeypatch.setattr(lr_range, "_steps", lambda *_: rows)
    assert range_test(experiment(), 1.0, 32.0, 6, Console(quiet=True)).rates.tolist() == [1, 2, 4, 8]


DIABETES = SupervisedExperiment(
    dataset=DatasetConfig(name="diabetes"),
    model=HybridConfig(recurrent=RecurrentConfig("none"), attention=AttentionConfig(0), convolution=NO_CONVOLUTION),
    objective=ObjectiveConfig("mse"),
    train=TrainConfig(batch_size=128),
)


def test_find_lr_writes_a_picture_only_on_request(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "mine.py", DIABETES)
    argv = "find-lr", "--config", "mine.py", "--steps", "60", "--low", "1e-3", "--high", "1"
    status, out, _ = run_command(*argv)
    assert status == 0 and [path.name for path in tmp_path.glob("*.png")] == []
    assert re.search(r"^rate +0\.001 +loss \d+\.\d{4}$", out, re.M) and len(re.findall("^rate ", out, re.M)) <= 12
    assert out.split("rate ")[-1].split()[0] == "1"  # the last rate tried is --high
    assert re.search(r"^--config\.optimizer\.peak_lr=\S+$", out, re.M)
    status, out, _ = run_command(*argv, "--picture", "lr.png")
    assert status == 0 and out.endswith("   (see the curve in lr.png)\n")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")


def test_batches_double_until_one_does_not_fit():
    small = experiment(
        dataset=DIABETES.dataset, augment=AugmentConfig(), model=DIABETES.model, objective=DIABETES.objective
    )
    limit = 3_000
    found = list(trials(small, limit))
    assert [trial.batch_size for trial in found] == [2**power for power in range(len(found))]
    assert all(trial.bytes <= limit and trial.speed > 0 for trial in found[:-1])
    assert found[-1].bytes > limit and found[-1].seconds is None


@pytest.mark.parametrize(
    "room, said", [(3_000, "largest that fits: "), (10**12, "largest tried, larger ones may fit: ")]
)
def test_tune_batch_tells_a_limit_from_the_end_of_its_trials(run_command, tmp_path, monkeypatch, room, said):
    monkeypatch.setattr(batch_sizes, "available_bytes", lambda: room)
    monkeypatch.setattr(batch_sizes, "MOST_DOUBLINGS", 16 if room == 3_000 else 2)
    write_config(tmp_path / "mine.py", DIABETES)
    status, out, _ = run_command("tune-batch", "--config", str(tmp_path / "mine.py"))
    assert status == 0 and out.splitlines()[-1].startswith(said)
    assert ("does not fit" in out) == (room == 3_000)
