"""Fixtures: a small corpus that every Python has, the topics of `help()`, as JSONL."""

import dataclasses
import json
from pydoc_data import topics

import pytest

from deepseek_jax.config import DataConfig
from deepseek_jax.data.pipeline import open_corpus

VOCAB = 600
LENGTH = 32


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> DataConfig:
    """Two domains with half of the topics each, mixed 3 to 1."""
    directory = tmp_path_factory.mktemp("data")
    texts = [text for _, text in sorted(topics.topics.items())]
    for name, part in ("even", texts[::2]), ("odd", texts[1::2]):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
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
