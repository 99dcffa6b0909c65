"""Batches of labelled sets: they do not depend on where a run resumes or the number of processes; class balancing and
augmentation."""

import dataclasses
import json
import types

import numpy as np
import pytest

from deepseek_jax.data import cache
from deepseek_jax.data.augment.config import AugmentConfig, ImageAugmentConfig
from deepseek_jax.data.sets.balance import class_weights, epoch_order, partners
from deepseek_jax.data.sets.batches import Order, held_out_batches, train_batches
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.registry import open_set
from deepseek_jax.data.sets.vocabulary import encode
from deepseek_jax.errors import UserError
from tests.user_files import write_csv

STRONG = AugmentConfig(
    image=ImageAugmentConfig(rotate=20, crop=0.2, flip=0.5, noise=0.1, cutout=0.3, mixup=0.5, cutmix=1)
)


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def same(first, second):
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def test_shapes_and_labels(digits):
    batch = take(train_batches(digits, 16, seed=0), 1)[0]
    assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
        "inputs": ((16, 8, 8, 1), "float32"),
        "labels": ((16, 10), "float32"),
        "weights": ((16,), "float32"),
        "seed": ((16,), "int32"),
    }
    assert (batch["labels"].sum(1) == 1).all() and (batch["weights"] == 1).all()


def test_an_epoch_shows_each_record_once_in_its_own_order(digits):
    order = Order(digits, seed=0)
    E = order.places_per_epoch
    first, second = order[0:E], order[E : 2 * E]
    assert E == len(digits.splits["train"]["ids"])
    assert sorted(first[:, 0]) == sorted(second[:, 0]) == list(range(E)) and (first[:, 0] != second[:, 0]).any()
    assert set(first[:, 1]) == {0} and set(second[:, 1]) == {1} and not first[:, 2].any()
    assert (Order(digits, seed=1)[0:E] != first).any()


@pytest.mark.parametrize("augment", [AugmentConfig(), STRONG])
def test_set_batches_resume_at_any_position_across_epochs(digits, augment):
    per_epoch = len(digits.splits["train"]["ids"]) // 16
    whole = take(train_batches(digits, 16, seed=3, augment=augment, start=per_epoch - 2), 5)
    for position in range(3):
        first = train_batches(digits, 16, seed=3, augment=augment, start=per_epoch - 2)
        take(first, position)
        state = json.loads(json.dumps(first.state()))
        second = train_batches(digits, 16, seed=3, augment=augment)
        next(second)
        second.restore(state)
        assert all(map(same, take(second, 2), whole[position : position + 2]))


def test_partners_in_mixing_are_augmented_too(opened, uneven):
    """All pictures are equal and mirrored, so that their mixtures are equal as well."""
    uneven.records["inputs"][:] = np.linspace(0, 1, 4)[:, None]
    mirrored = AugmentConfig(image=ImageAugmentConfig(flip=1.0, mixup=1.0))
    inputs = next(train_batches(opened(uneven), 16, seed=0, augment=mirrored))["inputs"]
    np.testing.assert_allclose(inputs, np.broadcast_to(inputs[:1], inputs.shape), atol=1e-5)
    assert inputs[0, 0, 0] > inputs[0, 0, 3]


def test_runs_of_versions_with_another_default_thesaurus_can_be_resumed(digits):
    then = repr(AugmentConfig()).replace("thesaurus='moby'", "thesaurus='auto'")
    state = {"position": 2, "fingerprint": cache.digest(digits.fingerprint, then, "none", 3, 16)}
    train_batches(digits, 16, seed=3, augment=AugmentConfig()).restore(state)


def test_processes_share_one_order(digits):
    whole = take(train_batches(digits, 12, seed=0, augment=STRONG), 3)
    for processes in (2, 4):
        for process in range(processes):
            mine = take(train_batches(digits, 12, 0, range(process, 12, processes), augment=STRONG), 3)
            for step, batch in enumerate(whole):
                assert same(mine[step], {name: values[process::processes] for name, values in batch.items()})


def test_records_do_not_depend_on_the_batch_size(digits):
    wide = next(train_batches(digits, 24, seed=0, augment=STRONG))
    narrow = take(train_batches(digits, 8, seed=0, augment=STRONG), 3)
    assert same(wide, {name: np.concatenate([batch[name] for batch in narrow]) for name in wide})


def test_resuming_on_another_set_or_settings_is_refused(digits, config):
    state = train_batches(digits, 16, seed=0).state()
    other_split = open_set(dataclasses.replace(config, seed=1))
    for other in (
        train_batches(digits, 16, seed=1),
        train_batches(digits, 8, seed=0),
        train_batches(digits, 16, seed=0, augment=STRONG),
        train_batches(other_split, 16, seed=0),
        train_batches(dataclasses.replace(digits, balance="weights"), 16, seed=0),
    ):
        with pytest.raises(UserError, match="other data"):
            other.restore(state)


def test_held_out_records_are_read_once_and_padded_with_weight_zero(digits):
    records = digits.splits["val"]
    batches = list(held_out_batches(digits, "val", 48))
    counted = np.concatenate([batch["weights"] for batch in batches])
    inputs = np.concatenate([batch["inputs"] for batch in batches])
    assert counted.sum() == len(records["ids"]) == 179 and len(counted) == 192
    assert np.allclose(inputs[counted > 0], digits.scaling.inputs(records["inputs"]))
    assert (np.concatenate([b["labels"] for b in batches])[counted > 0].argmax(1) == records["labels"]).all()
    halves = [list(held_out_batches(digits, "val", 48, range(process, 48, 2))) for process in (0, 1)]
    assert all((halves[1][step]["inputs"] == batch["inputs"][1::2]).all() for step, batch in enumerate(batches))


def test_numbers_are_standardised(config):
    dataset = open_set(DatasetConfig(name="diabetes"))
    targets = np.concatenate([batch["targets"] for batch in take(train_batches(dataset, 31, seed=0), 10)])
    assert len(targets) == 310 and abs(targets.mean()) < 1e-5 and abs(targets.std() - 1) < 1e-5
    batch = next(held_out_batches(dataset, "test", 88))
    assert np.allclose(dataset.scaling.undo_targets(batch["targets"]), dataset.splits["test"]["targets"], rtol=1e-5)
    series = next(held_out_batches(open_set(DatasetConfig(name="co2")), "test", 8))
    assert (
        series["inputs"].shape == (8, 36, 1) and (series["lengths"] == 36).all() and series["targets"].shape == (8, 12)
    )


def test_balance_by_weights_gives_classes_equal_total_weight(opened, uneven):
    dataset = opened(uneven, balance="weights")
    batches = take(train_batches(dataset, 10, seed=0), 7)  # 70 records: one epoch
    of_class = sum((batch["labels"] * batch["weights"][:, None]).sum(0) for batch in batches)
    assert np.allclose(of_class, 70 / 3, rtol=1e-5)
    assert np.allclose(class_weights(np.array([0, 0, 0, 1]), 2), [2 / 3, 2])
    assert set(np.concatenate([b["weights"] for b in held_out_batches(dataset, "val", 10)])) == {1.0}


def test_balance_by_sampling_shows_classes_equally_often():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(3):
        order = epoch_order(100, labels, "sampling", rng)
        shown.append(np.bincount(labels[order]).tolist())
        assert sorted(shown[-1]) == [33, 33, 34]
        assert len(set(order[labels[order] == 0])) == (labels[order] == 0).sum()  # from a large class, none twice
        assert set(order[labels[order] == 2]) == set(range(90, 100))  # from a small one, all, some of them four times
    assert len({tuple(counts) for counts in shown}) > 1  # the remaining place goes to different classes


def test_balance_by_oversampling_shows_every_record(opened, uneven):
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = epoch_order(100, labels, "oversampling", np.random.default_rng(0))
    assert np.bincount(labels[order]).tolist() == [60, 60, 60] and set(order) == set(range(100))
    assert set(np.bincount(order)[60:90]) == {2} and set(np.bincount(order)[90:]) == {6}
    dataset = opened(uneven, balance="oversampling")
    places = Order(dataset, seed=0)[0:126]
    shown = places[places[:, 0] == places[np.argmax(places[:, 2]), 0]]
    assert sorted(shown[:, 2]) == list(range(6))


def test_repeats_of_a_record_in_an_epoch_are_augmented_differently(opened, uneven):
    dataset = opened(uneven, balance="oversampling", standardise=False)
    augment = AugmentConfig(image=ImageAugmentConfig(brightness=0.5))
    batch = next(train_batches(dataset, 126, seed=0, augment=augment))
    places = Order(dataset, seed=0)[0:126]
    chosen = places[np.argmax(places[:, 2]), 0]
    shown = batch["inputs"][places[:, 0] == chosen]
    assert len(shown) == 6 and len({picture.tobytes() for picture in shown}) == 6


@pytest.mark.parametrize(("balance", "shares"), [("none", (0.6, 0.3, 0.1)), ("sampling", (1 / 3, 1 / 3, 1 / 3))])
def test_mixup_partners_are_balanced_too(opened, uneven, balance, shares):
    dataset = opened(uneven, balance=balance)
    halves = AugmentConfig(image=ImageAugmentConfig(mixup=1e4))
    batches = take(train_batches(dataset, 70, seed=0, augment=halves), 30)
    mixed = sum(batch["labels"].sum(0) for batch in batches)
    np.testing.assert_allclose(mixed / mixed.sum(), shares, atol=0.02)
    labels = dataset.splits["train"]["labels"]
    assert set(partners(len(labels), labels, balance)) == set(range(len(labels)))


def test_texts_have_lengths_and_augmented_ones_are_tokenized_again(tmp_path):
    from deepseek_jax.data.augment.config import TextAugmentConfig
    from deepseek_jax.data.sets.config import ColumnsConfig

    words = "alpha beta gamma delta epsilon zeta".split()
    rows = [f"{' '.join(words[n % 5 :] + [str(n)])},{n % 2}" for n in range(40)]
    name = write_csv(tmp_path / "t.csv", "text,label", rows)
    columns = ColumnsConfig(text="text", label="label")
    config = DatasetConfig(name, columns=columns, vocab_size=290, length=64)
    dataset = open_set(dataclasses.replace(config, directory=str(tmp_path)))
    plain = next(train_batches(dataset, 28, seed=0))
    assert plain["inputs"].dtype == np.int32 and plain["inputs"].shape == (28, 64)
    assert all(
        (ids[n:] == dataset.tokenizer.pad).all() for ids, n in zip(plain["inputs"], plain["lengths"], strict=True)
    )
    changed = next(train_batches(dataset, 28, seed=0, augment=AugmentConfig(text=TextAugmentConfig(swap=0.3))))
    assert (changed["labels"] == plain["labels"]).all() and (changed["inputs"] != plain["inputs"]).any(1).mean() > 0.5
    for before, m, after, n in zip(
        plain["inputs"], plain["lengths"], changed["inputs"], changed["lengths"], strict=True
    ):
        assert sorted(dataset.tokenizer.decode(before[:m]).split()) == sorted(
            dataset.tokenizer.decode(after[:n]).split()
        )


def test_long_texts_are_truncated():
    tokenizer = types.SimpleNamespace(pad=9, encode_batch=lambda texts: [[1, 2, 3, 4, 5], [6], []])
    ids, lengths = encode(["long", "short", "empty"], tokenizer, 3)
    assert ids.tolist() == [[1, 2, 3], [6, 9, 9], [9, 9, 9]] and lengths.tolist() == [3, 1, 1]
