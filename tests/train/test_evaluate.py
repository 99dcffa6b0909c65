"""Scores on held-out batches: sums over batches, shares of domains, bytes."""

import math

import numpy as np
import pytest

from deepseek_jax.train.evaluate import bytes_a_target, evaluate


class Corpus:
    domains = ["prose", "code", "empty"]
    held_out_bytes = {"prose": 400, "code": 300, "empty": 0}
    held_out_targets = {"prose": 100, "code": 100, "empty": 0}


def score(params, buffers, batch):
    return batch


BATCHES = [
    {"nats": np.array([60.0, 200, 0], np.float32), "targets": np.array([30.0, 80, 0], np.float32)},
    {"nats": np.array([140.0, 100, 0], np.float32), "targets": np.array([70.0, 20, 0], np.float32)},
]


def test_bytes_per_target_of_an_empty_domain_is_zero():
    np.testing.assert_array_equal(bytes_a_target(Corpus), [4, 3, 0])


def test_all_batches_are_summed_over_exactly_the_held_out_bytes():
    scores = evaluate(score, None, None, BATCHES, Corpus)
    assert scores == pytest.approx(
        {
            "loss": 500 / 200,
            "bits_per_byte": 500 / math.log(2) / 700,
            "bytes": 700,
            "bits_per_byte/prose": 200 / math.log(2) / 400,
            "bits_per_byte/code": 300 / math.log(2) / 300,
        }
    )


def test_some_batches_count_their_share_of_the_bytes():
    assert evaluate(score, None, None, BATCHES[:1], Corpus)["bytes"] == 30 * 4 + 80 * 3


def test_sums_over_batches_are_accumulated_in_64_bits():
    each = {"targets": np.ones(3, np.float32)}
    batches = [each | {"nats": np.float32([nats, 0, 0])} for nats in (2**24, 1, 1)]
    assert evaluate(score, None, None, batches, Corpus)["loss"] == (2**24 + 2) / 9


def test_dropped_is_a_share_of_expert_assignments():
    """Assignments, not tokens: each token has several in every layer."""
    batches = [batch | {"dropped": np.float32(6), "assigned": np.float32(1200)} for batch in BATCHES]
    assert evaluate(score, None, None, batches, Corpus)["dropped"] == 12 / 2400


def test_without_batches_there_is_no_score():
    assert evaluate(score, None, None, [], Corpus) == {}
