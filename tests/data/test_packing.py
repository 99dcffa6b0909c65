"""Packing: each token of the stream is a target exactly once, documents are separate, and FIM only rearranges them."""

import collections
import json
import pickle
import types

import numpy as np
import pytest

from deepseek_jax.data.packing import PackedRows, rows_in
from deepseek_jax.data.tokens import BLOCK, TokenStore, write_tokens
from deepseek_jax.reporting import no_report


def epoch_rows(rows: PackedRows, number=0):
    return [rows[number * rows.rows_per_epoch + i] for i in range(rows.rows_per_epoch)]


def in_stream_order(rows: PackedRows, number=0):
    found = epoch_rows(rows, number)
    return [found[i] for i in np.argsort(rows.epoch(number).rows)]


def stream(rows: PackedRows, number=0):
    """The token stream that an epoch's rows were cut from; each row repeats the last token of the one before."""
    tokens = []
    for row in in_stream_order(rows, number):
        real = row["tokens"][row["segment_ids"] > 0].tolist()
        assert not tokens or tokens[-1] == real[0]
        tokens += real[1:] if tokens else real
    return tokens


def documents(rows: PackedRows, number=0):
    """The documents of an epoch's stream, without bos and eos."""
    found, tokens = [], stream(rows, number)
    while tokens:
        end = tokens.index(rows.eos) + 1
        assert tokens[0] == rows.bos
        found.append(tokens[1 : end - 1])
        tokens = tokens[end:]
    return found


def stored(store: TokenStore):
    return [store.read(i, 0, int(n)).tolist() for i, n in enumerate(store.lengths)]


def test_an_epoch_has_every_document_once_and_nothing_else(plain):
    rows = plain.train_rows(0, seed=1)
    expected = sorted(stored(rows.store))
    assert sorted(documents(rows, 0)) == sorted(documents(rows, 1)) == expected
    assert documents(rows, 0) != documents(rows, 1)


def test_every_token_is_a_target_exactly_once(plain):
    rows = plain.train_rows(1, seed=0)
    targets = collections.Counter()
    for row in epoch_rows(rows):
        segments = row["segment_ids"]
        valid = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        targets.update(row["tokens"][1:][valid].tolist())
    # All tokens but each document's bos, which no token precedes.
    expected = collections.Counter(token for document in stored(rows.store) for token in [*document, rows.eos])
    assert targets == expected


def test_segments_and_positions_follow_the_documents(corpus):
    rows = corpus.train_rows(0, seed=0)
    rows.pad = 9  # the tokenizer's own is 0
    for row in in_stream_order(rows)[-300:]:
        segments, positions, tokens = row["segment_ids"], row["positions"], row["tokens"]
        real = int((segments > 0).sum())
        assert (segments[real:] == 0).all() and (tokens[real:] == rows.pad).all()
        starts = np.concatenate([[True], tokens[: real - 1] == rows.eos])
        assert (segments[:real] == np.cumsum(starts)).all()
        since = np.arange(real) - np.maximum.accumulate(np.where(starts, np.arange(real), 0))
        assert (positions[:real] == since).all()
        assert (row["domain_ids"] == 0).all()
        assert all(value.dtype == np.int32 and value.shape == (rows.sequence_length,) for value in row.values())


def test_fim_rearranges_the_right_share_and_loses_nothing(corpus):
    rows = corpus.train_rows(0, seed=0)
    begin, hole, end = rows.sentinels
    undone, cut = [], 0
    for document in documents(rows):
        if document[0] == begin:
            cut += 1
            prefix, rest = document[1 : document.index(hole)], document[document.index(hole) + 1 :]
            suffix, middle = rest[: rest.index(end)], rest[rest.index(end) + 1 :]
            document = prefix + middle + suffix
        undone.append(document)
    assert sorted(undone) == sorted(stored(rows.store))
    assert cut == round(corpus.data.fim_rate * len(rows.store))


def test_held_out_documents_are_never_rearranged_for_fim(corpus):
    for batch in corpus.held_out_batches(4):
        assert not np.isin(batch["tokens"], corpus.train_rows(0, seed=0).sentinels).any()


def test_rows_are_random_access(corpus):
    rows = corpus.train_rows(0, seed=3)
    again = pickle.loads(pickle.dumps(corpus.train_rows(0, seed=3)))
    for index in (7 * rows.rows_per_epoch + 5, 0, rows.rows_per_epoch - 1, 7 * rows.rows_per_epoch + 5):
        assert all((rows[index][key] == again[index][key]).all() for key in rows[index])
    other = corpus.train_rows(0, seed=4)
    assert any((rows[i]["tokens"] != other[i]["tokens"]).any() for i in range(3))


def test_each_epoch_and_domain_has_its_own_order(plain):
    """Rows are shuffled too, so that those that share a document are separated."""
    one = plain.train_rows(0, seed=3)
    length = plain.data.sequence_length
    other = PackedRows(one.store, plain.tokenizer, sequence_length=length, fim_rate=0.0, domain=1, seed=3)
    epochs = [one.epoch(0), one.epoch(1), other.epoch(0)]
    for orders in ([epoch.documents.tolist() for epoch in epochs], [epoch.rows.tolist() for epoch in epochs]):
        assert len({tuple(order) for order in orders}) == 3
        assert all(sorted(order) == [*range(len(order))] != order for order in orders)


def test_store_reads_across_blocks(corpus):
    store = corpus.parts[0].store("train")
    assert store.lengths.sum() > 3 * BLOCK
    whole = np.concatenate([store._blocks[i]["ids"] for i in range(len(store._blocks))])
    assert np.concatenate(stored(store)).tolist() == whole.tolist()
    document = int(np.argmax(store.lengths))
    start = int(store.lengths[:document].sum())
    assert (store.read(document, 3, 90) == whole[start + 3 : start + 90]).all()


def written(directory, corpus, *ids: list[int]) -> str:
    """Writes a store with these ids for the first texts, and [7] for all others, and returns its digest.

    The vocabulary has 70,000 entries.
    """
    directory.mkdir()
    tokenizer = types.SimpleNamespace(
        vocab_size=70_000, encode_batch=lambda texts: [*ids, *[[7]] * (len(texts) - len(ids))]
    )
    write_tokens(directory, corpus.parts[0].dataset, tokenizer, no_report)
    return json.loads((directory / "index.json").read_text())["digest"]


def test_token_ids_beyond_16_bits_are_kept(corpus, tmp_path):
    written(tmp_path / "large", corpus, [65_535, 65_536, 69_999])
    assert TokenStore(tmp_path / "large", "train").read(0, 0, 3).tolist() == [65_535, 65_536, 69_999]


def test_documents_without_a_token_are_bos_and_eos(corpus, tmp_path):
    """A tokenizer that leaves out what it does not know may leave nothing of a text."""
    tokenizer = types.SimpleNamespace(vocab_size=300, encode_batch=lambda texts: [[] for _ in texts])
    write_tokens(tmp_path, corpus.parts[0].dataset, tokenizer, no_report)
    store, settings = TokenStore(tmp_path, "train"), {"sequence_length": 4, "fim_rate": 0.0, "domain": 0, "seed": 0}
    rows = PackedRows(store, corpus.tokenizer, **settings)
    assert len(store) > 1 and stream(rows) == [rows.bos, rows.eos] * len(store)


def test_the_digest_depends_on_document_boundaries(corpus, tmp_path):
    assert written(tmp_path / "one", corpus, [1, 2], [3]) != written(tmp_path / "other", corpus, [1], [2, 3])


@pytest.mark.parametrize("stream_length, rows", [(0, 0), (1, 0), (2, 1), (32, 1), (33, 2), (63, 2), (64, 3)])
def test_number_of_rows_in_a_stream(stream_length, rows):
    assert rows_in(stream_length, 32) == rows


def test_fim_may_cut_a_document_at_its_ends():
    from deepseek_jax.data.packing import Epoch

    cuts = Epoch(np.full(400, 3), 32, 1.0, (0,)).cuts
    assert set(cuts[:, 0]) == set(cuts[:, 1]) == {0, 1, 2, 3} and (cuts[:, 0] <= cuts[:, 1]).all()


def test_each_epoch_rearranges_other_documents():
    from deepseek_jax.data.packing import Epoch

    epochs = (Epoch(np.full(40, 3), 32, 0.5, (number,)) for number in range(2))
    one, other = (np.flatnonzero(epoch.cuts[:, 0] >= 0).tolist() for epoch in epochs)
    assert len(one) == len(other) == 20 and one != other


def test_the_number_of_rearranged_documents_is_rounded():
    from deepseek_jax.data.packing import Epoch

    cuts = Epoch(np.full(9, 3), 32, 0.1, (0,)).cuts  # 0.9 of a document
    assert (cuts[:, 0] >= 0).sum() == 1
