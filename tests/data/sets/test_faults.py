"""Faults of a user's set are reported with file and line, and no record is silently left out."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from deepseek_jax.data.sets import faults, files
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig, ImagesConfig, SeriesConfig
from deepseek_jax.data.sets.images import decode
from deepseek_jax.data.sets.registry import open_set
from deepseek_jax.data.sets.splitting import digest
from deepseek_jax.errors import UserError
from tests.user_files import people, write_csv

TABLE = ColumnsConfig(features=("age", "size"), label="kind")


def write_rows(path, rows=(), header="age,size,kind") -> str:
    """Writes a .csv of `rows` followed by thirty good records, and returns its name."""
    return write_csv(path, header, [*rows, *people(30)])


def test_two_columns_of_the_same_name_are_refused(tmp_path):
    name = write_rows(tmp_path / "t.csv", header="age,age,kind")
    with pytest.raises(UserError, match="has several columns 'age'; give each a name of its own."):
        open_set(DatasetConfig(name=name, columns=ColumnsConfig(features=("age",), label="kind")))


def test_a_broken_quote_is_named_by_the_line_in_which_its_row_begins(tmp_path):
    name = write_rows(tmp_path / "t.csv", ['1,2,"a" b'])
    with pytest.raises(UserError, match="t.csv line 2: ',' expected after '\"'; what follows is not read"):
        open_set(DatasetConfig(name=name, columns=TABLE))


@pytest.mark.parametrize("header", ["age, size ,kind", 'age, "size", kind', "age,size\t, kind"])
def test_spaces_around_column_names_are_ignored(tmp_path, header):
    rows = [f'{number}, {number * 2}, "b, too"' for number in range(30, 40)]
    name = write_rows(tmp_path / "t.csv", rows, header)
    dataset = open_set(DatasetConfig(name=name, columns=TABLE))
    assert dataset.class_names == ("a", "b", "b, too")
    assert sum(len(records["ids"]) for records in dataset.splits.values()) == 40
    with pytest.raises(UserError, match="no column 'weight'; its columns are age, size, kind.$"):
        open_set(DatasetConfig(name=name, columns=ColumnsConfig(features=("age", "weight"), label="kind")))


def test_reading_a_table_does_not_keep_its_rows_in_memory(tmp_path):
    """Rows as dicts would take many times the file's size.  Splits still depend on a digest of the whole row."""
    values = np.random.default_rng(0).normal(size=(2000, 20))
    names = [f"column_{number}" for number in range(20)]
    rows = [dict(zip([*names, "café", "kind"], [*map(str, row), f"é{n}", "ab"[n % 2]])) for n, row in enumerate(values)]
    lines = [",".join(rows[0]), "", *(",".join(row.values()) for row in rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines), "utf-8")
    config = DatasetConfig(str(tmp_path / "t.csv"), columns=ColumnsConfig(features=tuple(names), label="kind"))
    tracemalloc.start()
    try:
        source = files.read(tmp_path / "t.csv", config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * (tmp_path / "t.csv").stat().st_size
    np.testing.assert_array_equal(source.records["inputs"], values.astype(np.float32))
    assert source.records["ids"].tolist() == list(range(3, 2003))
    assert source.origins == [digest(json.dumps(row, sort_keys=True).encode()) for row in rows]


def test_every_row_of_a_table_is_read(tmp_path):
    dataset = open_set(DatasetConfig(name=write_rows(tmp_path / "t.csv"), columns=TABLE))
    assert dataset.kind == "classes" and dataset.class_names == ("a", "b") and dataset.names == ("age", "size")
    ids = np.concatenate([records["ids"] for records in dataset.splits.values()])
    assert sorted(ids.tolist()) == list(range(2, 32))  # line numbers
    test = dataset.splits["test"]
    assert (test["inputs"][:, 1] == test["inputs"][:, 0] % 7).all()
    assert (test["inputs"][:, 0] % 2 == test["labels"]).all() and (test["ids"] == test["inputs"][:, 0] + 2).all()
    numbers = ColumnsConfig(features=("age",), targets=("size",))
    assert open_set(DatasetConfig(name=str(tmp_path / "t.csv"), columns=numbers)).target_names == ("size",)
    in_capitals = (tmp_path / "t.csv").rename(tmp_path / "T.CSV")
    assert open_set(DatasetConfig(name=str(in_capitals), columns=numbers)).target_names == ("size",)


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ("", ColumnsConfig(features=("age", "weight"), label="kind"), "no column 'weight'; its columns are age, size"),
        ("nan,1,a", TABLE, "t.csv line 2: age is nan; correct the record or remove it"),
        ("1,inf,a", TABLE, "t.csv line 2: size is inf"),
        ("1,1e39,a", TABLE, r"t.csv line 2: size is 1e\+39; correct the record or remove it"),
        ("old,1,a", TABLE, "t.csv line 2: age is 'old'; it must be a number"),
        ("1_2,1,a", TABLE, "t.csv line 2: age is '1_2'; it must be a number"),
        ("1,,a", TABLE, "t.csv line 2: size is ''; it must be a number"),
        ("1,2,", TABLE, "t.csv line 2: kind is empty"),
        ("1,2", TABLE, "t.csv line 2: the row does not have as many fields as the header"),
        ("1,2,a,b", TABLE, "t.csv line 2: the row does not have as many fields as the header"),
        ('1,"2,a', TABLE, "unexpected end of data"),
        ("1,2,c", dataclasses.replace(TABLE, classes=("a", "b")), "line 2: kind is 'c', which is none of .*a, b"),
        ("1,2,a", dataclasses.replace(TABLE, classes=("a", "b", "d")), "no training record is of class 'd'"),
        ("1,2,a", dataclasses.replace(TABLE, text="kind"), "name the input's column in one of text, image"),
        ("1,2,3", ColumnsConfig(features=("age", "size"), targets=("size",)), "size is a target, and as a feature"),
        ("1,2,3", dataclasses.replace(TABLE, features=("age", "kind")), "kind is a target, and as a feature it"),
        ("1,2,a", dataclasses.replace(TABLE, label=""), "name the target in one of label and targets"),
        ("1,2,a", dataclasses.replace(TABLE, split="kind"), "line 2: kind is 'a'; it must be train, val or test"),
    ],
)  # fmt: skip
def test_faults_of_a_table_are_refused(tmp_path, row, columns, message):
    name = write_rows(tmp_path / "t.csv", [row] if row else [])
    with pytest.raises(UserError, match=message):
        open_set(DatasetConfig(name=name, columns=columns))


def test_all_faults_of_a_table_are_reported_at_once(tmp_path):
    rows = ["old,1,a", "1,2,a", "1,2", "3,nan,"]
    with pytest.raises(UserError) as error:
        open_set(DatasetConfig(name=write_rows(tmp_path / "t.csv", rows), columns=TABLE))
    assert str(error.value) == (
        f"{tmp_path}/t.csv has 4 faults:\n"
        "  line 2: age is 'old'; it must be a number.\n"
        "  line 4: the row does not have as many fields as the header.\n"
        "  line 5: size is nan; correct the record or remove it.\n"
        "  line 5: kind is empty; every record needs a label."
    )


@pytest.mark.parametrize("columns", [TABLE, ColumnsConfig(features=("size",), targets=("age",))], ids=["x", "y"])
def test_numbers_that_float32_hardly_tells_apart_are_refused(tmp_path, columns):
    for step, refused in ((1, True), (100, False)):  # from 2^30 to 2^31, float32 has every 128th whole number
        rows = [f"{1_700_000_000 + step * number},1700000001,{'ab'[number % 2]}" for number in range(30)]
        name = write_csv(tmp_path / "t.csv", "age,size,kind", rows)  # a constant column loses nothing
        if refused:
            with pytest.raises(UserError, match="t.csv: age has numbers that float32, in which they are kept, hardly"):
                open_set(DatasetConfig(name=name, columns=columns))
        else:
            open_set(DatasetConfig(name=name, columns=columns))


def test_many_faults_are_counted(tmp_path):
    name = write_rows(tmp_path / "t.csv", [f"old,{number},a" for number in range(2000)] + ['1,"2,a'])
    with pytest.raises(UserError) as error:
        open_set(DatasetConfig(name=name, columns=TABLE))
    first, *lines, last = str(error.value).splitlines()
    assert first == f"{name} has 2,001 faults:" and last == "  and 1,991 more." and len(lines) == 10
    assert lines[9] == "  line 11: age is 'old'; it must be a number."


def test_all_faults_of_texts_and_pictures_are_reported_at_once(tmp_path, pictures):
    lines = ["{", '{"words": "a"}', '{"words": " ", "kind": "a"}', '{"words": "a", "kind": "a"}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    columns = ColumnsConfig(text="words", label="kind")
    with pytest.raises(UserError, match="t.jsonl has 3 faults:\n  line 1: broken JSON.\n  line 2: no key 'kind'.\n.*3"):
        open_set(DatasetConfig(name=str(tmp_path / "t.jsonl"), columns=columns))
    (tmp_path / "2.png").unlink()
    (tmp_path / "5.png").write_bytes(b"no picture")
    with pytest.raises(
        UserError, match="t.csv has 2 faults:\n  line 4: cannot read .*2.png: .*\n  line 7: .*5.png does not"
    ):
        open_set(pictures)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"words": "a"}', "t.jsonl line 1: no key 'kind'"),
        ("[1, 2]", "t.jsonl line 1: no key 'words'"),
        ("{", "t.jsonl line 1: broken JSON"),
        ('{"words": 3, "kind": "a"}', "t.jsonl line 1: words is 3; it must be text"),
        ('{"words": " ", "kind": "a"}', "t.jsonl line 1: words is ' '; it must be text"),
        ('{"words": "a", "kind": null}', "t.jsonl line 1: kind is empty"),
        ('{"words": "a", "kind": ["a", "b"]}', r"line 1: kind is \['a', 'b'\]; every record has a single label"),
        ('{"words": "a", "kind": NaN}', "t.jsonl line 1: kind is nan; correct the record or remove it"),
        (r'{"words": "a \ud83d", "kind": "a"}', "t.jsonl line 1: words contains a lone surrogate"),
        (r'{"words": "a", "kind": "\ud83d"}', "t.jsonl line 1: kind contains a lone surrogate"),
    ],
)
def test_faults_of_texts_are_refused(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text(line + "\n")
    columns = ColumnsConfig(text="words", label="kind")
    with pytest.raises(UserError, match=message):
        open_set(DatasetConfig(name=str(tmp_path / "t.jsonl"), columns=columns))


def test_numeric_labels_are_read_and_ordered(tmp_path):
    """They may be spelt in any way in JSON and have any length; classes are in numerical order where possible."""
    labels = ["10", "2", "2.0", '"2"', "0.5", f'"{"9" * 5000}"']
    lines = [f'{{"age": {place}, "kind": {label}}}\n' for place, label in enumerate(labels)]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    columns = ColumnsConfig(features=("age",), label="kind")
    dataset = open_set(DatasetConfig(name=str(tmp_path / "t.jsonl"), columns=columns, val=0.0, test=0.0))
    assert dataset.class_names == ("2", "10", "9" * 5000, "0.5")
    assert dataset.splits["train"]["labels"].tolist() == [1, 0, 0, 0, 3, 2]


@pytest.mark.parametrize(("value", "said"), [("true", "True"), ('"40"', "'40'"), ("null", "None"), ("[1]", r"\[1\]")])
def test_json_values_that_are_not_numbers_are_refused(tmp_path, value, said):
    (tmp_path / "t.jsonl").write_text(f'{{"age": {value}, "kind": "a"}}\n')
    columns = ColumnsConfig(features=("age",), label="kind")
    with pytest.raises(UserError, match=f"t.jsonl line 1: age is {said}; it must be a number"):
        open_set(DatasetConfig(name=str(tmp_path / "t.jsonl"), columns=columns))


def test_a_users_texts_are_read_with_their_own_splits(tmp_path):
    splits = ["train"] * 8 + ["test"] * 4
    rows = [{"words": f"word {n}", "kind": n % 2, "part": split} for n, split in enumerate(splits)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    columns = ColumnsConfig(text="words", label="kind", split="part")
    settings = DatasetConfig(name=str(tmp_path / "t.jsonl"), columns=columns, vocab_size=300, directory=str(tmp_path))
    dataset = open_set(settings)
    assert dataset.class_names == ("0", "1")
    assert dataset.splits["test"]["ids"].tolist() == [17, 19, 21, 23]
    (tmp_path / "latin.jsonl").write_bytes('{"words": "é", "kind": 1}'.encode("latin-1"))
    with pytest.raises(UserError, match="latin.jsonl is not UTF-8"):
        open_set(dataclasses.replace(settings, name=str(tmp_path / "latin.jsonl")))
    with pytest.raises(UserError, match="there is no file"):
        open_set(dataclasses.replace(settings, name=str(tmp_path / "other.jsonl")))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(
        UserError, match="folder.csv is a directory without Parquet files; name a .csv, .jsonl or .parq"
    ):
        open_set(dataclasses.replace(settings, name=str(tmp_path / "folder.csv")))
    with pytest.raises(UserError, match="cannot read .*: Not a directory; name a file"):
        open_set(dataclasses.replace(settings, name=str(tmp_path / "t.jsonl/t.csv")))


def test_a_vocabulary_too_small_for_all_bytes_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"words": "a", "kind": 0}\n{"words": "b", "kind": 1}\n')
    columns = ColumnsConfig(text="words", label="kind")
    with pytest.raises(UserError, match="^dataset.vocab_size is 100; a byte-level vocabulary needs at least 262"):
        open_set(DatasetConfig(str(tmp_path / "t.jsonl"), columns=columns, vocab_size=100, directory=str(tmp_path)))


def test_a_long_text_in_a_csv_is_read_whole(tmp_path):
    rows = [f"{'word ' * 30_000}{number},{number % 2}" for number in range(2)]
    write_csv(tmp_path / "t.csv", "words,kind", rows)
    columns = ColumnsConfig(text="words", label="kind")
    settings = {"columns": columns, "vocab_size": 300, "directory": str(tmp_path), "val": 0.0, "test": 0.0}
    texts = open_set(DatasetConfig(name=str(tmp_path / "t.csv"), **settings)).splits["train"]["texts"]
    assert [len(text) for text in texts] == [150_001] * 2


def test_a_byte_order_mark_is_ignored(tmp_path):
    """The byte order mark that editors on Windows write."""
    rows = [json.dumps({"words": f"word {n}", "kind": n % 2}) for n in range(12)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows), encoding="utf-8-sig")
    columns = ColumnsConfig(text="words", label="kind")
    settings = DatasetConfig(name=str(tmp_path / "t.jsonl"), columns=columns, vocab_size=300, directory=str(tmp_path))
    assert sum(len(records["ids"]) for records in open_set(settings).splits.values()) == 12


@pytest.fixture
def pictures(tmp_path):
    """The config of a set of twelve 6 x 5 pictures: a .csv and the picture files."""
    for number in range(12):
        Image.fromarray(np.full((6, 5, 3), 20 * number, np.uint8)).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{number % 2}" for number in range(12)]
    write_csv(tmp_path / "t.csv", "file,label", rows)
    return DatasetConfig(name=str(tmp_path / "t.csv"), columns=ColumnsConfig(image="file", label="label"))


def test_a_users_pictures_are_read(pictures):
    assert open_set(pictures).shape() == {"height": 6, "width": 5, "channels": 1}
    colour = open_set(dataclasses.replace(pictures, images=ImagesConfig(channels=3)))
    assert (colour.splits["train"]["inputs"] == colour.splits["train"]["inputs"][:, :1, :1, :1]).all()


def test_dropping_colours_is_noted(pictures, tmp_path):
    assert not open_set(pictures).notes
    Image.new("RGB", (5, 6), (200, 30, 30)).save(tmp_path / "11.png")
    (note,) = open_set(pictures).notes
    assert note.endswith("t.csv has pictures in colour, which dataset.images.channels=1 turns to grey; 3 keeps them.")
    assert not open_set(dataclasses.replace(pictures, images=ImagesConfig(channels=3))).notes


def test_a_picture_that_does_not_decode_is_refused(pictures, tmp_path):
    whole = (tmp_path / "7.png").read_bytes()
    header = np.zeros(31, "<u4")  # of a DDS file: its size, the picture's, and of the pixels' format its size and kind
    header[[0, 2, 3, 18, 19]] = 124, 6, 5, 32, 2
    unknown = b"DDS " + header.tobytes(), "Unknown pixel format flags 2"
    for data, reason in ((b"no picture", "the format is unknown"), (whole[:48], "truncated"), unknown):
        (tmp_path / "7.png").write_bytes(data)
        with pytest.raises(UserError, match=f"t.csv line 9: .*7.png does not decode as an image: .*{reason}"):
            open_set(pictures)
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("5.png", "5\0.png"))
    with pytest.raises(UserError, match=r"line 7: file is '5\\x00.png', which is not a valid file name"):
        open_set(pictures)
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("\0", ""))
    (tmp_path / "7.png").unlink()
    with pytest.raises(UserError, match="t.csv line 9: cannot read .*7.png: No such file"):
        open_set(pictures)


def test_dropping_grey_levels_is_noted(tmp_path):
    for most, noted in ((4095, True), (4096, False)):
        for number in range(6):
            greys = np.full((6, 5), number, np.uint16)
            greys[0, 0] = most
            Image.fromarray(greys).save(tmp_path / f"{number}.png")
        name = write_csv(tmp_path / "t.csv", "file,label", [f"{number}.png,{number % 2}" for number in range(6)])
        notes = open_set(DatasetConfig(name, columns=ColumnsConfig(image="file", label="label"), val=0, test=0)).notes
        assert [note.split(" has ")[1] for note in notes] == noted * [
            "pictures of 16 bits with values up to 4,095, of which 8 bits keep 16 levels; scale them to the range up "
            "to 65,535."
        ]


def test_a_16_bit_picture_is_scaled_to_8_bits(tmp_path):
    greys = np.arange(0, 256, 4, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(greys * 257).save(tmp_path / "deep.png")
    read = decode((tmp_path / "deep.png").read_bytes(), "deep.png", DatasetConfig())
    assert (read[..., 0] == greys).all()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_a_32_bit_picture_is_refused(tmp_path, kind):
    Image.fromarray(np.eye(8, dtype=kind)).save(tmp_path / "deep.tiff")
    with pytest.raises(UserError, match="deep.tiff does not decode as an image: its pixels are numbers of 32 bits"):
        decode((tmp_path / "deep.tiff").read_bytes(), "deep.tiff", DatasetConfig())


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_read_as_a_viewer_shows_it(tmp_path, orientation, suffix):
    """Cameras store the picture as the sensor saw it, and in an EXIF tag how the camera was held."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:8, :16], pixels[24:, :8] = 255, 128
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / f"photo.{suffix}", exif=exif, quality=95)
    read = decode((tmp_path / f"photo.{suffix}").read_bytes(), "photo", DatasetConfig(images=ImagesConfig(channels=3)))
    with Image.open(tmp_path / f"photo.{suffix}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read, expected)
    assert read.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))
    if orientation == 6:  # a phone held upright, the most common case: the stored left edge is the top
        assert read[:16, -8:].min() > 200 and read[:16, :16].max() < 200


def test_a_picture_with_a_broken_exif_block_is_read(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(6, 10)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode((tmp_path / "photo.png").read_bytes(), "x", DatasetConfig())[..., 0], pixels)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=b"nonsense")
    np.testing.assert_array_equal(decode((tmp_path / "photo.png").read_bytes(), "x", DatasetConfig())[..., 0], pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparent_pixels_become_white(tmp_path, mode):
    """A black stroke on a transparent background, as drawing programs save it."""
    drawing = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (2, 0, 4, 4))
    drawing.putpixel((0, 0), (0, 0, 0, 128))
    if "A" in mode:
        drawing.convert(mode).save(tmp_path / "drawing.png")
    else:  # one colour marked as transparent
        Image.fromarray(np.uint8([[0, 7, 1, 1, 7, 7]] * 4)).convert(mode).save(tmp_path / "drawing.png", transparency=7)
    read = decode((tmp_path / "drawing.png").read_bytes(), "drawing", DatasetConfig())[..., 0]
    assert (read[:, [1, 4, 5]] == 255).all() and (read[:, 2:4] <= 1).all()
    assert read[0, 0] == (127 if "A" in mode else 0)


def test_pictures_of_two_sizes_are_refused_without_a_size_to_resize_to(pictures, tmp_path):
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "3.png")
    with pytest.raises(UserError, match="6 x 5, that of line 5 is 8 x 9; set dataset.images.height"):
        open_set(pictures)
    assert open_set(dataclasses.replace(pictures, images=ImagesConfig(4, 4))).shape()["height"] == 4


def test_faults_of_built_in_sets_are_refused(uneven, opened):
    """Sets that are not read from a user's file are checked too."""

    def broken(**columns):
        return dataclasses.replace(uneven, records=uneven.records | columns)

    inputs, labels = uneven.records["inputs"].copy(), uneven.records["labels"].copy()
    inputs[17, 2, 1, 0] = np.nan
    labels[42] = 3
    with pytest.raises(UserError, match="uneven: record 17 has nan; correct it"):
        opened(broken(inputs=inputs))
    with pytest.raises(UserError, match="uneven: record 42 has label 3; its 3 classes are numbered from 0"):
        opened(broken(labels=labels))
    labels[labels == 2] = 0
    labels[42] = 0
    with pytest.raises(UserError, match="no training record is of class 'few'"):
        opened(broken(labels=labels))
    numbers = {"ids": uneven.records["ids"], "inputs": inputs[..., 0, 0], "targets": np.zeros((100, 1), np.float32)}
    table = dataclasses.replace(uneven, kind="numbers", input="table", records=numbers, names=tuple("abcd"))
    with pytest.raises(UserError, match="record 17 has nan in c"):
        opened(dataclasses.replace(table, records=numbers | {"inputs": inputs[:, :, 1, 0]}), test=0.0, val=0.0)
    with pytest.raises(UserError, match="dataset.balance is weights, but uneven asks for numbers"):
        opened(dataclasses.replace(table, target_names=("t",)), balance="weights")


@pytest.mark.parametrize("box", [(0.5, 0.1, 0.4, 0.9), (-0.1, 0, 1, 1), (0, 0, 1, 1.1)])
def test_invalid_boxes_are_refused(uneven, opened, box):
    boxes = np.tile(np.float32([0, 0, 1, 1]), (100, 2, 1))
    boxes[5, 1] = box
    records = {name: uneven.records[name] for name in ("ids", "inputs")} | {"boxes": boxes}
    records["box_labels"] = np.tile(np.int32([0, 1]), (100, 1))
    source = dataclasses.replace(uneven, kind="boxes", records=records, class_names=("a", "b"))
    with pytest.raises(UserError, match="uneven: record 5 has box .* it must be y0 x0 y1 x1"):
        opened(source)
    records["box_labels"][5, 1] = -1  # without a label it is not a box, and may hold anything
    assert opened(source).outputs == 2


def test_the_format_of_a_file_is_determined_once_not_per_number(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(faults, "format_of", lambda path: told.append(path) or ".csv")
    open_set(DatasetConfig(name=write_rows(tmp_path / "t.csv"), columns=TABLE))
    assert len(told) == 1


def test_constant_targets_are_refused(tmp_path):
    """Constant targets used to be trained on and scored."""
    write_csv(tmp_path / "t.csv", "x,y,z", (f"{number},{number * 2},5" for number in range(20)))
    columns = ColumnsConfig(features=("x",), targets=("y", "z"))
    sentence = "t.csv: z is 5 in every training record; take it out of dataset.columns.targets.$"
    with pytest.raises(UserError, match=sentence):
        open_set(DatasetConfig(name=str(tmp_path / "t.csv"), columns=columns))
    of_series = {"columns": ColumnsConfig(series="z"), "series": SeriesConfig(window=3, horizon=2)}
    with pytest.raises(UserError, match="t.csv: z never changes in training; there is nothing to forecast.$"):
        open_set(DatasetConfig(name=str(tmp_path / "t.csv"), **of_series, val=0, test=0))
    of_series["columns"] = ColumnsConfig(series="x")  # rises evenly, and can be forecast
    assert len(open_set(DatasetConfig(name=str(tmp_path / "t.csv"), **of_series, val=0, test=0)).splits["train"]["ids"])


@pytest.mark.parametrize("key", ["features", "targets"])
def test_a_column_that_is_named_twice_is_refused(tmp_path, key):
    columns = {"features": ("age",), "targets": ("size",)}
    columns[key] *= 2
    with pytest.raises(UserError, match=f"dataset.columns.{key} has '{columns[key][0]}' twice"):
        open_set(DatasetConfig(name=write_rows(tmp_path / "t.csv"), columns=ColumnsConfig(**columns)))
