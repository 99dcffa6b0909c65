"""Fixtures: a test that asks for `golden` or `every_golden` runs once for each tiny model of tests/goldens."""

import pytest

from tests.numerics.golden_models import GENERATIONS, VARIANTS, Golden, load, names


@pytest.fixture(scope="session", params=[*GENERATIONS, *VARIANTS])
def every_golden(request) -> Golden:
    return load(request.param)


@pytest.fixture(scope="session", params=names())
def golden(request) -> Golden:
    """Variants are slow: the tests of logits and gradients (`every_golden`) show what they change."""
    return load(request.param)
