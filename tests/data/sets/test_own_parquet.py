"""A user's own Parquet, as data sets are published: read as a .csv or .jsonl of the same data, and refused by row."""

import dataclasses
import datetime
import decimal
import gzip
import io
import lzma
import re

import numpy as np
import pandas
import pyarrow
import pytest
from PIL import Image

from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig, ImagesConfig, SeriesConfig
from deepseek_jax.data.sets.registry import open_set
from deepseek_jax.errors import UserError
from tests.user_files import people, write_csv, write_jsonl, write_parquet

TABLE = ColumnsConfig(features=("age", "size"), label="kind")
WORDS = ColumnsConfig(text="words", label="kind")
KINDS = {"kind": {"names": ["dull", "bright", "blue"], "_type": "ClassLabel"}}
WHOLE = {"val": 0.0, "test": 0.0}


def mixed(count: int = 120) -> pandas.DataFrame:
    """Columns of most kinds that tables have."""
    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "age": rng.normal(size=count),
            "size": rng.normal(size=count).astype(np.float32),
            "price": [decimal.Decimal(f"{number}.50") for number in range(count)],
            "rooms": pandas.array([number % 7 for number in range(count)], "Int8"),
            "kind": pandas.Categorical(["a", "b", "c"] * (count // 3)),
            "when": pandas.date_range("2024-01-01 00:30", periods=count, freq="h"),
            "day": [datetime.date(2024, 1, 1 + number % 28) for number in range(count)],
            "note": [None if number % 5 == 0 else f'said, "{number}"\n' for number in range(count)],
            "new": [number % 2 == 0 for number in range(count)],
            "words": [f"word {number} é" for number in range(count)],
        }
    )


def png(number: int, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5), 20 * number, np.uint8)).convert(mode).save(file, "png")
    return file.getvalue()


def pictures(**more) -> dict:
    rows = {"image": [{"bytes": png(number), "path": f"{number}.png"} for number in range(12)], "kind": [0, 1] * 6}
    return rows | more


@pytest.mark.parametrize(
    "columns",
    [
        ColumnsConfig(features=("age", "size", "price", "rooms"), label="kind"),
        ColumnsConfig(features=("age",), targets=("size", "price")),
        ColumnsConfig(features=("age",), label="rooms"),
        ColumnsConfig(features=("age",), label="day"),
        ColumnsConfig(features=("age",), label="new"),
        ColumnsConfig(text="words", label="kind"),
        ColumnsConfig(series="size"),
    ],
    ids=str,
)
def test_a_parquet_gives_the_records_and_splits_of_a_csv(tmp_path, columns):
    mixed().to_csv(tmp_path / "t.csv", index=False)
    mixed().to_parquet(tmp_path / "t.parquet", row_group_size=50)
    settings = DatasetConfig(
        columns=columns, vocab_size=300, directory=str(tmp_path), series=SeriesConfig(window=8, horizon=3)
    )
    of_csv, of_parquet = (
        open_set(dataclasses.replace(settings, name=str(tmp_path / name))) for name in ("t.csv", "t.parquet")
    )
    assert of_csv.fingerprint == of_parquet.fingerprint
    for name, records in of_csv.splits.items():
        for column, values in records.items():
            if column != "ids":
                np.testing.assert_array_equal(values, of_parquet.splits[name][column])
    if not columns.series:
        ids = np.concatenate([records["ids"] for records in of_parquet.splits.values()])
        assert sorted(ids.tolist()) == list(range(1, 121))  # rows


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz"])
@pytest.mark.parametrize("name", ["t.csv", "T.JSONL", "t.ndjson"])
def test_a_compressed_table_is_read_as_what_it_holds(tmp_path, name, suffix):
    rows = [dict(zip(("age", "size", "kind"), row.split(","))) for row in people(30)]
    if name == "t.csv":
        write_csv(tmp_path / name, "age,size,kind", people(30))
    else:
        write_jsonl(tmp_path / name, (row | {"age": int(row["age"]), "size": int(row["size"])} for row in rows))
    compress = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard}[suffix]
    packed = tmp_path / f"{name}.{suffix}"
    packed.write_bytes(compress((tmp_path / name).read_bytes()))
    plain, unpacked = (open_set(DatasetConfig(name=str(path), columns=TABLE)) for path in (tmp_path / name, packed))
    assert plain.fingerprint == unpacked.fingerprint
    for split, records in plain.splits.items():
        np.testing.assert_array_equal(records["ids"], unpacked.splits[split]["ids"])
    with pytest.raises(UserError, match=re.escape(f"{packed} has no column 'weight'") if name == "t.csv" else "no key"):
        open_set(DatasetConfig(name=str(packed), columns=dataclasses.replace(TABLE, features=("weight",))))
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{packed} is cut off or damaged: .*; fetch it again, or name another.$"):
        open_set(DatasetConfig(name=str(packed), columns=TABLE))


def zstandard(data: bytes) -> bytes:
    target = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(target, "zstd") as stream:
        stream.write(data)
    return target.getvalue().to_pybytes()


def test_a_table_of_another_encoding_or_packing_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("age,size,kind\n1,2,a\n", "utf-16")
    with pytest.raises(UserError, match="t.csv is not UTF-8: UTF-16 or UTF-32, save it as UTF-8.$"):
        open_set(DatasetConfig(name=str(tmp_path / "t.csv"), columns=TABLE))
    (tmp_path / "t.csv.bz2").touch()
    with pytest.raises(UserError, match="t.csv.bz2' is neither a set .* nor a .csv, .jsonl or .parquet file"):
        open_set(DatasetConfig(name=str(tmp_path / "t.csv.bz2"), columns=TABLE))


def test_all_faults_of_a_parquet_are_reported_with_their_rows(tmp_path):
    rows = {"age": [1.0, None, float("nan"), 4.0], "size": ["1", "2", "3", "4"], "kind": ["a", "", None, "b"]}
    with pytest.raises(UserError) as error:
        open_set(DatasetConfig(name=write_parquet(tmp_path / "t.parquet", rows), columns=TABLE))
    assert str(error.value).splitlines() == [
        f"{tmp_path}/t.parquet has 8 faults:",
        "  row 1: size is '1'; it must be a number.",
        "  row 2: age is None; it must be a number.",
        "  row 2: size is '2'; it must be a number.",
        "  row 2: kind is empty; every record needs a label.",
        "  row 3: age is nan; correct the record or remove it.",
        "  row 3: size is '3'; it must be a number.",
        "  row 3: kind is empty; every record needs a label.",
        "  row 4: size is '4'; it must be a number.",
    ]


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ({"when": [datetime.datetime(2024, 1, 1, 12)]}, {"features": ("when",)}, "when is '2024-01-01 12:00:00'; it"),
        ({"when": [datetime.timedelta(1)]}, {"features": ("when",)}, "when is '86400000000'; it must be a number"),
        ({"new": [True]}, {"features": ("new",)}, "new is True; it must be a number"),
        ({"size": [b"12"]}, {"features": ("size",)}, "size is '12'; it must be a number"),
        ({"size": [[1.0] * 999]}, {"features": ("size",)}, r"size is \[1.0, .{90,100}\.\.\.; it must be a number"),
        ({"image": [{"bytes": b"x" * 999, "path": None}]}, {"text": "image"}, "image is {'bytes': ..., 'path': ...}"),
        ({"words": [["a", "b"]]}, {"text": "words"}, r"words is \['a', 'b'\]; it must be text"),
        ({"words": [b"\xff"]}, {"text": "words"}, "words is not UTF-8; correct the record"),
        ({"words": pyarrow.array([b"\xff"]).view(pyarrow.string())}, {"text": "words"}, "words is not UTF-8"),
        ({"answers": [{"text": ["a"]}]}, {"text": "answers.text"}, r"answers.text is \['a'\]; it must be text"),
        ({"answers": [None]}, {"features": ("answers",)}, "answers is None"),
        ({"image": [{"bytes": b"x", "path": None}]}, {"image": "image"}, "image does not decode as an image: "),
        ({"image": [{"bytes": None, "path": "no.png"}]}, {"image": "image"}, "cannot read .*/no.png: No such file"),
        ({"image": [{"bytes": None, "path": None}]}, {"image": "image"}, "image is None; it must be text"),
    ],
)  # fmt: skip
def test_values_of_other_kinds_are_refused(tmp_path, rows, columns, said):
    name = write_parquet(tmp_path / "t.parquet", rows | {"kind": ["a"]})
    with pytest.raises(UserError, match=f"^{name} row 1: {said}"):
        open_set(DatasetConfig(name=name, columns=ColumnsConfig(label="kind", **columns)))


def test_a_missing_column_is_named_with_those_that_exist(tmp_path):
    name = write_parquet(tmp_path / "t.parquet", pictures(objects=[{"boxes": [{"left": 1}]}] * 12))
    for columns, asked in (
        ({"image": "picture"}, "'picture'"),
        ({"image": "image.png"}, "'image.png'"),
        ({"text": "kind.words"}, "'kind.words'"),
    ):
        listed = "image, image.bytes, image.path, kind, objects, objects.boxes, objects.boxes.left"
        with pytest.raises(UserError, match=f"^{name} has no column {asked}; its columns are {listed}.$"):
            open_set(DatasetConfig(name=name, columns=ColumnsConfig(label="kind", **columns)))
    with pytest.raises(UserError, match=f"as in dataset.columns.text=NAME; the columns of {name} are {listed}.$"):
        open_set(DatasetConfig(name=name, columns=ColumnsConfig(label="kind")))
    twice = pyarrow.table([[1], [2], ["a"]], ["age", "age", "kind"])
    write_parquet(tmp_path / "t.parquet", twice)
    with pytest.raises(UserError, match="has several columns 'age'; give each a name of its own"):
        open_set(DatasetConfig(name=name, columns=ColumnsConfig(features=("age",), label="kind")))
    unused = pyarrow.table([[0, 1] * 6, [3] * 12, [4] * 12, list("ab") * 6], ["size", "age", "age", "kind"])
    write_parquet(tmp_path / "t.parquet", unused)
    open_set(DatasetConfig(name=name, columns=ColumnsConfig(features=("size",), label="kind")))


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_parquet_is_refused_by_name(tmp_path, share):
    name = write_parquet(tmp_path / "t.parquet", mixed())
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        UserError, match=f"{name} is damaged or not Parquet; fetch it again, rename it, or name another.$"
    ):
        open_set(DatasetConfig(name=name, columns=TABLE))
    with pytest.raises(UserError, match="^dataset.name: there is no file .*other.parquet.$"):
        open_set(DatasetConfig(name=str(tmp_path / "other.parquet"), columns=TABLE))


def test_nested_columns_are_named_by_a_dotted_path(tmp_path):
    answers = [{"text": f"word {number}", "size": number} for number in range(12)]
    rows = {"answers": answers, "a.b": list(range(12)), "kind": [0, 1] * 6}
    settings = DatasetConfig(vocab_size=300, directory=str(tmp_path), **WHOLE)
    names = [write_parquet(tmp_path / "t.parquet", rows)]
    names.append(write_jsonl(tmp_path / "t.jsonl", [dict(zip(rows, row)) for row in zip(*rows.values())]))
    for name in names:
        of_texts = dataclasses.replace(settings, name=name, columns=ColumnsConfig(text="answers.text", label="kind"))
        assert open_set(of_texts).splits["train"]["texts"].tolist() == [answer["text"] for answer in answers]
        columns = ColumnsConfig(features=("answers.size", "a.b"), label="kind")
        inputs = open_set(dataclasses.replace(settings, name=name, columns=columns)).splits["train"]["inputs"]
        assert inputs.tolist() == [[number, number] for number in range(12)]


def test_the_names_of_numbered_classes_are_those_of_hugging_face(tmp_path):
    """In their order, as far as they occur."""
    rows = {"words": [f"word {number}" for number in range(12)], "kind": [2, 1] * 6}
    settings = DatasetConfig(
        name=write_parquet(tmp_path / "t.parquet", rows, KINDS),
        columns=WORDS,
        vocab_size=300,
        directory=str(tmp_path),
        **WHOLE,
    )
    found = open_set(settings)
    assert found.class_names == ("bright", "blue")
    assert found.splits["train"]["labels"].tolist() == [1, 0] * 6
    in_order = dataclasses.replace(WORDS, classes=("blue", "bright"))
    assert open_set(dataclasses.replace(settings, columns=in_order)).splits["train"]["labels"].tolist() == [0, 1] * 6
    for number, said in (
        (-1, "kind is -1; the file names the classes 0 to 2, and no other"),
        (3, "kind is 3; the file"),
    ):
        rows["kind"][4] = number
        write_parquet(tmp_path / "t.parquet", rows, KINDS)
        with pytest.raises(UserError, match=f"t.parquet row 5: {said}"):
            open_set(settings)
    rows["kind"][4] = None
    write_parquet(tmp_path / "t.parquet", rows, KINDS)
    with pytest.raises(UserError, match="t.parquet row 5: kind is empty"):
        open_set(settings)
    rows["kind"][4] = 0  # read as a number where it is a feature or a target
    write_parquet(tmp_path / "t.parquet", rows, KINDS)
    numbers = open_set(dataclasses.replace(settings, columns=ColumnsConfig(text="words", targets=("kind",))))
    assert numbers.splits["train"]["targets"][:6, 0].tolist() == [2, 1, 2, 1, 0, 1]


@pytest.mark.parametrize(
    "metadata", ["{", "[]", '{"info": {"features": {"kind": {"names": 3, "_type": "ClassLabel"}}}}']
)
def test_metadata_of_another_form_is_ignored(tmp_path, metadata):
    rows = {"age": list(range(12)), "size": list(range(12)), "kind": [0, 1] * 6}
    name = write_parquet(tmp_path / "t.parquet", pyarrow.table(rows).replace_schema_metadata({"huggingface": metadata}))
    assert open_set(DatasetConfig(name=name, columns=TABLE)).class_names == ("0", "1")


def test_pictures_are_read_from_their_bytes_as_from_files(tmp_path):
    """Alone, in the struct of Hugging Face's datasets, or beside the table by their path."""
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    write_csv(tmp_path / "t.csv", "image,kind", [f"{number}.png,{number % 2}" for number in range(12)])
    settings = DatasetConfig(name=str(tmp_path / "t.csv"), columns=ColumnsConfig(image="image", label="kind"))
    of_files = open_set(settings)
    structs = pictures()["image"]
    paths = [image | {"bytes": None} for image in structs]
    for images, column in (
        (structs, "image"),
        (structs, "image.bytes"),
        ([image["bytes"] for image in structs], "image"),
        (paths, "image"),
        (paths, "image.path"),
    ):
        name = write_parquet(tmp_path / "t.parquet", pictures(image=images))
        columns = ColumnsConfig(image=column, label="kind")
        assert open_set(dataclasses.replace(settings, name=name, columns=columns)).fingerprint == of_files.fingerprint


def test_pictures_in_a_parquet_are_checked_as_files_are(tmp_path):
    name = write_parquet(tmp_path / "t.parquet", pictures())
    settings = DatasetConfig(name=name, columns=ColumnsConfig(image="image", label="kind"))
    assert not open_set(settings).notes
    images = pictures()["image"]
    images[3] = {"bytes": png(3)[:-30], "path": "x.png"}
    write_parquet(tmp_path / "t.parquet", pictures(image=images))
    with pytest.raises(UserError, match=f"^{name} row 4: image does not decode as an image: "):
        open_set(settings)
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (200, 30, 30)).save(file, "png")
    images[3] = {"bytes": file.getvalue(), "path": "x.png"}
    write_parquet(tmp_path / "t.parquet", pictures(image=images))
    with pytest.raises(UserError, match="the first image is 6 x 5, that of row 4 is 8 x 9; set dataset.images.height"):
        open_set(settings)
    (note,) = open_set(dataclasses.replace(settings, images=ImagesConfig(4, 4))).notes
    assert "has pictures in colour" in note


@pytest.mark.parametrize("of_structs", [False, True])
def test_boxes_are_read_from_a_list_of_structs_or_a_struct_of_lists(tmp_path, of_structs):
    boxes, labels = [[[0, 1, 3, 4]], [[1, 1, 2, 2], [0, 0, 5, 6]], []], [[1], [0, 1], []]
    if of_structs:
        kind = {"category": KINDS["kind"], "bbox": {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"}}
        features = {"objects": {"feature": kind, "_type": "List"}}
        objects = [
            [{"bbox": box, "category": label} for box, label in zip(*both, strict=True)] for both in zip(boxes, labels)
        ]
    else:
        kind = {"category": {"feature": KINDS["kind"], "_type": "List"}, "bbox": {"_type": "List"}}
        features = {"objects": kind}
        objects = [{"bbox": box, "category": label} for box, label in zip(boxes, labels)]
    rows = {"image": pictures()["image"][:3], "objects": objects}
    columns = ColumnsConfig(image="image", boxes="objects.bbox", label="objects.category")
    settings = DatasetConfig(name=write_parquet(tmp_path / "t.parquet", rows, features), columns=columns, **WHOLE)
    found = open_set(settings)
    train = found.splits["train"]
    assert found.class_names == ("dull", "bright") and train["box_labels"].tolist() == [[1, -1], [0, 1], [-1, -1]]
    np.testing.assert_allclose(train["boxes"][0, 0], [1 / 6, 0, 4 / 6, 3 / 5])
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    lines = [
        {"file": f"{number}.png", "boxes": boxes[number], "labels": [KINDS["kind"]["names"][k] for k in labels[number]]}
        for number in range(3)
    ]
    of_lines = ColumnsConfig(image="file", boxes="boxes", label="labels", classes=("dull", "bright"))
    settings = dataclasses.replace(settings, name=write_jsonl(tmp_path / "t.jsonl", lines), columns=of_lines)
    assert open_set(settings).fingerprint == found.fingerprint


class TestADirectory:
    """Of several files, as data sets are published."""

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "set" / ".hidden").mkdir(parents=True)
        (tmp_path / "set" / "README.md").write_text("A set.")
        (tmp_path / "set" / ".hidden" / "train.parquet").write_bytes(b"no Parquet")
        return tmp_path / "set"

    @staticmethod
    def part(start: int, count: int) -> dict:
        numbers = range(start, start + count)
        return {"age": list(numbers), "size": [n % 7 for n in numbers], "kind": [n % 2 for n in numbers]}

    def test_its_files_are_read_in_order_as_one(self, folder, tmp_path):
        for number in range(3):
            write_parquet(folder / f"part-{number}.parquet", self.part(10 * number, 10))
        whole = write_parquet(tmp_path / "t.parquet", self.part(0, 30))
        one, several = (open_set(DatasetConfig(name=name, columns=TABLE)) for name in (whole, str(folder)))
        assert one.fingerprint == several.fingerprint and several.name == "set"
        for split, records in one.splits.items():
            np.testing.assert_array_equal(records["ids"], several.splits[split]["ids"])
        series = {"columns": ColumnsConfig(series="age"), "series": SeriesConfig(window=3, horizon=2)}
        one, several = (open_set(DatasetConfig(name=name, **series)) for name in (whole, str(folder)))
        assert one.fingerprint == several.fingerprint
        bad = self.part(20, 10) | {"size": [None, *range(9)], "age": [*range(9), float("inf")]}
        write_parquet(folder / "part-2.parquet", bad)
        with pytest.raises(UserError) as error:
            open_set(DatasetConfig(name=str(folder), columns=TABLE))
        assert str(error.value).splitlines() == [
            f"{folder} has 2 faults:",
            "  row 1 of part-2.parquet: size is None; it must be a number.",
            "  row 10 of part-2.parquet: age is inf; correct the record or remove it.",
        ]
        write_parquet(folder / "part-2.parquet", {"age": [1]})
        with pytest.raises(UserError, match=f"^{folder}/part-2.parquet has no column 'kind'; its columns are age.$"):
            open_set(DatasetConfig(name=str(folder), columns=TABLE))

    def test_linked_directories_are_read_and_links_to_nothing_refused(self, folder, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        for path, start in (folder / "part-0.parquet", 0), (tmp_path / "elsewhere" / "part-1.parquet", 10):
            write_parquet(path, self.part(start, 10))
        (folder / "linked").symlink_to(tmp_path / "elsewhere")
        found = open_set(DatasetConfig(name=str(folder), columns=TABLE))
        assert sum(len(records["ids"]) for records in found.splits.values()) == 20
        (folder / "lost.parquet").symlink_to(tmp_path / "nothing")
        with pytest.raises(UserError, match=f"cannot read {folder}/lost.parquet: No such file"):
            open_set(DatasetConfig(name=str(folder), columns=TABLE))

    @pytest.mark.parametrize("name", ["{}-00000-of-00001.parquet", "{}/0000.parquet", "small_{}.PARQUET"])
    def test_files_named_after_splits_keep_them(self, folder, name):
        for number, split in enumerate(("train", "test", "validation")):
            (folder / name.format(split)).parent.mkdir(exist_ok=True)
            write_parquet(folder / name.format(split), self.part(20 * number, 20))
        found = open_set(DatasetConfig(name=str(folder), columns=TABLE, standardise=False))
        for number, split in enumerate(("train", "test", "val")):
            assert sorted(found.splits[split]["inputs"][:, 0]) == list(range(20 * number, 20 * number + 20))
        by_column = dataclasses.replace(TABLE, features=("age",), split="size")
        with pytest.raises(UserError, match="size is 0; it must be train, val or test"):
            open_set(DatasetConfig(name=str(folder), columns=by_column))
        with pytest.raises(UserError, match="a series is split by time, but the files in .*set are named after splits"):
            open_set(DatasetConfig(name=str(folder), columns=ColumnsConfig(series="age")))
        for other, said in (("unsupervised", "no split, and other files there do"), ("train-test", "several splits")):
            (folder / f"{other}.parquet").touch()
            with pytest.raises(UserError, match=f"in {folder}, the name of {other}.parquet has {said}"):
                open_set(DatasetConfig(name=str(folder), columns=TABLE))
            (folder / f"{other}.parquet").unlink()

    @pytest.mark.parametrize("suffix", ["csv", "jsonl", "csv.gz"])
    def test_csv_and_jsonl_are_read_in_order_as_one(self, folder, tmp_path, suffix):
        def write(path, rows):
            plain = path.with_name("plain")
            if suffix == "jsonl":
                write_jsonl(plain, rows)
            else:
                write_csv(plain, "age,size,kind", (",".join(map(str, row.values())) for row in rows))
            path.write_bytes(gzip.compress(plain.read_bytes()) if suffix == "csv.gz" else plain.read_bytes())
            plain.unlink()

        rows = [{"age": n, "size": n % 7, "kind": n % 2} for n in range(30)]
        whole, header = tmp_path / f"t.{suffix}", suffix != "jsonl"
        write(whole, rows)
        for number in range(3):
            write(folder / f"part-{number}.{suffix}", rows[10 * number : 10 * number + 10])
        one, several = (open_set(DatasetConfig(name=str(name), columns=TABLE)) for name in (whole, folder))
        assert one.fingerprint == several.fingerprint and several.name == "set"
        ids = np.concatenate([records["ids"] for records in several.splits.values()])
        assert sorted(ids) == [n + 1 + header * (1 + n // 10) for n in range(30)]
        series = {"columns": ColumnsConfig(series="age"), "series": SeriesConfig(window=3, horizon=2)}
        one, several = (open_set(DatasetConfig(name=str(name), **series)) for name in (whole, folder))
        assert one.fingerprint == several.fingerprint
        write(folder / f"part-1.{suffix}", [row | {"size": "x"} for row in rows[10:11]])
        with pytest.raises(UserError, match=f"^{folder} line {1 + header} of part-1.{suffix}: size is 'x'; it must be"):
            open_set(DatasetConfig(name=str(folder), columns=TABLE))
        write(folder / f"part-2.{suffix}", [{"age": 1}])
        said = "the row does not have as many fields as the header" if header else "no key 'kind'"
        with pytest.raises(UserError, match=f"has 2 faults:\n.*\n  line {1 + header} of part-2.{suffix}: {said}.$"):
            open_set(DatasetConfig(name=str(folder), columns=TABLE))

    def test_csv_and_jsonl_files_named_after_splits_keep_them(self, folder):
        for number, split in enumerate(("train", "test")):
            rows = (f"{n},{n % 7},{n % 2}" for n in range(20 * number, 20 * number + 20))
            write_csv(folder / f"{split}.csv", "age,size,kind", rows)
        found = open_set(DatasetConfig(name=str(folder), columns=TABLE, standardise=False))
        assert sorted(found.splits["test"]["inputs"][:, 0]) == list(range(20, 40))
        (folder / "more.jsonl").touch()
        with pytest.raises(
            UserError, match="set is a directory without Parquet files; name a .csv, .jsonl or .parquet"
        ):
            open_set(DatasetConfig(name=str(folder), columns=TABLE))

    def test_an_empty_line_of_a_series_is_named_with_its_file(self, folder):
        write_csv(folder / "a.csv", "load", map(str, range(30)))
        write_csv(folder / "b.csv", "load", ["1", "", "2"])
        series = {"columns": ColumnsConfig(series="load"), "series": SeriesConfig(window=3, horizon=2)}
        with pytest.raises(UserError, match=f"^{folder} line 3 of b.csv: the line is empty"):
            open_set(DatasetConfig(name=str(folder), **series))

    def test_names_of_folders_give_columns(self, folder, tmp_path):
        rows = []
        for number, kind in enumerate(("a%2Fb", "cat", "a%2Fb", "cat")):
            part = folder / f"kind={kind}" / f"age={number}"
            part.mkdir(parents=True)
            sizes = [10 * number + n for n in range(10)]
            write_parquet(part / "0.parquet", {"size": sizes})
            rows += [f"{number},{size},{kind.replace('%2F', '/')}" for size in sizes]
        found = open_set(DatasetConfig(name=str(folder), columns=TABLE, test=0.25))
        assert found.class_names == ("a/b", "cat")
        name = write_csv(tmp_path / "t.csv", "age,size,kind", rows)
        of_csv = open_set(DatasetConfig(name=name, columns=TABLE, test=0.25))
        for split, records in found.splits.items():
            together = [sorted(zip(of["inputs"].tolist(), of["labels"])) for of in (records, of_csv.splits[split])]
            assert together[0] == together[1]
        (folder / "kind=__HIVE_DEFAULT_PARTITION__" / "age=05").mkdir(parents=True)
        write_parquet(folder / "kind=__HIVE_DEFAULT_PARTITION__" / "age=05" / "0.parquet", {"size": [1]})
        with pytest.raises(UserError) as error:
            open_set(DatasetConfig(name=str(folder), columns=TABLE))
        assert [line.partition(": ")[2] for line in str(error.value).splitlines()[1:]] == [
            "age is '05'; it must be a number.",
            "kind is empty; every record needs a label.",
        ]
        with pytest.raises(UserError, match="0.parquet has no column 'weight'; its columns are size, kind, age.$"):
            open_set(DatasetConfig(name=str(folder), columns=ColumnsConfig(features=("weight",), label="kind")))

    def test_files_that_name_other_classes_are_refused(self, folder):
        write_parquet(folder / "a.parquet", self.part(0, 20), KINDS)
        write_parquet(folder / "b.parquet", self.part(20, 20), {"kind": KINDS["kind"] | {"names": ["blue", "dull"]}})
        with pytest.raises(UserError, match=f"^{folder}/a.parquet and {folder}/b.parquet name other classes in kind"):
            open_set(DatasetConfig(name=str(folder), columns=TABLE))

    def test_a_directory_without_parquet_is_refused(self, folder):
        folder = folder.rename(folder.parent / "set.parquet")
        with pytest.raises(
            UserError, match="set.parquet is a directory without Parquet files; name a .csv, .jsonl or .parquet"
        ):
            open_set(DatasetConfig(name=str(folder), columns=TABLE))
