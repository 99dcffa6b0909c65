"""Batches do not depend on where a run resumes or the number of processes or readers; domains mix as configured."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from deepseek_jax.data.pipeline import open_corpus
from deepseek_jax.errors import UserError
from tests.data import abandoned

VOCAB = 600


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(first, second):
    return len(first) == len(second) and all(
        first[i].keys() == second[i].keys() and all((first[i][key] == second[i][key]).all() for key in first[i])
        for i in range(len(first))
    )


def test_batches_resume_at_any_position(corpus):
    whole = take(corpus.train_batches(4, seed=0), 12)
    for position in (0, 1, 5):
        first = corpus.train_batches(4, seed=0)
        take(first, position)
        state = json.loads(json.dumps(first.state()))
        second = corpus.train_batches(4, seed=0)
        take(second, 3)
        second.restore(state)
        assert same(take(second, 6), whole[position : position + 6])
        assert same(take(corpus.train_batches(4, seed=0, start=position), 2), whole[position : position + 2])
        assert second.state()["position"] == position + 6


def test_batches_of_one_row_are_the_rows_of_larger_ones(corpus):
    """Batches of one row are the most numerous; their number must not exceed what len() can return."""
    whole = take(corpus.train_batches(4, seed=0), 2)
    rows = take(corpus.train_batches(1, seed=0), 8)
    for key in whole[0]:
        assert (np.concatenate([row[key] for row in rows]) == np.concatenate([batch[key] for batch in whole])).all()


def test_starting_at_a_position_works_across_epochs(corpus):
    rows = [corpus.train_rows(domain, 0).rows_per_epoch for domain in (0, 1)]
    start = 3 * sum(rows) // 4
    whole = take(corpus.train_batches(4, seed=0, start=start - 2), 4)
    assert same(take(corpus.train_batches(4, seed=0, start=start), 2), whole[2:])


@pytest.mark.parametrize("parts", [[range(0, 4), range(4, 8)], [[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 5], [1, 2, 3]]])
def test_processes_read_only_the_chosen_rows(corpus, parts):
    whole = take(corpus.train_batches(8, seed=0, start=1), 3)
    for chosen in parts:
        part = corpus.train_batches(8, seed=0, chosen=chosen)
        part.restore({**part.state(), "position": 1})
        assert same(take(part, 3), [{key: value[list(chosen)] for key, value in batch.items()} for batch in whole])
        assert part.state() == {**corpus.train_batches(8, seed=0).state(), "position": 4}


def test_domains_have_their_shares_and_each_row_one_domain(corpus):
    domains = np.concatenate([batch["domain_ids"] for batch in take(corpus.train_batches(8, seed=0), 20)])
    assert (domains == domains[:, :1]).all()
    assert abs((domains[:, 0] == 0).mean() - 0.75) < 0.01


def test_resuming_on_other_data_is_refused(corpus, plain, data):
    state = corpus.train_batches(4, seed=0).state()
    same_tokens = {"tokenizer": str(corpus.tokenizer.path), "weights": data.weights.replace("=3", "=2")}
    reweighted = open_corpus(dataclasses.replace(data, **same_tokens), VOCAB)
    others = [each.train_batches(4, seed=0) for each in (plain, reweighted)]
    for other in (*others, corpus.train_batches(4, seed=1), corpus.train_batches(8, seed=0)):
        with pytest.raises(UserError, match="other data"):
            other.restore(state)


def test_held_out_batches_have_every_target_once(corpus):
    batches = list(corpus.held_out_batches(8))
    assert all(batch["tokens"].shape == (8, corpus.data.sequence_length) for batch in batches)
    targets = np.zeros(len(corpus.domains), int)
    for batch in batches:
        segments, domains = batch["segment_ids"], batch["domain_ids"]
        valid = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        targets += np.bincount(domains[:, 1:][valid], minlength=len(targets))
    assert dict(zip(corpus.domains, targets.tolist(), strict=True)) == corpus.held_out_targets
    assert same(
        list(corpus.held_out_batches(8, chosen=[3, 6])),
        [{key: value[[3, 6]] for key, value in batch.items()} for batch in batches],
    )


def test_workers_and_prefetch_change_nothing(corpus, data):
    whole = take(corpus.train_batches(4, seed=0), 4)
    for changes in ({"prefetch": 0}, {"workers": 1}):
        batches = open_corpus(dataclasses.replace(data, **changes), VOCAB).train_batches(4, seed=0)
        assert same(take(batches, 4), whole)
        batches.close()


def test_readers_survive_sigint_and_sigterm(corpus, data):
    batches = open_corpus(dataclasses.replace(data, workers=1), VOCAB).train_batches(4, seed=0)
    first = take(batches, 1)
    for reader in multiprocessing.active_children():
        for each in (signal.SIGINT, signal.SIGTERM):
            os.kill(reader.pid, each)
    time.sleep(0.5)  # time for a reader to die of the signal
    assert multiprocessing.active_children()
    assert same(first + take(batches, 11), take(corpus.train_batches(4, seed=0), 12))
    batches.close()


def test_readers_end_when_their_run_is_killed(run_python):
    began = time.monotonic()
    ended = run_python("-m", abandoned.__name__)  # waits for the reader too, which inherits stdout
    assert ended.returncode == -signal.SIGKILL and time.monotonic() - began < 50


def test_domains_are_spread_evenly_over_held_out_rows(corpus):
    rows = np.concatenate(
        [batch["domain_ids"][batch["segment_ids"].any(axis=1)] for batch in corpus.held_out_batches(4)]
    )
    shares = [(part[:, 0] == 0).mean() for part in np.array_split(rows, 4)]
    assert max(shares) - min(shares) < 0.25, shares
