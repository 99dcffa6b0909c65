"""Feature vectors and outlier scores of degenerate records."""

import numpy as np
import pytest

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.features import vectors
from deepseek_jax.data.quality.outliers import outlier_scores


def records_of(inputs: np.ndarray, kind: str) -> AllRecords:
    splits = np.where(np.arange(len(inputs)) % 3, "train", "test")
    return AllRecords("few", kind, np.arange(len(inputs)), splits, inputs, None, ())


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_pictures_of_a_single_row_or_column_have_finite_vectors(shape):
    found = vectors(records_of(np.random.default_rng(0).random((40, *shape, 1), np.float32), "image"))
    assert len(found) == 40 and np.isfinite(found).all()


def test_texts_of_a_single_punctuation_mark_have_vectors():
    assert vectors(records_of(np.array(["!"] * 40, object), "text")).tolist() == [[1.0]] * 40


def test_among_many_equal_rows_none_is_an_outlier():
    rng, far = np.random.default_rng(0), [[0, 5], [7, 1]]
    assert not outlier_scores(np.concatenate([rng.integers(0, 2, (200, 2)), far]).astype(float)).any()
    assert set(np.argsort(-outlier_scores(np.concatenate([rng.normal(size=(200, 2)) / 5, far])))[:2]) == {200, 201}


def test_outlier_scores_are_robust_deviations_of_the_log_of_the_distance():
    rows = np.random.default_rng(0).exponential(size=(60, 3))
    distances = np.sort(np.linalg.norm(rows[:, None] - rows, axis=-1), axis=1)[:, 1:11]  # to the ten nearest others
    far = np.log(distances.mean(axis=1))
    middle, upper = np.quantile(far, [0.5, 0.75])
    np.testing.assert_allclose(outlier_scores(rows), (far - middle) / (1.4826 * (upper - middle)), rtol=1e-6)
