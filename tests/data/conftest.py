"""Fixtures: a small corpus that every Python has, the topics of `help()`, as JSONL."""

import dataclasses

import pytest

from deepseek_jax.config import DataConfig
from deepseek_jax.data.pipeline import open_corpus
from tests.user_files import TOPICS, write_texts

VOCAB = 600
LENGTH = 32


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> DataConfig:
    """Two domains with half of the topics each, mixed 3 to 1."""
    directory = tmp_path_factory.mktemp("data")
    write_texts(directory / "even.jsonl", TOPICS[::2])
    write_texts(directory / "odd.jsonl", TOPICS[1::2])
    return DataConfig(
        source="mix",
        weights=f"{directory}/even.jsonl=3,{directory}/odd.jsonl=1",
        directory=str(directory / "cache"),
        sequence_length=LENGTH,
        held_out=0.1,
        fim_rate=0.25,
    )


@pytest.fixture(scope="session")
def corpus(data):
    return open_corpus(data, VOCAB)


@pytest.fixture(scope="session")
def plain(data):
    """The same corpus without fill-in-the-middle (FIM)."""
    return open_corpus(dataclasses.replace(data, fim_rate=0.0), VOCAB)
