"""Large sets are compared with a random sample only: a record that is far from all others is far from these too."""

import numpy as np
import pytest

from deepseek_jax.data.quality import near_vectors, sampling
from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.coverage import coverage
from deepseek_jax.data.quality.outliers import outliers

COUNT, FAR = 600, 5


@pytest.fixture
def records():
    """A table of similar rows, with FAR outliers at its end; every fourth row is held out."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(COUNT - FAR, 3)), 30 * rng.normal(size=(FAR, 3))]).astype(np.float32)
    splits = np.where(np.arange(COUNT) % 4, "train", "test")
    return AllRecords("rows", "table", np.arange(COUNT), splits, rows, None, ())


def test_outliers_and_coverage_are_found_with_a_sample(records, monkeypatch):
    whole = outliers(records, records.inputs), coverage(records, records.inputs)
    assert not any("drawn at random" in finding.sentence for finding in whole)
    monkeypatch.setattr(sampling, "MOST", 100)
    far, covered = outliers(records, records.inputs), coverage(records, records.inputs)
    assert far.sentence.endswith("; compared to 100 of 600 records, drawn at random")
    assert covered.sentence.endswith("; compared to 100 of 450 training records, drawn at random")
    assert set(range(COUNT - FAR, COUNT)) <= set(far.doubtful) and len(far.doubtful) < 4 * FAR
    assert 90 < float(covered.sentence.split("%")[0]) < 100
    assert outliers(records, records.inputs) == far


def test_a_tree_and_pieces_find_the_same_copies(monkeypatch):
    """Also where a row has more equal rows than the number of neighbours that are looked up."""
    rows = np.random.default_rng(0).normal(size=(400, 4))
    rows[-3:] = rows[:3] + 1e-6
    rows[50:70] = rows[49]
    told, found = [], []
    for few, piece in ((6, 5000), (6, 64), (0, 64)):
        monkeypatch.setattr(near_vectors, "FEW", few)
        monkeypatch.setattr(near_vectors, "PIECE", piece)
        pairs = near_vectors.near_pairs(rows, lambda *stage: told.append(stage))
        found.append({pair for pair in pairs if not set(pair) <= set(range(49, 70))})
    assert found == [{(0, 397), (1, 398), (2, 399)}] * 3
    assert told[1:8] == [("looking for copies", start, 400) for start in range(0, 400, 64)]
