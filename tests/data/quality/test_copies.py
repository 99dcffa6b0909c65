"""Planted copies are found within and across splits, and records that are merely similar are not."""

import json

import numpy as np
import pytest

from deepseek_jax.data.quality import near_texts
from deepseek_jax.data.quality.all_records import AllRecords, all_records
from deepseek_jax.data.quality.copies import find_copies
from deepseek_jax.data.quality.duplicates import duplicates
from deepseek_jax.data.quality.leaks import leaks
from deepseek_jax.data.quality.near_vectors import near_pairs
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.data.sets.registry import open_set

COUNT = 60
WORDS = np.array("the of a request that to service returns name and key an identifier list value for is in by".split())


def noisy(images, deviation=0.03):
    return np.clip(images + np.random.default_rng(0).normal(0, deviation, images.shape), 0, 1).astype(np.float32)


def copied(digits, split, change):
    chosen = np.random.default_rng(1).choice(len(digits.splits[split]["ids"]), COUNT, replace=False)
    return {"inputs": change(digits.splits[split]["inputs"][chosen]), "labels": digits.splits[split]["labels"][chosen]}


@pytest.mark.parametrize(("change", "kind"), [(np.copy, "equal"), (noisy, "nearly equal")])
def test_duplicate_pictures_are_found(digits, planted, change, kind):
    dataset, ids = planted("train", **copied(digits, "train", change))
    records = all_records(dataset)
    found = duplicates(records, find_copies(records)).doubtful
    reasons = {records.ids[place]: reason for place, reason in found.items()}
    assert all(reasons[number].startswith(kind) for number in ids)
    assert len(reasons) < COUNT + 10  # of 1,797 real digits


@pytest.mark.parametrize("change", [np.copy, noisy])
def test_training_copies_of_test_pictures_are_found(digits, planted, change):
    """The training copies are listed, not the test records that they duplicate."""
    dataset, ids = planted("train", **copied(digits, "test", change))
    records = all_records(dataset)
    listed = leaks(records, find_copies(records)).doubtful
    assert set(ids) <= set(records.ids[list(listed)].tolist())
    assert records.train[list(listed)].all() and len(listed) < COUNT + 10


def test_copies_with_different_labels_are_reported(digits, planted):
    first = {name: digits.splits["train"][name][:1] for name in ("inputs", "labels")}
    dataset, _ = planted("train", inputs=first["inputs"], labels=(first["labels"] + 1) % 10)
    records = all_records(dataset)
    assert "1 families of copies carry different labels" in duplicates(records, find_copies(records)).sentence


def test_constant_windows_of_a_series_are_not_copies():
    windows = np.random.default_rng(0).normal(size=(30, 8, 1)).astype(np.float32)
    windows[5:20] = 0
    windows[29] = windows[3]
    records = AllRecords("rain", "series", np.arange(30), np.array(["train"] * 20 + ["test"] * 10), windows, None, ())
    found = find_copies(records)
    assert list(leaks(records, found).doubtful) == [3] and not duplicates(records, found).doubtful


def texts_of(count: int, words: int = 25) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"{word}{rng.integers(50)}" for word in rng.choice(WORDS, words)) for _ in range(count)]


def edited(text: str, rng) -> str:
    """The text with one word exchanged, in upper case, and with other punctuation."""
    words = text.split()
    words[rng.integers(len(words))] = "changed"
    return ", ".join(words).upper() + "."


def records_of(texts, splits) -> AllRecords:
    objects = np.array([*texts, None], object)[:-1]
    return AllRecords("texts", "text", np.arange(len(texts)), np.array(splits), objects, None, ())


@pytest.mark.parametrize("change", [lambda text, rng: "  " + text.title(), edited])
def test_copies_of_texts_are_found(change):
    """100 training texts, 30 of which have a copy in training and 30 in the test split."""
    texts, rng = texts_of(100), np.random.default_rng(1)
    copies = [change(text, rng) for text in texts[:60]]
    records = records_of(texts + copies, ["train"] * 130 + ["test"] * 30)
    found = find_copies(records)
    assert sorted(duplicates(records, found).doubtful) == list(range(100, 130))
    assert sorted(leaks(records, found).doubtful) == list(range(30, 60))


def test_a_leak_names_the_equal_copy_rather_than_a_near_one():
    texts = texts_of(24)
    near, equal = edited(texts[0], np.random.default_rng(1)), texts[0]
    records = records_of([*texts, near, equal], ["train"] * 24 + ["test"] * 2)
    assert leaks(records, find_copies(records)).doubtful == {0: "equal to 25 of test"}


def test_texts_of_punctuation_alone_are_compared_by_it():
    texts = np.array(["+-+-+-+-", "*/*/*/*/", "+-+-+-+-+", "+-+-+-+-"], object)
    assert list(near_texts.near_pairs(texts)) == [(0, 2), (0, 3)]  # a pair for each text that has earlier copies


@pytest.mark.parametrize("more, near", [(20, True), (21, False)])
def test_texts_are_near_copies_from_four_fifths_of_their_shingles_on(more, near):
    letters = "".join(np.random.default_rng(0).choice([*"abcdefghijklmnopqrstuvwxyz0123456789"], 84 + more))
    one, other = letters[:84], letters
    assert len(near_texts.shingles(one)) == 80 and len(near_texts.shingles(other)) == 80 + more
    assert list(near_texts.near_pairs(np.array([one, other], object))) == [(0, 1)] * near


def test_similarity_of_texts_is_jaccards_over_shingles():
    a, b = (near_texts.shingles(text) for text in ("Abc, defg", "abc defgh"))
    assert len(a) == 4 and near_texts.jaccard(a, b) == 4 / 5
    assert len(near_texts.shingles("?")) == 1


def test_rows_of_few_columns_are_near_only_when_copied():
    """In two dimensions the nearest neighbour is often far nearer than the tenth, by chance alone."""
    rows = np.random.default_rng(0).normal(size=(300, 2))
    assert not list(near_pairs(rows)) and not list(near_pairs(rows[:1]))
    assert list(near_pairs(np.concatenate([rows, rows[7:8] + 1e-7])))[0] == (7, 300)


def test_rows_are_near_only_by_the_distances_around_both():
    """Row 0 has its neighbours at 1, and row 1 on the other side at 1.22: their distance of 0.45 is less than 0.4 of
    the latter alone."""
    rows = np.zeros((12, 16))
    rows[1, :10], rows[2:, :10] = -0.45 / np.sqrt(10), np.eye(10)
    assert not list(near_pairs(rows))
    rows[1] *= 0.39 / 0.45
    assert (0, 1) in near_pairs(rows)


def test_texts_that_are_equal_in_the_tokens_a_model_sees_are_found(tmp_path):
    """Ten openings, each shared by four texts.  A model that reads only the openings cannot tell these apart, though as
    whole texts they are not similar."""
    openings, rests = texts_of(10, 40), texts_of(80, 150)[40:]
    lines = [json.dumps({"text": f"{openings[n % 10]} {rest}", "kind": n % 2}) for n, rest in enumerate(rests)]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    settings = {"columns": ColumnsConfig(text="text", label="kind"), "directory": str(tmp_path), "vocab_size": 400}
    for length, repeated in ((32, True), (4096, False)):
        records = all_records(open_set(DatasetConfig(name=str(tmp_path / "long.jsonl"), length=length, **settings)))
        copies = find_copies(records)
        leaked, repeats = leaks(records, copies), duplicates(records, copies)
        opening = records.ids % 10
        held_out = np.isin(opening, opening[~records.train]) & records.train
        assert sorted(leaked.doubtful) == (np.flatnonzero(held_out).tolist() if repeated else [])
        more = f"; {held_out.sum()} more in their first 32 tokens (dataset.length), all that a model sees"
        assert leaked.sentence == "0 training records are also in val or test exactly, 0 nearly" + more * repeated
        assert ("more in their first 32 tokens" in repeats.sentence) == repeated
        assert all(why.startswith("equal in its first 32 tokens to") for why in leaked.doubtful.values())
