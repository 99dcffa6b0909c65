"""Plugins of experiments/parts are as unknown to the modules after a test module as to those before it."""

import sys

import pytest

from deepseek_jax.data.corpora import CORPORA
from deepseek_jax.models import checks
from deepseek_jax.part_settings import SETTINGS


@pytest.fixture(scope="module", autouse=True)
def forget_parts():
    tables = CORPORA, SETTINGS, checks.ADDED_BY
    before, modules = [dict(table) for table in tables], set(sys.modules)
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith("experiments.parts."):
            del sys.modules[name]
