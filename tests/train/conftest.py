"""Fixtures of the tests of training."""

import functools

import pytest

from deepseek_jax.train import program_cache
from deepseek_jax.train.loop import train


@pytest.fixture(scope="module")
def train_alike():
    """As `train`, with the compiled step and score of the module's earlier runs of an equal experiment.

    Of a run that only resumes, or differs in what happens around its steps, tracing would take half of the time.
    """
    yield functools.partial(train, programs=program_cache.cached)
    program_cache._cache.clear()
