"""Flipped labels, outliers and empty records are found, and few false ones in a clean set."""

import dataclasses
import re

import numpy as np
import pytest

from deepseek_jax.data.quality.all_records import AllRecords, all_records
from deepseek_jax.data.quality.broken import broken
from deepseek_jax.data.quality.coverage import coverage
from deepseek_jax.data.quality.doubts import doubts
from deepseek_jax.data.quality.features import term_weights, vectors
from deepseek_jax.data.quality.outliers import outliers


@pytest.fixture(scope="module")
def seen(digits):
    records = all_records(digits)
    return records, vectors(records)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_labels_are_the_strongest_doubts(seen, seed):
    records, vectors_ND = seen
    rng = np.random.default_rng(seed)
    (train,) = np.nonzero(records.train)
    flipped = rng.choice(train, len(train) // 20, replace=False)
    labels = records.groups.copy()
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, len(flipped))) % 10
    finding = doubts(dataclasses.replace(records, groups=labels), vectors_ND)
    top = [place for place, _ in finding.examples[""][: len(flipped)]]
    assert np.isin(flipped, top).mean() >= 0.9
    assert np.isin(flipped, list(finding.doubtful)).mean() >= 0.8
    assert len(finding.doubtful) <= 1.2 * len(flipped)


def test_few_clean_labels_are_doubted(seen):
    assert len(doubts(*seen).doubtful) < 5


def test_doubts_of_a_model_that_learns_nothing_exclude_no_record():
    """Labels are random.  Nearly half of the records contradict a model that learned nothing, which means nothing."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(400, 5)).astype(np.float32), rng.integers(0, 2, 400)
    records = AllRecords("chance", "table", np.arange(400), np.full(400, "train"), inputs, labels, ("a", "b"))
    finding = doubts(records, vectors(records))
    assert len(finding.doubtful) > 100 and not finding.certain
    assert re.search(
        "; it answers [45].% right, and 5.% are of the largest class: its doubts say little", finding.sentence
    )
    learned = dataclasses.replace(records, groups=(inputs[:, 0] > 0).astype(int))
    assert doubts(learned, vectors(learned)).certain


def test_held_out_labels_influence_no_doubt():
    inputs = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    splits, labels = np.repeat(["train", "test"], [300, 100]), (inputs[:, 0] > 0).astype(int)
    labels[1:5] ^= 1
    records = AllRecords("half", "table", np.arange(400), splits, inputs, labels, ("a", "b"))
    finding = doubts(records, vectors(records))
    assert set(range(1, 5)) <= set(finding.doubtful) <= set(range(300))
    assert " of 300 training records" in finding.sentence
    wrong = dataclasses.replace(records, groups=np.where(splits == "test", 1 - labels, labels))
    assert doubts(wrong, vectors(wrong)) == finding


def test_classes_too_small_to_learn_are_not_judged(seen):
    records, vectors_ND = seen
    rare = np.flatnonzero(records.train & (records.groups == 3))
    few = np.isin(np.arange(len(records.ids)), rare[:-5])
    fewer = {name: getattr(records, name)[~few] for name in ("ids", "splits", "inputs", "groups")}
    finding = doubts(dataclasses.replace(records, **fewer), vectors_ND[~few])
    assert "1 classes of fewer than 10 training records were not checked" in finding.sentence


@pytest.mark.parametrize("count", [10, 16, 32])
def test_wrong_labels_are_found_with_fewer_records_than_dimensions(count):
    labels = np.repeat([0, 1], count)
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(2 * count, 6, 6, 1)) * 0.05 + 0.5).astype(np.float32)
    inputs[:count, :2] = 1
    inputs[count:, 4:] = 1
    labels[[0, -1]] = 1, 0
    records = AllRecords("few", "image", np.arange(2 * count), np.full(2 * count, "train"), inputs, labels, ("a", "b"))
    vectors_ND = vectors(records)
    assert vectors_ND.shape[1] >= count * 4 // 5 - 1
    assert sorted(doubts(records, vectors_ND).doubtful) == [0, 2 * count - 1]


def test_noise_pictures_are_outliers(planted):
    rng = np.random.default_rng(0)
    strange = np.concatenate([rng.random((10, 8, 8, 1)), np.tile(np.eye(8)[None, ..., None], (1, 1, 1, 1))])
    dataset, ids = planted("train", inputs=strange.astype(np.float32), labels=np.zeros(11, np.int32))
    records = all_records(dataset)
    finding = outliers(records, vectors(records))
    assert set(ids[:10]) <= set(records.ids[list(finding.doubtful)].tolist())
    assert len(finding.doubtful) < 20 and not finding.certain


def test_blank_pictures_are_broken(planted):
    blank = np.zeros((2, 8, 8, 1), np.float32)
    dataset, ids = planted("train", inputs=blank, labels=np.zeros(2, np.int32))
    records = all_records(dataset)
    assert records.ids[list(broken(records).doubtful)].tolist() == ids


def test_texts_without_letters_or_badly_decoded_are_broken():
    texts = ["a good text"] * 20 + [" -- ", "caf\ufffd", "____"]
    records = AllRecords("t", "text", np.arange(23), np.array(["train"] * 23), np.array(texts, object), None, ())
    nothing = "no letter or digit"
    assert broken(records).doubtful == {20: nothing, 21: "characters lost in decoding", 22: nothing}


def test_coverage_by_class(seen):
    """Only a class without training records is not covered."""
    records, vectors_ND = seen
    keep = ~(records.train & (records.groups == 4))
    fewer = {name: getattr(records, name)[keep] for name in ("ids", "splits", "inputs", "groups")}
    rows = coverage(dataclasses.replace(records, **fewer), vectors_ND[keep]).rows
    shares = {name: float(share.rstrip("%")) for name, _, share in rows}
    assert shares.pop("4") < 50 and min(shares.values()) > 85


def test_texts_of_punctuation_alone_have_terms():
    texts = np.array(["+ - +", "* / *"] * 15, object)
    weights = term_weights(texts, np.full(len(texts), True)).toarray()
    assert weights[0] @ weights[2] == pytest.approx(1) and weights[0] @ weights[1] == 0


def test_a_text_in_another_language_is_an_outlier():
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(40)])
    texts = [" ".join(rng.choice(words, 20)) for _ in range(200)] + ["Au commencement la terre etait informe et vide"]
    splits = np.array(["train"] * 200 + ["test"])
    records = AllRecords("t", "text", np.arange(201), splits, np.array(texts, object), None, ())
    assert list(outliers(records, vectors(records)).doubtful)[0] == 200
