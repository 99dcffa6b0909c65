"""Splits depend on the seed and the content of records, and are disjoint; scaling is fitted on training alone."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig, ImagesConfig
from deepseek_jax.data.sets.registry import open_set
from deepseek_jax.data.sets.scaling import Scaling, moments
from deepseek_jax.data.sets.splitting import by_content, content_keys, rarest
from deepseek_jax.errors import UserError
from tests.user_files import write_csv

KEYS = [bytes([number]) for number in range(200)]
STRATA = np.repeat([0, 1], [150, 50])


def test_split_shares_hold_in_each_class():
    split_of = by_content(KEYS, STRATA, val=0.1, test=0.2, seed=0)
    for label, size in ((0, 150), (1, 50)):
        counts = {name: int((split_of[label == STRATA] == name).sum()) for name in ("train", "val", "test")}
        assert counts == {"train": size * 7 // 10, "val": size // 10, "test": size // 5}


def test_splits_depend_on_the_seed_and_not_on_the_order_of_the_source():
    order = np.random.default_rng(1).permutation(len(KEYS))
    split_of = by_content(KEYS, STRATA, val=0.1, test=0.2, seed=0)
    again = by_content([KEYS[i] for i in order], STRATA[order], val=0.1, test=0.2, seed=0)
    assert (again == split_of[order]).all()
    assert (by_content(KEYS, STRATA, val=0.1, test=0.2, seed=1) != split_of).any()


def test_equal_records_are_in_one_split_even_with_other_labels():
    keys = [key for key in KEYS[:50] for _ in range(3)]
    split_of = by_content(keys, np.arange(150) % 2, val=0.2, test=0.3, seed=0).reshape(50, 3)
    assert (split_of == split_of[:, :1]).all() and set(split_of.ravel()) == {"train", "val", "test"}
    texts = np.array(["One text.", "one  TEXT.", "another"], object)
    assert content_keys(texts)[0] == content_keys(texts)[1] != content_keys(texts)[2]


def test_negative_zero_equals_zero():
    keys = content_keys(np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]], np.float32))
    assert keys[0] == keys[1] != keys[2]


def test_equal_records_of_different_origins_are_in_one_split():
    """Equal records go to the split of their lowest origin, and the others hardly change."""
    alone = by_content(KEYS, STRATA, val=0.1, test=0.2, seed=0)
    keys = [KEYS[1 if number == 0 else number] for number in range(200)]
    joined = by_content(keys, STRATA, val=0.1, test=0.2, seed=0, origins=KEYS)
    assert joined[0] == joined[1] and (joined != alone).sum() <= 3  # these two, and one that takes their place
    pairs = [KEYS[number // 2] for number in range(200)]
    forwards = by_content(pairs, STRATA, val=0.1, test=0.2, seed=0, origins=KEYS)
    backwards = by_content(pairs[::-1], STRATA[::-1], val=0.1, test=0.2, seed=0, origins=KEYS[::-1])
    assert (forwards == backwards[::-1]).all()


def categories(number: int) -> str:
    """A row of three categories; whole rows repeat, so only their position distinguishes them."""
    return f"{number % 2},{number // 2 % 3},{'yes' if number % 5 else 'no'}"


def test_rows_of_few_combinations_are_split_by_the_configured_shares(tmp_path):
    """If equal rows were kept together, six combinations would give splits of none or a third of the records."""
    path = tmp_path / "categories.csv"
    write_csv(path, "a,b,kind", map(categories, range(600)))
    columns = ColumnsConfig(features=("a", "b"), label="kind")
    splits = open_set(DatasetConfig(name=str(path), columns=columns)).splits
    assert {name: len(records["ids"]) for name, records in splits.items()} == {"train": 420, "val": 60, "test": 120}
    assert len(np.unique(splits["test"]["inputs"], axis=0)) == 6


def test_splits_do_not_depend_on_the_selected_features(tmp_path):
    path = tmp_path / "wide.csv"
    write_csv(path, "a,b,kind,c", (f"{categories(number)},{number}.5" for number in range(600)))
    few, all_three = (
        open_set(DatasetConfig(name=str(path), columns=ColumnsConfig(features=features, label="kind")))
        for features in (("a", "b"), ("a", "b", "c"))
    )
    assert names_of(few) == names_of(all_three)


def names_of(dataset) -> dict[str, list[int]]:
    return {split: records["ids"].tolist() for split, records in dataset.splits.items()}


def test_splits_do_not_depend_on_features_or_image_sizes(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["file,a,b,kind"]
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{rng.random()},{rng.random()},{number % 2}")
    (tmp_path / "t.csv").write_text("\n".join(lines))

    def split(columns, **settings):
        settings |= {"columns": ColumnsConfig(label="kind", **columns)}
        return names_of(open_set(DatasetConfig(name=str(tmp_path / "t.csv"), **settings)))

    assert split({"features": ("a",)}) == split({"features": ("b", "a")})
    assert split({"image": "file"}) == split({"image": "file"}, images=ImagesConfig(4, 4, 3))


def test_the_only_record_of_a_class_goes_to_training():
    assert by_content(KEYS[:1], np.zeros(1), val=0.3, test=0.6, seed=0) == ["train"]
    assert sorted(by_content(KEYS[:2], np.zeros(2), val=0.45, test=0.45, seed=0)) == ["test", "train"]


@pytest.mark.parametrize(
    ("classes", "size", "counts"), [(300, 2, [420, 60, 120]), (150, 4, [390, 60, 150]), (100, 6, [400, 100, 100])]
)
def test_many_small_classes_fill_every_split(classes, size, counts):
    """Rounding each class's share by itself would give validation, or both splits, no record; for six records it gives
    each split one, which is near enough."""
    keys = [b"%d" % number for number in range(classes * size)]
    strata = np.arange(len(keys)) % classes
    split_of = by_content(keys, strata, val=0.1, test=0.2, seed=0)
    assert [int((split_of == name).sum()) for name in ("train", "val", "test")] == counts
    assert len(np.unique(strata[split_of == "train"])) == classes
    order = np.random.default_rng(0).permutation(len(keys))
    assert (by_content([keys[i] for i in order], strata[order], val=0.1, test=0.2, seed=0) == split_of[order]).all()


def test_classes_of_one_record_do_not_change_the_shares_of_others():
    strata = np.concatenate([np.arange(900), np.repeat(np.arange(900, 905), [2, 2, 2, 30, 64])])
    split_of = by_content([b"%d" % number for number in range(1000)], strata, val=0.1, test=0.2, seed=0)
    assert {name: int((split_of[936:] == name).sum()) for name in ("val", "test")} == {"val": 6, "test": 13}
    assert (split_of[:900] == "train").all()


def test_a_large_class_does_not_make_up_for_small_ones():
    """Of twenty pairs, one record each goes to the test split, which leaves validation none of them."""
    strata = np.repeat(np.arange(21), [2] * 20 + [20])
    for seed in range(8):  # the seed also decides the order of the classes
        split_of = by_content(KEYS[:60], strata, val=0.1, test=0.45, seed=seed)
        assert (split_of[40:] == "val").sum() <= 2


def test_an_empty_split_is_noted(tmp_path):
    (tmp_path / "few.csv").write_text("x,y\n1,2\n2,3\n3,5\n")
    columns = ColumnsConfig(features=("x",), targets=("y",))
    of_few = open_set(DatasetConfig(name=str(tmp_path / "few.csv"), columns=columns))
    assert [len(records["ids"]) for records in of_few.splits.values()] == [2, 0, 1]
    (note,) = of_few.notes
    assert note.startswith("dataset.val is 0.1, which comes to no record of") and note.endswith("val is empty.")


def test_a_picture_is_stratified_by_its_rarest_class():
    labels = np.array([[0, 0, 1], [0, 2, -1], [2, 1, -1], [-1, -1, -1]])  # three boxes of 0, two of 1 and of 2
    assert rarest(labels, classes=4).tolist() == [1, 2, 1, -1]
    assert rarest(labels[:, :0], classes=0).tolist() == [-1] * 4


def test_official_splits_are_kept_and_a_missing_one_is_taken_from_training():
    given = np.repeat(["train", "test"], [150, 50])
    split_of = by_content(KEYS, STRATA, val=0.1, test=0.5, seed=0, given=given)
    assert (split_of[150:] == "test").all() and (split_of[:150] == "val").sum() == 15
    assert not (split_of[:150] == "test").any()


def test_no_record_of_a_real_set_is_in_two_splits(digits, config):
    keys = [set(content_keys(records["inputs"])) for records in digits.splits.values()]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert sum(len(records["ids"]) for records in digits.splits.values()) == 1797
    assert open_set(config).fingerprint == digits.fingerprint
    assert open_set(dataclasses.replace(config, seed=1)).fingerprint != digits.fingerprint


def test_scaling_is_fitted_on_training_alone(digits, opened, uneven):
    train = digits.splits["train"]["inputs"]
    scaled = digits.scaling.inputs(train)
    assert abs(scaled.mean()) < 1e-4 and abs(scaled.std() - 1) < 1e-4
    assert digits.scaling.input_mean != moments(np.concatenate([r["inputs"] for r in digits.splits.values()]))[0]
    assert opened(uneven, standardise=False).scaling == Scaling()


def test_scaling_of_numbers_is_undone():
    values = np.array([[1.0, 1e6], [3.0, 1e6], [5.0, 1e6]])  # the second column is constant
    scaling = Scaling(target_mean=moments(values)[0], target_deviation=moments(values)[1])
    assert np.allclose(scaling.targets(values)[:, 0], [-np.sqrt(1.5), 0, np.sqrt(1.5)])
    assert (scaling.targets(values)[:, 1] == 0).all()
    assert np.allclose(scaling.undo_targets(scaling.targets(values)), values)


def test_scaled_numbers_are_clipped_to_finite_float32():
    scaling = Scaling(input_mean=(0.0,), input_deviation=(0.1,), target_mean=(0.0,), target_deviation=(1e9,))
    most = np.finfo(np.float32).max
    assert scaling.inputs(np.float32([[3e38], [-3e38], [1.0]]))[:, 0].tolist() == [most, -most, 10.0]
    assert scaling.undo_targets(np.float32([[1e30], [2.0]]))[:, 0].tolist() == [most, 2e9]


def test_bytes_are_scaled_to_between_0_and_1_first(opened, uneven):
    images = (uneven.records["inputs"] * 255).astype(np.uint8)
    scaling = opened(dataclasses.replace(uneven, records=uneven.records | {"inputs": images})).scaling
    assert 0.4 < scaling.input_mean[0] < 0.6 and 0.2 < scaling.input_deviation[0] < 0.4


def test_a_constant_channel_has_deviation_one(opened, uneven):
    images = (uneven.records["inputs"] * 255).astype(np.uint8)
    images = np.concatenate([images[..., :1], np.full_like(images[..., :1], 51)], -1)
    scaling = opened(dataclasses.replace(uneven, records=uneven.records | {"inputs": images})).scaling
    assert (scaling.input_mean[1], scaling.input_deviation[1]) == (0.2, 1.0)


def test_moments_of_numbers_far_from_zero_and_of_constants():
    seconds = 1.7e9 + np.arange(100.0)[:, None]
    (mean,), (deviation,) = moments(seconds)
    np.testing.assert_allclose([mean, deviation], [1.7e9 + 49.5, np.arange(100).std()], rtol=1e-12)
    assert moments(np.full((100, 1), 19.6)) == ((19.6,), (1.0,))  # the sum divided by 100 is not exactly 19.6
    assert moments(np.full((4, 1), 51, np.uint8), unit=255.0) == ((0.2,), (1.0,))  # a picture's constant channel
    assert moments(np.array([[0.0], [1e-200]]))[1] == (1.0,)  # whose square underflows to 0


def test_blank_lines_do_not_change_a_set(tmp_path):
    lines = ["a,kind", *(f"{number},{number % 2}" for number in range(20))]
    fingerprints = []
    for text in ("\n".join(lines), "\n\n".join(lines), "\n".join(lines[:-1] + ["99,1"])):
        (tmp_path / "t.csv").write_text(text)
        columns = ColumnsConfig(features=("a",), label="kind")
        settings = DatasetConfig(name=str(tmp_path / "t.csv"), columns=columns, val=0.0, test=0.0)
        fingerprints.append(open_set(settings).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_filter_list_removes_records_from_training_only(opened, uneven, tmp_path):
    before = opened(uneven)
    train, test = before.splits["train"]["ids"], before.splits["test"]["ids"]
    (tmp_path / "filter.txt").write_text(f"# doubtful\n{train[0]}  # a duplicate\n{train[3]}\n{test[0]}\n\n")
    after = opened(uneven, exclude=str(tmp_path / "filter.txt"))
    (tmp_path / "marked.txt").write_text((tmp_path / "filter.txt").read_text(), "utf-8-sig")
    assert opened(uneven, exclude=str(tmp_path / "marked.txt")).fingerprint == after.fingerprint
    assert after.splits["train"]["ids"].tolist() == np.delete(train, [0, 3]).tolist()
    assert after.splits["test"]["ids"].tolist() == test.tolist()
    (tmp_path / "filter.txt").write_text("3\n100\n")
    with pytest.raises(UserError, match="lists record 100, which uneven does not have"):
        opened(uneven, exclude=str(tmp_path / "filter.txt"))
    (tmp_path / "filter.txt").write_text("3\nthe first\n")
    with pytest.raises(UserError, match="must have one id per line; line 2 has none"):
        opened(uneven, exclude=str(tmp_path / "filter.txt"))
    with pytest.raises(UserError, match="there is no file"):
        opened(uneven, exclude="nowhere.txt")
    with pytest.raises(UserError, match="cannot read .*: Is a directory; name a file"):
        opened(uneven, exclude=str(tmp_path))


def test_impossible_dataset_settings_are_refused():
    with pytest.raises(UserError, match="leave nothing to train on"):
        DatasetConfig(val=0.5, test=0.5)
    with pytest.raises(UserError, match="dataset.balance is 'even'; choose one of none, weights"):
        DatasetConfig(balance="even")
    with pytest.raises(UserError, match="dataset.vocab_size is 10+; it must be at most 2147483647"):
        DatasetConfig(vocab_size=10**20)
    with pytest.raises(UserError, match="dataset.columns.text is for .*, but dataset.name is digits"):
        open_set(DatasetConfig(columns=ColumnsConfig(text="body", label="folder")))
    with pytest.raises(UserError, match="neither a set .digits, mnist5k"):
        open_set(DatasetConfig(name="mnist"))
