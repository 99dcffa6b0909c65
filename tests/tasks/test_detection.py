"""Object detection: targets, loss and decoding agree with each other and with hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.tasks import detection

# [picture, box, (top, left, bottom, right)]; the centre of the second box is in the grid's last cell.
BOXES = jnp.array([[[0.1, 0.2, 0.3, 0.6], [0.8, 0.7, 1.0, 1.0], [0, 0, 0, 0]], [[0.0, 0.0, 1.0, 1.0]] + [[0] * 4] * 2])
LABELS = jnp.array([[1, 0, -1], [2, -1, -1]])
GRID, CLASSES = (8, 6), 3


def perfect():
    """Network outputs that predict BOXES exactly."""
    centre, size = (BOXES[..., :2] + BOXES[..., 2:]) / 2 * jnp.array(GRID), BOXES[..., 2:] - BOXES[..., :2]
    outputs = {
        "heat": np.full((2, *GRID, CLASSES), -20.0),
        "size": np.zeros((2, *GRID, 2)),
        "offset": np.zeros((2, *GRID, 2)),
    }
    for picture, place in zip(*np.nonzero(LABELS >= 0)):
        y, x = np.floor(np.asarray(centre[picture, place])).astype(int)
        outputs["heat"][picture, y, x, LABELS[picture, place]] = 20.0
        outputs["size"][picture, y, x] = size[picture, place]
        outputs["offset"][picture, y, x] = np.asarray(centre[picture, place]) - [y, x]
    return {name: jnp.asarray(value, jnp.float32) for name, value in outputs.items()}


def test_perfect_outputs_decode_to_the_boxes():
    boxes, classes, scores = detection.decode(perfect(), peaks=2)
    assert [sorted(row) for row in classes.tolist()][0] == [0, 1] and classes[1, 0] == 2
    order = jnp.argsort(-classes[0])
    np.testing.assert_allclose(boxes[0, order], BOXES[0, :2], atol=1e-6)
    np.testing.assert_allclose(boxes[1, 0], BOXES[1, 0], atol=1e-6)
    assert (scores[0] > 0.99).all() and scores[1, 1] < 0.01
    wider, _, _ = detection.decode(perfect() | {"size": 2 * perfect()["size"]}, peaks=2)
    np.testing.assert_array_equal(wider[1, 0], BOXES[1, 0])  # boxes are clipped to the picture


def test_negative_sizes_give_no_inverted_boxes():
    boxes, _, _ = detection.decode(perfect() | {"size": -perfect()["size"]}, peaks=2)
    assert (boxes[..., :2] <= boxes[..., 2:]).all()


def test_only_perfect_outputs_have_zero_loss():
    weights = {"size_weight": 1.0, "offset_weight": 1.0}
    np.testing.assert_allclose(detection.loss(perfect(), BOXES, LABELS, **weights), 0, atol=1e-5)
    for name in ("heat", "size", "offset"):
        off = perfect() | {name: perfect()[name] + 0.5}
        off["heat"] = off["heat"] if name != "heat" else perfect()["heat"] / 20
        assert (detection.loss(off, BOXES, LABELS, **weights) > 0.1).all(), name


def test_sizes_are_learned_only_at_box_centres():
    def of_size(size):
        return detection.loss(perfect() | {"size": size}, BOXES, LABELS, size_weight=1.0, offset_weight=0.0).sum()

    slope = np.asarray(jax.grad(of_size)(jnp.ones((2, *GRID, 2)) * 2))
    assert (np.abs(slope).sum(axis=-1) > 0).sum() == 3  # one cell for each box


def test_heat_targets_are_gaussians_as_wide_as_their_boxes():
    cell, size = jnp.array([[[4, 3]]]), jnp.array([[[0.75, 0.5]]])  # standard deviations of 1 and 0.5 cells
    heat = detection.heat_targets(cell, size, jnp.array([[0]]), (*GRID, 1))[0, :, :, 0]
    np.testing.assert_allclose([heat[4, 3], heat[5, 3], heat[4, 4]], [1, np.exp(-0.5), np.exp(-2)], rtol=1e-6)


def test_a_picture_without_boxes_has_a_loss_on_its_heat():
    outputs = jax.tree.map(jnp.zeros_like, perfect())
    value = detection.loss(outputs, BOXES * 0, LABELS * 0 - 1, size_weight=1.0, offset_weight=1.0)
    np.testing.assert_allclose(value, GRID[0] * GRID[1] * CLASSES * 0.25 * np.log(2), rtol=1e-5)


def test_the_heat_loss_is_the_papers_focal_loss():
    """CenterNet's equation 1, cell by cell: negatives near a centre count less, and the sum is divided by the boxes."""
    logits = np.random.default_rng(0).normal(size=(2, *GRID, CLASSES))
    expected = np.zeros(2)
    for (picture, *cell, label), p in np.ndenumerate(1 / (1 + np.exp(-logits))):
        near = 0.0
        for box, of in zip(np.asarray(BOXES[picture], np.float64), LABELS[picture].tolist()):
            away = np.array(cell) - np.floor((box[:2] + box[2:]) / 2 * GRID)
            if of == label:
                near = max(near, np.exp(-0.5 * np.square(away / ((box[2:] - box[:2]) * GRID / 6)).sum()))
        expected[picture] -= (1 - p) ** 2 * np.log(p) if near == 1 else (1 - near) ** 4 * p**2 * np.log(1 - p)
    outputs = perfect() | {"heat": jnp.asarray(logits, jnp.float32)}
    found = detection.loss(outputs, BOXES, LABELS, size_weight=0.0, offset_weight=0.0)
    np.testing.assert_allclose(found, expected / [2, 1], rtol=1e-4)


def test_size_and_offset_losses_are_distances_per_box():
    for name, weights in (("size", (3.0, 0.0)), ("offset", (0.0, 3.0))):
        off = perfect() | {name: perfect()[name] + 0.25}
        np.testing.assert_allclose(detection.loss(off, BOXES, LABELS, *weights), 3 * 2 * 0.25, rtol=1e-4)


def test_overlapping_heat_targets_of_a_class_take_the_maximum():
    cells, sizes = jnp.array([[[4, 2], [4, 4]]]), jnp.full((1, 2, 2), 0.75)
    both, *alone = (
        detection.heat_targets(cells[:, of], sizes[:, of], jnp.zeros((1, len(of)), int), (*GRID, 1))
        for of in (np.array([0, 1]), np.array([0]), np.array([1]))
    )
    np.testing.assert_array_equal(both, np.maximum(*alone))


def test_a_cell_below_a_neighbour_of_its_class_is_no_peak():
    heat = np.full((1, *GRID, CLASSES), -20.0, np.float32)
    heat[0, 2, 2, 0], heat[0, 2, 3, 0], heat[0, 3, 3, 1], heat[0, 6, 1, 0] = 3.0, 2.5, 2.0, 1.0
    outputs = {"heat": jnp.asarray(heat), "size": jnp.zeros((1, *GRID, 2)), "offset": jnp.zeros((1, *GRID, 2))}
    boxes, classes, scores = detection.decode(outputs, peaks=3)
    assert classes.tolist() == [[0, 1, 0]]
    np.testing.assert_allclose(scores[0], 1 / (1 + np.exp([-3.0, -2.0, -1.0])), rtol=1e-5)
    np.testing.assert_allclose(boxes[0, :, :2] * np.array(GRID), [[2, 2], [3, 3], [6, 1]], rtol=1e-5)
