"""Image augmentation: boxes move with their pictures, labels follow the pixels, draws do not depend on the batch."""

import dataclasses

import numpy as np
import pytest

from deepseek_jax.data.augment import checks
from deepseek_jax.data.augment.config import AugmentConfig, ImageAugmentConfig, TextAugmentConfig
from deepseek_jax.data.augment.draws import Draws
from deepseek_jax.data.augment.geometry import Moves, draw_moves, keeping_boxes, move, move_boxes, resample
from deepseek_jax.data.augment.image import augment_images
from deepseek_jax.data.augment.mixing import mix
from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.errors import UserError

B, H, W = 64, 40, 48


def draws(count=B, seed=0, epoch=0, first=0):
    index = np.arange(first, first + count)
    return Draws(seed, index, np.full(count, epoch), np.zeros(count, int))


@pytest.fixture
def squares():
    """Black pictures, each with one white rectangle and its box."""
    rng = np.random.default_rng(0)
    pictures, boxes = np.zeros((B, H, W, 1), np.float32), np.zeros((B, 2, 4), np.float32)
    for picture, box in zip(pictures, boxes, strict=True):
        y, x, h, w = rng.integers(12, 20), rng.integers(14, 24), rng.integers(6, 12), rng.integers(6, 12)
        picture[y : y + h, x : x + w] = 1
        box[0] = np.array([y, x, y + h, x + w]) / [H, W, H, W]
    return {"inputs": pictures, "boxes": boxes, "box_labels": np.tile(np.int32([3, -1]), (B, 1))}


def outline(picture, threshold=0.5):
    rows, columns = np.nonzero(picture[..., 0] > threshold)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / [H, W, H, W]


@pytest.mark.parametrize(
    "config",
    [
        ImageAugmentConfig(scale=0.4),
        ImageAugmentConfig(crop=0.2),
        ImageAugmentConfig(flip=1.0),
        ImageAugmentConfig(scale=0.2, crop=0.15, flip=0.5),
    ],
)
def test_boxes_move_with_the_pixels(squares, config):
    moved = move(squares, config, draws())
    assert (moved["box_labels"] == squares["box_labels"]).all()
    for picture, boxes in zip(moved["inputs"], moved["boxes"], strict=True):
        assert np.abs((outline(picture) - boxes[0]) * [H, W, H, W]).max() <= 1.01  # pixels
        assert not boxes[1].any()
    assert np.abs(moved["boxes"] - squares["boxes"]).max() > 0.02


def test_a_rotated_box_encloses_the_rotated_pixels(squares):
    moved = move(squares, ImageAugmentConfig(rotate=30), draws())
    for picture, boxes in zip(moved["inputs"], moved["boxes"], strict=True):
        inside = outline(picture)
        assert (boxes[0][:2] * [H, W] <= inside[:2] * [H, W] + 1).all()
        assert (boxes[0][2:] * [H, W] >= inside[2:] * [H, W] - 1).all()


def test_moves_by_whole_pixels_are_exact():
    """A quarter turn and a mirror image, compared with numpy."""
    pictures = np.random.default_rng(0).random((2, 6, 6, 3), np.float32)
    quarter = Moves(np.array([[[0.0, 1], [-1, 0]], [[1, 0], [0, -1]]]), np.array([[0.0, 6], [0, 6]]))
    turned = resample(pictures, quarter)
    assert np.allclose(turned[0], np.rot90(pictures[0], -1), atol=1e-6)
    assert np.allclose(turned[1], pictures[1, :, ::-1], atol=1e-6)
    nothing = draw_moves(ImageAugmentConfig(), draws(2), 6, 6)
    assert (resample(pictures, nothing) == pictures).all()


def test_pixels_from_outside_the_picture_are_black():
    moves = Moves(np.eye(2)[None], np.array([[2.0, -3.0]]))
    moved = resample(np.ones((1, 6, 6, 1), np.float32), moves)[0, :, :, 0]
    assert (moved[:2] == 0).all() and (moved[:, 3:] == 0).all() and (moved[2:, :3] == 1).all()


def test_boxes_are_clipped_at_the_edge_and_dropped_below_keep_box():
    boxes = np.float32([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    labels = np.int32([[1, 2]])
    left = Moves(np.eye(2)[None], np.array([[0.0, -40.0]]))  # 0.4 of the width, which leaves a fifth of the first box
    kept, kept_labels = move_boxes(boxes, labels, left, 100, 100, keep=0.15)
    assert np.allclose(kept[0], [[0, 0, 0.5, 0.1], [0.5, 0.1, 1, 0.6]]) and kept_labels.tolist() == [[1, 2]]
    still = Moves(np.eye(2)[None], np.zeros((1, 2)))
    assert move_boxes(boxes, labels, still, 100, 100, keep=1.0)[1].tolist() == [[1, 2]]
    kept, kept_labels = move_boxes(boxes, labels, left, 100, 100, keep=0.25)
    assert np.allclose(kept[0], [[0, 0, 0, 0], [0.5, 0.1, 1, 0.6]]) and kept_labels.tolist() == [[-1, 2]]


def test_a_picture_that_would_lose_every_box_is_drawn_again_or_left_as_it_is(squares):
    """Crops of a tenth to all of the picture often lose its only box."""
    config = ImageAugmentConfig(crop=0.9, keep_box=0.9)
    first = draw_moves(config, draws(), H, W)
    _, labels = move_boxes(squares["boxes"], squares["box_labels"], first, H, W, config.keep_box)
    lost = ~(labels >= 0).any(1)
    moves, stayed = keeping_boxes(squares, config, draws())
    assert 0 < stayed.sum() < lost.sum()
    assert (moves.matrix_B22[~lost] == first.matrix_B22[~lost]).all()
    moved = move(squares, config, draws())
    assert (moved["inputs"][stayed] == squares["inputs"][stayed]).all()
    assert (moved["boxes"][stayed] == squares["boxes"][stayed]).all()
    assert (moved["box_labels"][:, 0] == 3).all()


def test_a_picture_without_boxes_is_moved_too(squares):
    empty = squares | {"box_labels": np.full((B, 2), -1, np.int32)}
    moves, stayed = keeping_boxes(empty, ImageAugmentConfig(crop=0.9, keep_box=0.9), draws())
    assert not stayed.any() and (moves.matrix_B22[:, 0, 0] > 1).all()


def test_cutout_hides_a_square_but_never_every_box(squares):
    config = ImageAugmentConfig(cutout=0.5, keep_box=0.8)
    cut = augment_images(squares | {"inputs": np.maximum(squares["inputs"], 0.5)}, config, draws())
    hidden = (cut["inputs"] == 0).mean((1, 2, 3))
    whole = hidden == 0
    assert 0 < whole.sum() < B and hidden.max() <= 20 * 20 / (H * W)
    assert (cut["box_labels"][:, 0] == 3).all()
    two = {name: values.copy() for name, values in squares.items()}
    two["boxes"][:, 1], two["box_labels"][:, 1] = (0, 0, 0.1, 0.1), 5
    cut = augment_images(two | {"inputs": np.ones_like(two["inputs"])}, config, draws())
    labels = cut["box_labels"]
    assert (labels >= 0).any(1).all() and (labels < 0).any()
    for picture, box, label in zip(cut["inputs"], two["boxes"][:, 0] * [H, W, H, W], labels[:, 0], strict=True):
        y0, x0, y1, x1 = box.round().astype(int)
        assert (label >= 0) == ((picture[y0:y1, x0:x1] == 0).mean() <= 0.2 + 1e-6)


def test_a_wholly_hidden_box_is_dropped_even_with_keep_box_zero(squares):
    """A second box covers the whole picture, so that the square is not rejected."""
    boxes = squares["boxes"].copy()
    boxes[:, 1] = 0, 0, 1, 1
    two = {"inputs": np.ones_like(squares["inputs"]), "boxes": boxes, "box_labels": np.tile(np.int32([3, 4]), (B, 1))}
    cut = augment_images(two, ImageAugmentConfig(cutout=0.9, keep_box=0.0), draws())
    shown = [
        picture[slice(*box[::2]), slice(*box[1::2])].any()
        for picture, box in zip(cut["inputs"], (boxes[:, 0] * [H, W, H, W]).round().astype(int), strict=True)
    ]
    assert ((cut["box_labels"][:, 0] >= 0) == shown).all() and not all(shown) and (cut["box_labels"][:, 1] == 4).all()


def test_brightness_and_noise_have_their_ranges_and_are_clipped():
    pictures = np.full((B, 30, 30, 1), 0.5, np.float32)
    bright = augment_images({"inputs": pictures}, ImageAugmentConfig(brightness=0.2), draws())["inputs"]
    levels = bright[:, 0, 0, 0]
    assert (bright == levels[:, None, None, None]).all() and 0.4 <= levels.min() < 0.45 < 0.55 < levels.max() <= 0.6
    noisy = augment_images({"inputs": pictures}, ImageAugmentConfig(noise=0.1), draws())["inputs"]
    assert abs(noisy.std() - 0.1) < 0.002 and abs(noisy.mean() - 0.5) < 0.002
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.15
    strong = augment_images({"inputs": pictures}, ImageAugmentConfig(noise=2.0, brightness=1.0), draws())["inputs"]
    assert strong.min() == 0 and strong.max() == 1


def mixed(config, count=400):
    """Black pictures of class 0, mixed with white ones of class 1 and of weight 3."""
    black = {"inputs": np.zeros((count, 20, 20, 1), np.float32), "labels": np.tile(np.float32([1, 0]), (count, 1))}
    white = {"inputs": 1 - black["inputs"], "labels": 1 - black["labels"], "weights": np.full(count, 3, np.float32)}
    return mix(black | {"weights": np.ones(count, np.float32)}, white, config, draws(count))


@pytest.mark.parametrize(
    "config", [ImageAugmentConfig(mixup=0.4), ImageAugmentConfig(cutmix=1.0), ImageAugmentConfig(mixup=1, cutmix=1)]
)
def test_mixed_labels_and_weights_follow_the_pixels(config):
    batch = mixed(config)
    share = batch["inputs"].mean((1, 2, 3))
    assert np.allclose(batch["weights"][:, None] * batch["labels"], np.stack([1 - share, 3 * share], 1), atol=1e-5)
    assert np.allclose(batch["labels"].sum(1), 1)
    grey = ((batch["inputs"] > 0.01) & (batch["inputs"] < 0.99)).any((1, 2, 3)).mean()
    assert grey > 0.5 if not config.cutmix else grey == 0 if not config.mixup else 0.4 < grey < 0.6


def test_mixup_shares_follow_the_beta_distribution():
    share = mixed(ImageAugmentConfig(mixup=0.4))["inputs"].mean((1, 2, 3))
    assert abs(share.mean() - 0.5) < 0.05 and abs(share.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.02


def test_draws_depend_on_record_epoch_copy_seed_and_name_alone():
    whole, part = draws(), draws(8, first=8)
    assert (whole.uniform("a")[8:16] == part.uniform("a")).all()
    assert (whole.normal("n", (3, 3))[8:16] == part.normal("n", (3, 3))).all()
    assert [g.random() for g in whole.generators("g")[8:10]] == [g.random() for g in part.generators("g")[:2]]
    index, zeros = np.arange(B), np.zeros(B, int)
    others = [
        draws(epoch=1),
        draws(seed=1),
        Draws(0, index, zeros, zeros + 1),
        draws().again("x"),
        Draws(0, zeros, index, zeros),
    ]
    for other in others:
        assert (whole.uniform("a") == other.uniform("a")).sum() <= 1  # in the last, record 0 has the same draw
    assert not (whole.uniform("a") == whole.uniform("b")).any()
    many = draws(20_000).uniform("a", -1, 3)
    assert abs(many.mean() - 1) < 0.03 and abs(many.var() - 16 / 12) < 0.03 and many.min() >= -1 and many.max() < 3
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 0.03
    assert (np.bincount(draws(20_000).integers("i", 4)) > 4800).all()


def detection(squares) -> Dataset:
    records = squares | {"ids": np.arange(B)}
    empty = {name: values[:0] for name, values in records.items()}
    return Dataset(
        "squares", "boxes", "image", {"train": records, "val": empty, "test": empty}, ("a", "b", "c", "d")[:4]
    )


def test_augmentations_that_do_not_fit_the_set_are_refused(squares, digits_like):
    three = squares | {"box_labels": np.stack([np.arange(B) % 4, np.full(B, -1)], 1).astype(np.int32)}
    boxes = detection(three)
    checks.check(AugmentConfig(image=ImageAugmentConfig(rotate=10, crop=0.2)), boxes, 0)
    with pytest.raises(UserError, match=r"pushes every box out of \d+ of 64 pictures of squares; set rotate, scale"):
        whole = detection(three | {"boxes": np.tile(np.float32([0, 0, 1, 1]), (B, 2, 1))})
        checks.check(AugmentConfig(image=ImageAugmentConfig(crop=0.9, keep_box=0.95)), whole, 0)
    with pytest.raises(UserError, match="blend labels of classes, and squares has boxes"):
        checks.check(AugmentConfig(image=ImageAugmentConfig(mixup=0.2)), boxes, 0)
    with pytest.raises(UserError, match="augment.text is set, but squares is of kind image"):
        checks.check(AugmentConfig(text=TextAugmentConfig(swap=0.1)), boxes, 0)
    with pytest.raises(UserError, match="augment.image is set, but words is of kind text"):
        checks.check(AugmentConfig(image=ImageAugmentConfig(flip=0.5)), digits_like, 0)


@pytest.fixture
def digits_like() -> Dataset:
    records = {"ids": np.arange(4), "inputs": np.ones((4, 2), np.int32), "labels": np.int32([0, 1, 0, 1])}
    empty = {name: values[:0] for name, values in records.items()}
    return Dataset("words", "classes", "text", {"train": records, "val": empty, "test": empty}, ("a", "b"))


def test_image_augmentations_out_of_range_are_refused():
    for name in ("scale", "crop"):
        with pytest.raises(UserError, match=f"augment.image.{name} is 1, which leaves nothing"):
            ImageAugmentConfig(**{name: 1.0})
    with pytest.raises(UserError, match="augment.image.flip is 1.5; it must lie between 0 and 1"):
        ImageAugmentConfig(flip=1.5)
    assert not any(getattr(ImageAugmentConfig(), name) for name in ("moves", "mixes", "active"))
    assert all(
        dataclasses.replace(ImageAugmentConfig(), **{field.name: 0.5}).active
        for field in dataclasses.fields(ImageAugmentConfig)
        if field.name != "keep_box"
    )


def test_scale_and_rotation_cover_their_range():
    sized = draw_moves(ImageAugmentConfig(scale=0.3), draws(400), H, W).matrix_B22[:, 0, 0]
    assert 0.7 <= sized.min() < 0.72 and 1.28 < sized.max() <= 1.3
    turned = draw_moves(ImageAugmentConfig(rotate=20), draws(400), H, W).matrix_B22
    degrees = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert -20 <= degrees.min() < -19 and 19 < degrees.max() <= 20


def test_crop_windows_are_uniform_over_the_picture():
    moves = draw_moves(ImageAugmentConfig(crop=0.5), draws(400), 20, 30)
    window_B = 1 / moves.matrix_B22[:, 0, 0]
    place_B2 = -moves.shift_B2 * window_B[:, None] / (1 - window_B)[:, None] / [20, 30]
    assert -1e-6 < place_B2.min() < 0.02 and 0.98 < place_B2.max() < 1 + 1e-6 and abs(place_B2.mean() - 0.5) < 0.05
