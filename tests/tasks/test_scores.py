"""Scores on cases whose value is known."""

import numpy as np
import pytest

from deepseek_jax.tasks import scores


def test_scores_of_classes():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    labels = np.array([0, 1, 1, 1])
    found = scores.of_classes(probabilities, labels)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)  # classes 0 and 1; class 2 never occurs
    assert found["calibration_error"] == pytest.approx((0.1 + 0.3 + 0.6 + 0.2) / 4)  # of the top classes
    assert scores.confusion(probabilities, labels).tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]


def test_calibration_error_is_the_distance_between_confidence_and_accuracy():
    assert scores.calibration_error(np.full(100, 0.8), np.arange(100) < 80) == pytest.approx(0, abs=1e-12)
    assert scores.calibration_error(np.full(100, 1.0), np.arange(100) < 60) == pytest.approx(0.4)
    halves = np.array([0.9] * 50 + [0.5] * 50), np.array([True] * 50 + [False] * 50)
    assert scores.calibration_error(*halves) == pytest.approx(0.5 * 0.1 + 0.5 * 0.5)
    for other, error in ((0.66, (0.66 + 0.62 - 1) / 2), (0.67, (0.67 + 1 - 0.62) / 2)):  # 2/3 is a bin edge
        assert scores.calibration_error(np.array([0.62, other]), np.array([True, False])) == pytest.approx(error)
    certain = np.array([1.0, 0.95]), np.array([False, True])  # both are in the last bin
    assert scores.calibration_error(*certain) == pytest.approx((1.95 - 1) / 2)


def test_scores_of_numbers():
    targets, predicted = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [4.0]])
    found = scores.of_numbers(predicted, targets)
    assert found == {"mse": pytest.approx(1 / 3), "mae": pytest.approx(1 / 3), "r2": pytest.approx(0.5)}
    both = np.hstack([predicted, 0 * predicted]), np.hstack([targets, 10 * (targets - 2)])  # R2 of the second is 0
    assert scores.of_numbers(*both)["r2"] == pytest.approx((0.5 + 0) / 2)


def test_r2_of_a_single_record_is_nan_without_a_warning(recwarn):
    found = scores.of_numbers(np.array([[1.0]]), np.array([[3.0]]))
    assert (found["mse"], found["mae"]) == (4, 2) and np.isnan(found["r2"]) and not recwarn.list


def test_scores_of_numbers_whose_squares_overflow_float32():
    targets, predicted = np.float32([[1e30], [2e30], [3e30]]), np.float32([[1e30], [2e30], [4e30]])
    found = scores.of_numbers(predicted, targets)
    assert found == {
        "mse": pytest.approx(1e60 / 3, rel=1e-6),
        "mae": pytest.approx(1e30 / 3, rel=1e-6),
        "r2": pytest.approx(0.5, rel=1e-6),
    }


def test_map_is_computed_as_by_coco():
    truth = (np.array([[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]]), np.array([0, 1]))
    exact = (*truth, np.array([0.9, 0.8]))
    assert scores.of_boxes([exact], [truth], classes=2) == {"map50": pytest.approx(1), "map": pytest.approx(1)}
    half = (truth[0][:1], truth[1][:1], np.array([0.9]))  # the box of class 1 is missed
    assert scores.of_boxes([half], [truth], classes=2)["map50"] == pytest.approx(0.5)
    moved = (truth[0] + 0.03, truth[1], np.array([0.9, 0.8]))  # IoU 0.75 and 0.68: right at 0.5, wrong at 0.95
    found = scores.of_boxes([moved], [truth], classes=2)
    assert found["map50"] == pytest.approx(1) and 0.3 < found["map"] < 0.7
    nothing = (np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    assert scores.of_boxes([nothing], [truth], classes=2) == {"map50": 0.0, "map": 0.0}


def test_map_matches_boxes_within_a_picture_by_score_and_iou():
    low, high, label = np.array([[0.1, 0.2, 0.3, 0.5]]), np.array([[0.6, 0.6, 0.8, 0.8]]), np.array([0])
    truths = [(low, label), (high, label)]
    exact = [(low, label, np.array([0.9])), (high, label, np.array([0.8]))]
    assert scores.of_boxes(exact, truths, classes=1)["map50"] == pytest.approx(1)
    more = np.vstack([low, high]), np.array([0, 0]), np.array([0.1, 0.8])  # a wrong box, but with the lowest score
    assert scores.of_boxes([exact[0], more], truths, classes=1)["map50"] == pytest.approx(1)
    moved = (high + [0.1, 0, 0.1, 0], label, np.array([0.8]))  # an IoU of a third
    assert scores.of_boxes([exact[0], moved], truths, classes=1)["map50"] == pytest.approx(0.5, abs=0.01)


def test_undefined_scores_are_nan():
    nan = np.nan
    truth, none = (np.ones((1, 4)), np.array([0])), (np.zeros((0, 4)), np.zeros(0))
    found = (np.full((1, 4), 0.5), np.array([0]), np.array([0.9]))
    for unknown in (
        scores.of_classes(np.array([[nan, 1.0]]), np.array([1])),
        scores.of_numbers(np.array([[np.inf]]), np.array([[1.0]])),
        scores.of_boxes([(found[0] * nan, *found[1:])], [truth], classes=1),
        scores.of_boxes([found], [none], classes=1),
    ):
        assert np.isnan(list(unknown.values())).all()
