"""Columns that never change or give away the answer are reported; merely useful ones are not."""

import numpy as np
import pytest

from deepseek_jax.data.quality.check import check_set
from deepseek_jax.data.quality.columns import columns
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.data.sets.registry import open_set
from tests.user_files import write_csv


@pytest.fixture
def table(tmp_path):
    """table(asked, **values): a set with these columns, of which those named in `asked` (ColumnsConfig) are answers."""

    def written(asked: dict, **values):
        rows = zip(*values.values(), strict=True)
        name = write_csv(tmp_path / "table.csv", ",".join(values), (",".join(map(str, row)) for row in rows))
        features = tuple(name for name in values if name not in np.ravel([*asked.values()]))
        return open_set(DatasetConfig(name, columns=ColumnsConfig(features=features, **asked)))

    return written


def test_constant_columns_and_columns_that_give_away_the_class_are_reported(table):
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 200)
    helps, code, coarse = rng.normal(size=200) + 3 * kind, 10.0 - 4 * kind + rng.random(200), np.minimum(kind, 1)
    found = columns(table({"label": "kind"}, helps=helps, unit=[5] * 200, code=code, coarse=coarse, kind=kind))
    assert found.sentence == "1 of 4 columns never change in training (unit); 1 give the answer away (code)"
    assert dict(found.rows) == {"unit": "is 5 in every training record", "code": "alone determines the class"}


def test_a_column_that_is_the_target_in_another_unit_is_reported(table):
    rng = np.random.default_rng(0)
    kilos = rng.normal(70, 10, 100)
    helps, pounds = kilos + rng.normal(size=100) / 10, np.round(kilos / 0.4536, 2)
    dataset = table({"targets": ("kilos",)}, helps=helps, pounds=pounds, kilos=kilos)
    (found,) = (finding for finding in check_set(dataset)[1] if finding.title == "Columns")
    assert found.sentence == "0 of 2 columns never change in training; 1 give the answer away (pounds)"
    assert found.rows == (("pounds", "equals kilos, perhaps in another unit"),)


def test_with_few_records_no_column_is_said_to_give_away_the_answer(table):
    """With a single record of a class, it is an extreme of one column in ten by chance."""
    values = np.arange(20.0)
    found = columns(table({"label": "kind"}, a=values, b=-values, kind=[*"aaaaaaaaaaaaaaaaaabb"]))
    assert found.sentence.endswith("; 0 give the answer away")


def test_pictures_have_no_columns(digits):
    assert columns(digits) is None
