"""Boxes in a user's own pictures: read, moved with their picture, and refused with file and line if invalid."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from deepseek_jax.data.augment.config import AugmentConfig, ImageAugmentConfig
from deepseek_jax.data.sets.batches import train_batches
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig, ImagesConfig
from deepseek_jax.data.sets.registry import open_set
from deepseek_jax.errors import UserError

COLUMNS = ColumnsConfig(image="file", boxes="boxes", label="labels")
WHOLE = {"val": 0.0, "test": 0.0}


def write(folder, rows: list[dict], **settings) -> DatasetConfig:
    """Writes a set of these rows (boxes and labels); each picture is 40 high, 20 wide, and white in its first box."""
    lines = []
    for number, row in enumerate(rows):
        pixels = np.full((40, 20), number, np.uint8)
        if row["boxes"]:
            left, top, right, bottom = row["boxes"][0]
            pixels[top:bottom, left:right] = 255
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(json.dumps({"file": f"{number}.png"} | row) + "\n")
    (folder / "t.jsonl").write_text("".join(lines))
    return DatasetConfig(name=str(folder / "t.jsonl"), **{"columns": COLUMNS} | settings)


def drawn(count: int) -> list[dict]:
    """Rows with 0, 1 and 2 boxes in turn, of classes dog and cat."""
    rows = []
    for number in range(count):
        boxes = [[2 + number % 5, 4, 10 + number % 5, 20], [0, 30, 20, 40]][: number % 3]
        rows.append({"boxes": boxes, "labels": ["dog", "cat"][: len(boxes)]})
    return rows


def test_boxes_are_stored_as_fractions_of_the_picture(tmp_path):
    train = open_set(write(tmp_path, drawn(3), **WHOLE)).splits["train"]
    assert train["boxes"].shape == (3, 2, 4) and train["boxes"].dtype == np.float32
    assert train["box_labels"].tolist() == [[-1, -1], [1, -1], [1, 0]]
    np.testing.assert_allclose(train["boxes"][2], [[0.1, 0.2, 0.5, 0.6], [0.75, 0, 1, 1]], rtol=1e-6)
    assert not train["boxes"][0].any()


@pytest.mark.parametrize("seed", range(3))
def test_each_split_has_its_share_of_a_rare_class(tmp_path, seed):
    rows = [{"boxes": [[2, 4, 10, 20]] * 2, "labels": ["dog", "cat" if number < 10 else "dog"]} for number in range(50)]
    splits = open_set(write(tmp_path, rows, val=0.1, test=0.2, seed=seed)).splits
    cats = {name: int((records["box_labels"] == 0).sum()) for name, records in splits.items()}
    assert cats == {"train": 7, "val": 1, "test": 2}
    assert {name: len(records["ids"]) for name, records in splits.items()} == {"train": 35, "val": 5, "test": 10}


@pytest.mark.parametrize("size", [(0, 0), (20, 40)])
def test_boxes_match_rotated_and_resized_pictures(tmp_path, size):
    """Also in pictures that are rotated by their EXIF tag and resized."""
    settings = write(tmp_path, drawn(3), images=ImagesConfig(*size), **WHOLE)
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation tag of a phone held upright
    for number in range(3):
        with Image.open(tmp_path / f"{number}.png") as upright:
            upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"{number}.png", exif=exif)
    train = open_set(settings).splits["train"]
    _, H, W, _ = train["inputs"].shape
    y0, x0, y1, x1 = np.round(train["boxes"][1, 0] * [H, W, H, W]).astype(int)
    white = train["inputs"][1, ..., 0] > 128
    assert white[y0:y1, x0:x1].all() and white.sum() == (y1 - y0) * (x1 - x0)


def test_boxes_move_with_their_picture(tmp_path):
    rows = [{"boxes": [[2 + number, 4, 10 + number, 20]], "labels": ["cat"]} for number in range(8)]
    dataset = open_set(write(tmp_path, rows, **WHOLE))
    assert dataset.class_names == ("cat",)  # a single class suffices for detection
    batch = next(train_batches(dataset, 8, seed=0, augment=AugmentConfig(image=ImageAugmentConfig(flip=1.0))))
    raw = batch["inputs"] * np.float32(dataset.scaling.input_deviation) + np.float32(dataset.scaling.input_mean)
    for picture, box in zip(raw[..., 0], batch["boxes"][:, 0], strict=True):
        y0, x0, y1, x1 = np.round(box * [40, 20, 40, 20]).astype(int)
        assert (picture[y0:y1, x0:x1] > 0.9).all() and (picture > 0.9).sum() == (y1 - y0) * (x1 - x0) == 128


def test_sets_with_boxes_can_be_split_by_content_or_column_and_filtered(tmp_path):
    by_content = open_set(write(tmp_path, drawn(30)))
    assert [len(records["ids"]) for records in by_content.splits.values()] == [21, 3, 6]
    (tmp_path / "left_out.txt").write_text(str(by_content.splits["train"]["ids"][0]))
    shorter = open_set(dataclasses.replace(write(tmp_path, drawn(30)), exclude=str(tmp_path / "left_out.txt")))
    assert [len(records["ids"]) for records in shorter.splits.values()] == [20, 3, 6]
    given = [row | {"part": "test" if number < 6 else "train"} for number, row in enumerate(drawn(30))]
    given = open_set(write(tmp_path, given, columns=dataclasses.replace(COLUMNS, split="part"), val=0.0))
    assert given.splits["test"]["ids"].tolist() == [1, 2, 3, 4, 5, 6]
    assert given.splits["test"]["boxes"].shape == (6, 2, 4)


@pytest.mark.parametrize(
    ("boxes", "labels", "said"),
    [
        ("none", [], "boxes is 'none'; it must be a list with an entry for each box"),
        ([], "cat", "labels is 'cat'; it must be a list with an entry for each box"),
        (None, [], "boxes is None; it must be a list"),
        ([[1, 2, 3, 4]], [], "boxes has 1 entries, labels has 0; each box needs a label"),
        ([1], ["cat"], "boxes has 1; a box must be four numbers: left, top, right and bottom"),
        ([[1, 2, 3]], ["cat"], r"boxes has \[1, 2, 3\]; a box must be four numbers"),
        ([[1, 2, 3, "4"]], ["cat"], "a box must be four numbers"),
        ([[False, 2, 3, 4]], ["cat"], "a box must be four numbers"),
        ([[1, 2, 3, float("nan")]], ["cat"], r"boxes has \[1, 2, 3, nan\]; a box must be four numbers"),
        ([[1, 2, 3, 10**400]], ["cat"], "a box must be four numbers"),
        ([[3, 2, 3, 4]], ["cat"], r"boxes has \[3, 2, 3, 4\]; right must be more than left, and bottom more than top"),
        ([[1, 5, 3, 4]], ["cat"], "bottom more than top"),
        ([[1, 2, 1 + 1e-9, 4]], ["cat"], "right must be more than left"),  # equal in float32
        ([[1, 2, 20.5, 4]], ["cat"], "the picture ends at right 20 and bottom 40, and begins at 0"),
        ([[1, 2, 3, 41]], ["cat"], "the picture ends at right 20 and bottom 40"),
        ([[-1, 2, 3, 4]], ["cat"], "and begins at 0"),
        ([[1, 2, 3, 4]], [" "], "an entry of labels is empty; every box needs a label"),
        ([[1, 2, 3, 4]], ["cow"], "an entry of labels is 'cow', which is none of dataset.columns.classes .cat, dog"),
    ],
)  # fmt: skip
def test_faulty_boxes_are_refused_with_file_and_line(tmp_path, boxes, labels, said):
    settings = write(tmp_path, drawn(3), columns=dataclasses.replace(COLUMNS, classes=("cat", "dog")))
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write(json.dumps({"file": "0.png", "boxes": boxes, "labels": labels}) + "\n")
    with pytest.raises(UserError, match=f"^{tmp_path}/t.jsonl line 4: .*{said}"):
        open_set(settings)


def test_boxes_of_widths_and_heights_are_those_of_corners(tmp_path):
    """COCO's are rounded to hundredths, so that their sums may exceed the picture a little."""
    corners = open_set(write(tmp_path, drawn(30)))
    with_sizes = [
        row | {"sized": [[left, top, right - left, bottom - top] for left, top, right, bottom in row["boxes"]]}
        for row in drawn(30)
    ]
    columns = dataclasses.replace(COLUMNS, boxes="sized", xywh=True)
    settings = write(tmp_path, with_sizes, columns=columns)
    assert open_set(settings).fingerprint == corners.fingerprint
    with_sizes[2]["sized"][1] = [0, 30, 20.01, 10.01]
    assert open_set(write(tmp_path, with_sizes, columns=columns)).fingerprint == corners.fingerprint


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([1, 2, 3], "a box must be four numbers: left, top, width and height"),
        ([3, 2, 0, 4], "width and height must be more than 0"),
        ([3, 2, 4, -1], "width and height must be more than 0"),
        ([10, 2, 10.02, 4], "the picture ends at right 20 and bottom 40"),
        ([-1, 2, 10, 4], "the picture ends at right 20 and bottom 40, and begins at 0"),
    ],
)
def test_faulty_boxes_of_widths_and_heights_are_refused(tmp_path, box, said):
    settings = write(tmp_path, drawn(3), columns=dataclasses.replace(COLUMNS, xywh=True))
    (tmp_path / "t.jsonl").write_text(json.dumps({"file": "0.png", "boxes": [box], "labels": ["cat"]}) + "\n")
    with pytest.raises(UserError, match=f"t.jsonl line 1: boxes has .*{said}"):
        open_set(settings)


def test_all_faults_of_boxes_are_reported_at_once(tmp_path):
    settings = write(tmp_path, drawn(3))
    rows = [{"file": "no.png", "boxes": [[1, 2, 99, 4]], "labels": ["cat"]}, {"file": "0.png", "labels": []}]
    rows.append({"file": "0.png", "boxes": [[1, 2, 1, 4], [1, 2, 3, 99]], "labels": ["cat", None]})
    with (tmp_path / "t.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(UserError) as error:
        open_set(settings)
    assert [line.split(";")[0] for line in str(error.value).splitlines()] == [
        f"{tmp_path}/t.jsonl has 5 faults:",
        f"  line 4: cannot read {tmp_path}/no.png: No such file or directory.",
        "  line 5: no key 'boxes'.",
        "  line 6: boxes has [1, 2, 1, 4]",
        "  line 6: boxes has [1, 2, 3, 99]",
        "  line 6: an entry of labels is empty",
    ]


@pytest.mark.parametrize("empty", ["train", "val", "test"])
def test_a_split_without_any_box_is_refused(tmp_path, empty):
    """Training would learn nothing from it; its score would be NaN, on which early stopping would stop."""
    rows = [row | {"part": split} for split in ("train", "val", "test") for row in drawn(3)]
    rows = [row | {"boxes": [], "labels": []} if row["part"] == empty else row for row in rows]
    with pytest.raises(UserError, match=f"t.jsonl: no picture of the split {empty} has a box"):
        open_set(write(tmp_path, rows, columns=dataclasses.replace(COLUMNS, split="part")))


def test_a_set_without_any_box_is_refused(tmp_path):
    with pytest.raises(UserError, match="t.jsonl: no picture of the split train has a box to find"):
        open_set(write(tmp_path, [{"boxes": [], "labels": []}] * 4))


def test_columns_that_do_not_go_with_boxes_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("file,boxes,labels\n0.png,[],[]\n")
    with pytest.raises(UserError, match="a .csv such as .*t.csv holds no lists; give boxes in a .jsonl"):
        open_set(DatasetConfig(name=str(tmp_path / "t.csv"), columns=COLUMNS))
    for lacks in ({"image": ""}, {"image": "", "text": "file"}, {"label": ""}, {"label": "", "targets": ("labels",)}):
        with pytest.raises(UserError, match="dataset.columns.boxes needs the columns of the pictures' files and of"):
            open_set(DatasetConfig(name=str(tmp_path / "t.csv"), columns=dataclasses.replace(COLUMNS, **lacks)))
    (tmp_path / "t.csv").rename(tmp_path / "t.jsonl")
    for more, one_of in (
        ({"text": "file"}, "text, image, features and series"),
        ({"targets": ("a",)}, "label and targets"),
    ):
        with pytest.raises(UserError, match=f"in one of {one_of}"):
            open_set(DatasetConfig(name=str(tmp_path / "t.jsonl"), columns=dataclasses.replace(COLUMNS, **more)))
