"""Plugins of experiments/parts are as unknown to the modules after a test module as to those before it."""

import pytest

from tests.added_parts import forgotten_after


@pytest.fixture(scope="module", autouse=True)
def forget_parts():
    with forgotten_after(("experiments.parts.",)):
        yield
