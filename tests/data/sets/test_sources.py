"""What each built-in set contains; large or not installed ones are replaced by small imitations."""

import gzip
import io

import numpy as np
import pytest

from deepseek_jax.data.sets import images, scenes, series, services
from deepseek_jax.data.sets.config import DatasetConfig, ImagesConfig, ScenesConfig, SeriesConfig
from deepseek_jax.data.sets.registry import open_set
from deepseek_jax.errors import UserError


def test_scenes_use_each_digit_in_one_split_and_box_it_tightly(monkeypatch, config):
    """Sixty stand-ins for digits: full squares, each with its own grey level."""
    levels = np.arange(100, 160).astype(np.uint8)
    squares = np.broadcast_to(levels[:, None, None, None], (60, 28, 28, 1)).copy()
    monkeypatch.setattr(images, "mnist_digits", lambda config: (squares, np.arange(60) % 10))
    settings = DatasetConfig(name="scenes", val=0.2, test=0.3, scenes=ScenesConfig(count=60, canvas=64, most=3))
    columns = scenes._compose_all(settings)
    seen = {name: set() for name in ("train", "val", "test")}
    for picture, boxes, labels, split in zip(*columns.values(), strict=True):
        found = np.unique(picture[picture >= 100])
        assert 1 <= len(found) <= (labels >= 0).sum()
        seen[split] |= set(found.tolist())
        for level in found if len(found) == (labels >= 0).sum() else ():  # only if no digit occurs twice
            rows, columns_ = np.nonzero(picture[:, :, 0] == level)
            box = np.array([rows.min(), columns_.min(), rows.max() + 1, columns_.max() + 1]) / 64
            (place,) = np.nonzero(np.abs(boxes - box).max(-1) < 1e-6)[0]
            assert labels[place] == (level - 100) % 10
        assert (boxes[labels < 0] == 0).all()
    assert seen["train"] and seen["val"] and seen["test"]
    assert not (seen["train"] & seen["val"] or seen["train"] & seen["test"] or seen["val"] & seen["test"])


def test_a_split_of_scenes_without_any_digit_is_refused(config):
    settings = ScenesConfig(count=20000, canvas=48)
    with pytest.raises(UserError, match="dataset.val is 5e-05, of 5,000 digits too small"):
        open_set(DatasetConfig(name="scenes", directory=config.directory, val=5e-5, scenes=settings))


def test_scenes_of_real_digits_have_their_shape_and_splits(config):
    settings = ScenesConfig(count=50, canvas=48, most=2)
    dataset = open_set(DatasetConfig(name="scenes", directory=config.directory, scenes=settings))
    assert dataset.kind == "boxes" and dataset.shape() == {"height": 48, "width": 48, "channels": 1}
    assert [len(records["ids"]) for records in dataset.splits.values()] == [35, 5, 10]
    ids = np.concatenate([records["ids"] for records in dataset.splits.values()])
    assert len(set(ids.tolist())) == 50


def test_services_keeps_only_paragraphs_of_a_single_service(monkeypatch, tmp_path):
    sentence = "the parameter {} of {} is of a length that makes this paragraph long enough to be kept in the set"

    def models():
        for number in range(22):
            name = f"service{number:02d}"
            own = [sentence.format(place, name) for place in range(40 - number)]
            texts = [*own, own[0], sentence.format("common", "everything"), "too short"]
            yield name, "2026-01-01", {"documentation": "<p>" + "</p><p>".join(texts) + "</p>"}

    monkeypatch.setattr(services, "service_models", models)
    dataset = open_set(DatasetConfig(name="services", directory=str(tmp_path), vocab_size=300, length=48))
    assert dataset.class_names == tuple(f"service{number:02d}" for number in range(20))
    texts = np.concatenate([records["texts"] for records in dataset.splits.values()])
    assert len(texts) == len(set(texts)) == sum(40 - number for number in range(20))
    assert not any("common" in text for text in texts)
    train = dataset.splits["train"]
    for text, ids, length in zip(train["texts"][:5], train["inputs"], train["lengths"], strict=False):
        assert text.startswith(dataset.tokenizer.decode(ids[:length])) and (ids[length:] == dataset.tokenizer.pad).all()


@pytest.mark.parametrize(("name", "season", "count"), [("co2", 12, 526), ("temperatures", 24, 8759)])
def test_a_series_is_split_by_time(name, season, count):
    dataset = open_set(DatasetConfig(name=name, val=0.1, test=0.2, standardise=False))
    S, Z = 36, 12
    targets = {
        split: {start + S + step for start in records["ids"].tolist() for step in range(Z)}
        for split, records in dataset.splits.items()
    }
    assert max(targets["train"]) < min(targets["val"]) <= max(targets["val"]) < min(targets["test"])
    assert max(targets["test"]) == count - 1 and min(targets["test"]) == round(0.8 * count)
    test = dataset.splits["test"]
    assert np.isfinite(test["inputs"]).all() and (test["inputs"][:, -1] == 0).all()


def test_a_split_of_a_series_without_a_window_is_refused():
    """If the split were taken from training windows instead, its targets would be trained on."""
    with pytest.raises(UserError, match="co2 has 5 values for val; dataset.series.horizon needs 12"):
        open_set(DatasetConfig(name="co2", val=0.01, test=0.2))
    with pytest.raises(UserError, match="co2 has 0 values for val"):
        open_set(DatasetConfig(name="co2", val=0.0001, test=0.2))  # not filled from training windows
    assert not len(open_set(DatasetConfig(name="co2", val=0.0, test=0.2)).splits["val"]["ids"])


def test_the_naive_forecast_repeats_the_last_season():
    values = np.tile(np.arange(5.0), 16)
    config = DatasetConfig(series=SeriesConfig(window=10, horizon=7))
    source = series.windows("rounds", values, config, season=5)
    dataset = open_set_of(source)
    test = dataset.splits["test"]
    assert (series.seasonal_naive(dataset, test["inputs"]) == test["targets"]).all()
    with pytest.raises(UserError, match="window is 10; rounds needs at least its season, 12"):
        series.windows("rounds", values, config, season=12)
    with pytest.raises(UserError, match="short has 14 values to train on; .* need 17"):
        series.windows("short", values[:20], config, season=5)


def open_set_of(source):
    from deepseek_jax.data.sets.dataset import Dataset

    splits = {
        split: {name: values[source.given == split] for name, values in source.records.items()}
        for split in ("train", "val", "test")
    }
    return Dataset(source.name, source.kind, source.input, splits, target_names=source.target_names, season=5)


def test_diabetes_is_in_its_own_units():
    dataset = open_set(DatasetConfig(name="diabetes"))
    assert dataset.shape() == {"channels": 10} and dataset.outputs == 1 and dataset.names[0] == "age"
    assert dataset.splits["train"]["inputs"][:, 0].max() > 60  # years


def test_fashion_is_read_from_its_files(monkeypatch, tmp_path):
    def write(name: str, values: np.ndarray):
        sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
        (tmp_path / name).write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()))

    rng = np.random.default_rng(0)
    for part, count in (("train", 50), ("t10k", 20)):
        write(f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), np.uint8))
        write(f"{part}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    monkeypatch.setattr(images, "FASHION", tmp_path)
    dataset = open_set(DatasetConfig(name="fashion"))
    assert [len(records["ids"]) for records in dataset.splits.values()] == [45, 5, 20]
    monkeypatch.setattr(images, "FASHION", tmp_path / "nowhere")
    with pytest.raises(UserError, match="install Debian's package dataset-fashion-mnist"):
        open_set(DatasetConfig(name="fashion"))


def test_an_image_set_of_tensorflow_datasets_is_read(tmp_path):
    import tensorflow_datasets as tfds
    from PIL import Image

    class TinyPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Pictures of one grey level."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(6, 5, 1)), "label": tfds.features.ClassLabel(names="ab")}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(6)}

        def _generate_examples(self, count):
            for number in range(count):
                file = io.BytesIO()
                Image.fromarray(np.full((6, 5), 10 * number, np.uint8)).save(file, "PNG")
                file.seek(0)
                yield number, {"image": file, "label": number % 2}

    tfds.disable_progress_bar()
    TinyPictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    settings = DatasetConfig(name="tfds:tiny_pictures", directory=str(tmp_path))
    dataset = open_set(settings)
    assert dataset.shape() == {"height": 6, "width": 5, "channels": 1} and dataset.class_names == ("a", "b")
    assert [len(records["ids"]) for records in dataset.splits.values()] == [18, 2, 6]
    test = dataset.splits["test"]
    assert sorted(test["inputs"][:, 0, 0, 0].tolist()) == [0, 10, 20, 30, 40, 50]
    assert (test["inputs"][:, 0, 0, 0] // 10 % 2 == test["labels"]).all()
    larger = DatasetConfig(name=settings.name, directory=settings.directory, images=ImagesConfig(9, 8, 3))
    assert open_set(larger).shape() == {"height": 9, "width": 8, "channels": 3}
    for name in ("tiny_picture", ""):
        with pytest.raises(UserError, match=f"knows no set '{name}', and none of that name"):
            open_set(DatasetConfig(name=f"tfds:{name}", directory=str(tmp_path)))


def tiny_texts(directory, label):
    """Prepares a set of 20 training and 6 test reviews whose label is this tfds feature; returns its config."""
    import tensorflow_datasets as tfds

    class TinyTexts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Reviews."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "label": label}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(6)}

        def _generate_examples(self, count):
            for number in range(count):
                yield number, {"text": f"{['dull', 'grëat'][number % 2]} film {number}", "label": number % 2}

    tfds.disable_progress_bar()
    TinyTexts(data_dir=directory, file_format="array_record").download_and_prepare()
    return DatasetConfig(name="tfds:tiny_texts", directory=str(directory), vocab_size=300)


def test_a_text_set_of_tensorflow_datasets_is_read(tmp_path):
    import tensorflow_datasets as tfds

    dataset = open_set(tiny_texts(tmp_path / "classes", tfds.features.ClassLabel(names=["bad", "good"])))
    assert (dataset.input, dataset.class_names) == ("text", ("bad", "good"))
    assert [len(records["ids"]) for records in dataset.splits.values()] == [18, 2, 6]
    for records in dataset.splits.values():
        assert [text.startswith("grëat film") for text in records["texts"]] == records["labels"].astype(bool).tolist()
    with pytest.raises(UserError, match="has features label, text; "):
        open_set(tiny_texts(tmp_path / "numbers", tfds.features.Scalar(np.int64)))
