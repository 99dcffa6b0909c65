"""Claims: verdicts from known differences, and refusals of claims that cannot be parsed."""

import numpy as np
import pytest
from scipy import stats

from deepseek_jax.errors import UserError
from deepseek_jax.studies.claims import CANNOT_TELL, DOES_NOT, HOLDS, Claim, fraction, judge, overall, parse
from deepseek_jax.studies.differences import difference

NAMES = ["new", "old", "a, b"]


def verdict(text, new, old, margin=0.1, missing=None):
    values = {"new": dict(enumerate(new)), "old": dict(enumerate(old))}
    return [each.verdict for each in judge(Claim("loss", margin, text), NAMES, values, missing or {})]


def test_paired_statistics_equal_scipys():
    left, right = [1.0, 1.4, 1.1, 1.3], [1.1, 1.2, 1.0, 1.6]
    found = difference(left, right)
    test = stats.ttest_rel(left, right)
    assert found.mean == pytest.approx(np.mean(left) - np.mean(right))
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    half = stats.t.ppf(0.975, 3) * np.std(np.subtract(left, right), ddof=1) / 2
    assert found.high - found.mean == pytest.approx(half)
    assert found.p_t == pytest.approx(test.pvalue)
    assert 0.3 < found.p_bootstrap < 1
    assert difference(left, right) == found  # the bootstrap is deterministic


def test_differences_without_variance_have_no_nan():
    assert difference([1.0, 2.0], [1.0, 2.0]).p_t == 1
    found = difference([1.5, 2.5], [1.0, 2.0])
    assert (found.low, found.high, found.p_t) == (0.5, 0.5, 0)


TIGHT = np.array([-0.001, 0.0, 0.001])  # added to a difference, gives a confidence interval of ± 0.0025


@pytest.mark.parametrize(
    "shift, less, at_most, same, more",
    [
        (-0.3, HOLDS, HOLDS, DOES_NOT, DOES_NOT),
        (-0.1, CANNOT_TELL, HOLDS, CANNOT_TELL, DOES_NOT),  # the interval includes the margin
        (-0.05, DOES_NOT, HOLDS, HOLDS, DOES_NOT),
        (0.05, DOES_NOT, HOLDS, HOLDS, DOES_NOT),
        (0.1, DOES_NOT, CANNOT_TELL, CANNOT_TELL, CANNOT_TELL),
        (0.3, DOES_NOT, DOES_NOT, DOES_NOT, HOLDS),
    ],
)
def test_verdicts_follow_from_margin_and_confidence_interval(shift, less, at_most, same, more):
    old = np.array([2.0, 3.0, 4.0])
    new = old + shift + TIGHT
    text = "new < old; <= old; no different from old; > old"
    assert verdict(text, new, old) == [less, at_most, same, more]


def test_a_difference_equal_to_the_margin_is_within_it():
    """Such as a difference of counts, which are the same for all seeds, so that the interval has no width."""
    assert verdict("new <= old; no different from old; < old", [3, 3], [2, 2], margin=1) == [HOLDS, HOLDS, DOES_NOT]
    assert verdict("new >= old; no different from old; > old", [2, 2], [3, 3], margin=1) == [HOLDS, HOLDS, DOES_NOT]


def test_a_share_of_zero_as_the_margin_leaves_all_relations_their_meaning():
    """Such as 5% of no dead experts."""
    relations = "new <= old; >= old; no different from old; < old; > old"
    assert verdict(relations, [0, 0], [0, 0], "5%") == [HOLDS, HOLDS, HOLDS, DOES_NOT, DOES_NOT]
    assert verdict(relations, [3, 3], [0, 0], "5%") == [DOES_NOT, HOLDS, DOES_NOT, DOES_NOT, HOLDS]
    assert verdict("new <= old; < old", [-3, -3], [0, 0], "5%") == [HOLDS, HOLDS]


def test_with_a_wide_interval_no_verdict_is_possible():
    assert verdict("new < old; new no different from old", [1.0, 2.0, 3.5], [2.0, 1.0, 3.0]) == [CANNOT_TELL] * 2


def test_a_percent_margin_is_a_share_of_the_right_side():
    old = np.array([100.0, 100.0, 100.0])
    assert verdict("new <= old", old + 4 + TIGHT, old, margin="5%") == [HOLDS]
    assert verdict("new <= old", old + 6 + TIGHT, old, margin="5%") == [DOES_NOT]
    assert verdict("new <= old", old + 60 + TIGHT, old, margin="50%") == [DOES_NOT]  # though within 50% of the left
    assert verdict("new <= old", -old + 4 + TIGHT, -old, margin="5%") == [HOLDS]  # negative, as log likelihoods are
    unpaired = [*old, 1000.0]  # a seed that the left side lacks
    assert verdict("new <= old", old + 6 + TIGHT, unpaired, margin="5%") == [DOES_NOT]


def test_a_claim_may_compare_with_a_number():
    assert verdict("new >= 0.85", 0.9 + TIGHT, [], margin=0.01) == [HOLDS]
    assert verdict("new >= 0.85", 0.5 + TIGHT, [], margin=0.01) == [DOES_NOT]


def test_a_claim_may_compare_with_zero():
    assert verdict("new > 0", 0.9 + TIGHT, [], margin=0.01) == [HOLDS]


def test_a_variant_may_have_a_number_as_its_name():
    (judged,) = judge(
        Claim("loss", 0.1, "64 < 128"), ["64", "128"], {"64": {0: 3.0, 1: 3.1}, "128": {0: 2.0, 1: 2.0}}, {}
    )
    assert judged.verdict == DOES_NOT


def test_only_seeds_of_both_sides_are_paired():
    (judged,) = judge(Claim("loss", 0.1, "new < old"), NAMES, {"new": {0: 1.0, 1: 1.0}, "old": {1: 2.0, 2: 2.0}}, {})
    assert judged.verdict == CANNOT_TELL and judged.reason == "1 paired seeds; an interval needs at least 2"


def test_a_claim_about_a_failed_variant_cannot_be_judged():
    (judged,) = judge(Claim("loss", 0.1, "new < old"), NAMES, {}, {"old": "seed 1 failed: NaN"})
    assert judged.verdict == CANNOT_TELL and judged.reason == "old: seed 1 failed: NaN"


def test_a_claim_holds_if_all_clauses_hold():
    class Judged:
        def __init__(self, verdict):
            self.verdict = verdict

    assert overall([Judged(HOLDS), Judged(HOLDS)]) == HOLDS
    assert overall([Judged(HOLDS), Judged(CANNOT_TELL)]) == CANNOT_TELL
    assert overall([Judged(DOES_NOT), Judged(CANNOT_TELL)]) == DOES_NOT


def test_names_may_have_commas_and_a_clause_inherits_its_left_side():
    first, second = parse("a, b <= old; no different from new", NAMES)
    assert (first.left, first.relation, first.right) == ("a, b", "<=", "old")
    assert (second.left, second.relation, second.right) == ("a, b", "no different from", "new")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the claim is empty"),
        ("new beats old", "between them one of no different from, <="),
        ("new<=old", "<, >, with spaces around it, as in 'new <= old'"),
        ("newer < old", "names 'newer'; the variants are new, old"),
        ("< old", "begins with its relation"),
        ("new < olden", "names 'olden'"),
        ("new < inf", "names 'inf'"),
        ("new < old; <= new", "claim '<= new' compares new with itself; name another variant"),
    ],
)
def test_claims_that_cannot_be_parsed_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse(text, NAMES)


@pytest.mark.parametrize("margin", [0, -1, "5", "x%", "-1%", float("nan")])
def test_invalid_margins_are_refused(margin):
    with pytest.raises(UserError, match="margin"):
        fraction(margin)


@pytest.mark.filterwarnings("error")
def test_differences_that_are_equal_but_for_rounding_are_a_point():
    found = difference([0.3, 0.4, 0.5], [0.1, 0.2, 0.3])
    assert found.low == found.high == pytest.approx(0.2) and found.p_t == 0


def test_the_bootstrap_counts_both_sides():
    """None of 9,999 bootstrap means is below 0, which gives the two-sided p of 2 (0 + 1) / (9,999 + 1)."""
    assert difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).p_bootstrap == pytest.approx(2 / 10_000)
