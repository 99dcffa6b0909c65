"""Searches before a run: a learning rate, a batch size."""

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from deepseek_jax.config import OptimizerConfig
from deepseek_jax.data.augment.config import AugmentConfig
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid_config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.tasks.config import ObjectiveConfig
from deepseek_jax.train.batch_sizes import trials
from deepseek_jax.train.lr_range import range_test, steepest
from tests.train.test_supervised import experiment

NO_CONVOLUTION = ConvolutionConfig(filters=())


def test_the_steepest_fall_before_the_minimum_is_suggested():
    rates = np.logspace(-5, 0, 51)
    losses = 2 - np.tanh(2 * (np.log10(rates) + 3)) + np.where(rates > 0.1, rates * 50, 0)
    assert steepest(rates, losses) == pytest.approx(1e-3)


def test_a_loss_that_never_falls_is_said():
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


def test_batches_double_until_one_does_not_fit():
    small = experiment(
        dataset=DatasetConfig(name="diabetes"),
        augment=AugmentConfig(),
        model=HybridConfig(recurrent=RecurrentConfig("none"), attention=AttentionConfig(0), convolution=NO_CONVOLUTION),
        objective=ObjectiveConfig("mse"),
    )
    limit = 3_000
    found = list(trials(small, limit))
    assert [trial.batch_size for trial in found] == [2**power for power in range(len(found))]
    assert all(trial.bytes <= limit and trial.speed > 0 for trial in found[:-1])
    assert found[-1].bytes > limit and found[-1].seconds is None
