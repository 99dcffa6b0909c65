"""Loss curves of runs: how many rows are needed to compare them, and the speed-up of a better one."""

import numpy as np
import pytest

from deepseek_jax.experiment_file import resolve
from deepseek_jax.studies import curves
from deepseek_jax.studies.curves import by_variant, mean_curve, speed_up
from tests.paths import ROOT


def of_rows(count: int, above: float = 0.0) -> dict:
    spent = np.arange(1, count + 1) * 100.0
    return {"curve": [[at, 8.0 - at / 100 + above] for at in spent]}


def speed_up_of_runs(count: int, above: float) -> float | None:
    """The speed-up of a variant with the base's throughput, whose loss is higher by `above`; None without curves."""
    runs = [of_rows(count) | {"variant": "base"}, of_rows(count, above) | {"variant": "other"}]
    found = by_variant({"runs": runs})
    return speed_up(found["base"], found["other"], 1.0, 1.0) if found else None


def test_curves_of_too_few_rows_are_not_compared():
    """Over three rows a difference of 1e-4 came out as a speed-up of 0.3, as smoothing made the curves flat."""
    assert speed_up_of_runs(3, 1e-4) is None
    for count in (4, 5, 20):
        np.testing.assert_allclose(speed_up_of_runs(count, 1e-4), 1.0, atol=1e-3)


def falling(to: float):
    """A mean curve (tokens, loss, deviation) that falls linearly from 4 over 100 tokens."""
    return np.linspace(0, 100, 51), np.linspace(4, to, 51), np.zeros(51)


def test_speed_up_is_by_when_the_lower_curve_reaches_the_others_end():
    low, high = falling(to=1), falling(to=2)  # the lower reaches 2 after two thirds of its tokens
    assert speed_up(high, low, 10.0, 10.0) == pytest.approx(3 / 2)
    assert speed_up(low, high, 10.0, 10.0) == pytest.approx(2 / 3)
    assert speed_up(high, low, 10.0, 5.0) == pytest.approx(3 / 4)  # at half the throughput
    half = (high[0] / 2, *high[1:])  # spends only 50 tokens, as under a budget of seconds
    assert speed_up(low, half, 10.0, 10.0) == pytest.approx(4 / 3)
    assert speed_up(half, low, 10.0, 10.0) == pytest.approx(3 / 4)


@pytest.mark.parametrize("end", [np.nan, np.inf])
def test_a_curve_that_ends_in_nan_or_infinity_has_no_speed_up(end):
    whole, lost = falling(to=1), falling(to=2)
    lost[1][40:] = end
    assert np.isnan([speed_up(whole, lost, 1.0, 1.0), speed_up(lost, whole, 1.0, 1.0)]).all()


def test_a_mean_curve_covers_what_all_seeds_spent():
    one, other = ([[at, loss] for at, loss in zip(range(first, 101, 2), falling(to=2)[1])] for first in (0, 10))
    spent, loss, deviation = mean_curve([one, other])
    assert (spent[0], spent[-1]) == (10, 100) and (np.diff(loss) < 0).all() and (deviation > 0).all()
    assert not mean_curve([one])[2].any()
    np.testing.assert_allclose(deviation[16:48], 0.2 / 2**0.5, rtol=1e-6)  # the two differ by 0.2
    np.testing.assert_allclose(loss[16:48], 4.1 - spent[16:48] / 50, rtol=1e-6)  # smoothing preserves a line


@pytest.mark.parametrize(
    ("base", "changes", "same"),
    [
        ("hybrid_small", {"optimizer.peak_lr": 0.1, "model.attention.num_heads": 0, "dataset.directory": "x"}, True),
        ("hybrid_small", {"model.dropout": 0.0}, False),
        ("hybrid_small", {"augment.image.rotate": 0.0}, False),
        ("hybrid_small", {"objective.label_smoothing": 0.1}, False),
        ("hybrid_small", {"dataset.balance": "weights"}, False),
        ("study_tiny", {"model.num_nextn_predict_layers": 1, "loss.sequence_balance": 0.1, "data.workers": 1}, True),
        ("study_tiny", {"data.fim_rate": 0.5}, False),
        ("study_tiny", {"model.vocab_size": 512}, False),
    ],
)
def test_training_losses_are_comparable_only_on_the_same_data_and_objective(base, changes, same):
    path = f"{ROOT}/configs/{base}.py"
    assert curves.comparable(resolve(path), resolve(path, changes)) is same
