"""Losses of supervised tasks against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.tasks.config import ObjectiveConfig
from deepseek_jax.tasks.objectives import OBJECTIVES, penalty

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
LABELS = jax.nn.one_hot(jnp.array([0, 2]), 3)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def value(name, outputs, batch, **settings):
    return OBJECTIVES[name](outputs, batch, ObjectiveConfig(name=name, **settings))


def test_cross_entropy_of_hard_and_soft_labels():
    np.testing.assert_allclose(value("cross_entropy", LOGITS, {"labels": LABELS}), -np.log(P[[0, 1], [0, 2]]), 1e-6)
    mixed = 0.25 * LABELS + 0.75 * LABELS[::-1]
    np.testing.assert_allclose(value("cross_entropy", LOGITS, {"labels": mixed}), -(mixed * np.log(P)).sum(1), 1e-6)


def test_label_smoothing_spreads_its_share_over_all_classes():
    found = value("cross_entropy", LOGITS, {"labels": LABELS}, label_smoothing=0.3)
    np.testing.assert_allclose(found, -((0.7 * LABELS + 0.1) * np.log(P)).sum(1), 1e-6)


def test_focal_loss_discounts_easy_records():
    found = value("focal", LOGITS, {"labels": LABELS}, focal_gamma=2.0)
    p = P[[0, 1], [0, 2]]
    np.testing.assert_allclose(found, -((1 - p) ** 2) * np.log(p), 1e-5)
    plain = value("focal", LOGITS, {"labels": LABELS}, focal_gamma=0.0)
    np.testing.assert_allclose(plain, value("cross_entropy", LOGITS, {"labels": LABELS}), 1e-6)
    smooth = value("focal", LOGITS, {"labels": LABELS}, focal_gamma=2.0, label_smoothing=0.3)
    np.testing.assert_allclose(smooth, -((0.7 * LABELS + 0.1) * (1 - P) ** 2 * np.log(P)).sum(1), 1e-5)


def test_focal_loss_of_a_certain_class_has_a_finite_gradient():
    slope = jax.grad(lambda x: value("focal", x, {"labels": LABELS[:1]}, focal_gamma=0.5).sum())
    assert np.isfinite(slope(jnp.array([[90.0, -90.0, 0.0]]))).all()


def test_mse_mae_and_huber_follow_their_formulas():
    batch = {"targets": jnp.array([[1.0, 2.0], [0.0, 0.0]])}
    predicted = jnp.array([[1.5, 0.0], [0.0, 4.0]])
    np.testing.assert_allclose(value("mse", predicted, batch), [(0.25 + 4) / 2, 8])
    np.testing.assert_allclose(value("mae", predicted, batch), [1.25, 2])
    np.testing.assert_allclose(value("huber", predicted, batch, huber_delta=1.0), [(0.125 + 1.5) / 2, 3.5 / 2])
    np.testing.assert_allclose(value("huber", predicted, batch, huber_delta=3.0), [(0.125 + 2) / 2, 7.5 / 2])


def test_penalties_cover_only_the_selected_parameters():
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([7.0])}
    config = ObjectiveConfig(l1=0.5, l2=0.1)
    found = penalty(params, config, counts=lambda path: "kernel" in str(path[0]))
    np.testing.assert_allclose(found, 0.5 * 3 + 0.05 * 5)
    for settings, expected in (({"l1": 0.5}, 0.5 * 10), ({"l2": 0.1}, 0.05 * 54)):
        assert penalty(params, ObjectiveConfig(**settings), counts=lambda path: True) == pytest.approx(expected)
    assert penalty(params, ObjectiveConfig(), counts=lambda path: True) == 0


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ({"name": "hinge"}, "choose one of cross_entropy, focal"),
        ({"label_smoothing": 1.0}, "below 1"),
        ({"name": "mse", "label_smoothing": 0.1}, "label_smoothing is 0.1, but mse is not a loss of classes; set"),
        ({"l1": -1.0}, "objective.l1"),
        ({"huber_delta": 0.0}, "above 0"),
    ],
)
def test_impossible_objectives_are_refused(setting, sentence):
    with pytest.raises(UserError, match=sentence):
        ObjectiveConfig(**setting)
