"""Stored records are written in the order they come in, without keeping them in memory, and read by index."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from deepseek_jax.data import records
from deepseek_jax.data.pipeline import open_corpus
from deepseek_jax.data.records import RecordBuilder, batched_texts, open_dataset


class Numbers(RecordBuilder, skip_registration=True):
    """`count` records with a number and a text of `size` letters; every tenth is held out."""

    def __init__(self, count, size, **kwargs):
        self.count, self.size = count, size
        super().__init__(**kwargs)

    def features(self):
        return {"number": tfds.features.Scalar(np.int64), "text": tfds.features.Text()}

    def records(self):
        for number in range(self.count):
            yield "train" if number % 10 else "held_out", {"number": number, "text": "x" * self.size}


@pytest.fixture
def no_room(monkeypatch):
    """Makes tensorflow-datasets act as for more than 1 GB of records, which it would store with TensorFlow."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)


def test_shards_hold_the_records_in_order(no_room, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "SHARD_BYTES", 3000)
    Numbers(100, 100, data_dir=tmp_path).download_and_prepare()
    dataset = open_dataset(tmp_path)
    assert {name: split.num_shards for name, split in dataset.info.splits.items()} == {"train": 4, "held_out": 1}
    for split, numbers in ("train", [n for n in range(100) if n % 10]), ("held_out", list(range(0, 100, 10))):
        source = dataset.as_data_source(split)
        assert [record["number"] for record in source.__getitems__(range(len(numbers)))] == numbers
    files = sorted(file.name for file in tmp_path.glob("numbers/1.0.0/*"))
    shards = [f"numbers-train.array_record-{number:05}-of-00004" for number in range(4)]
    assert files == ["dataset_info.json", "features.json", "numbers-held_out.array_record-00000-of-00001", *shards]


def test_written_records_are_not_kept_in_memory(tmp_path):
    builder = Numbers(50, 1_000_000, data_dir=tmp_path)
    tracemalloc.start()
    builder.download_and_prepare()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_corpus_in_many_shards_is_the_same(no_room, monkeypatch, data, corpus, tmp_path):
    monkeypatch.setattr(records, "SHARD_BYTES", 10_000)
    again = open_corpus(dataclasses.replace(data, directory=str(tmp_path)), 600)
    assert [part.index for part in again.parts] == [part.index for part in corpus.parts]
    assert all(again.held_out_text(name) == corpus.held_out_text(name) for name in corpus.domains)
    assert again.parts[0].dataset.info.splits["train"].num_shards > 1


def test_batches_of_long_texts_are_small(tmp_path):
    for size, expected in (1_000_000, [17, 17, 11]), (1000, [45]):
        Numbers(50, size, data_dir=tmp_path / str(size)).download_and_prepare()
        batches = batched_texts(open_dataset(tmp_path / str(size)), "train", range(45))
        assert [len(texts) for texts in batches] == expected
