"""Preparing a corpus: complete or not at all, and only once; held-out sizes and compressor scores."""

import dataclasses
import gzip
import io
import json
import os
import pathlib
import signal
import tempfile

import pytest
from tensorflow_datasets.core.utils import gcs_utils

from deepseek_jax.config import DataConfig
from deepseek_jax.data import prepare
from deepseek_jax.data.compressors import bits_per_byte, total_bits_per_byte
from deepseek_jax.data.inspect import describe, render
from deepseek_jax.data.pipeline import open_corpus
from deepseek_jax.data.prepare import prepare_text
from deepseek_jax.errors import UserError
from deepseek_jax.reporting import no_report
from tests import call
from tests.data import killed
from tests.user_files import TOPICS

VOCAB = 600

STAGES = ["even: storing", "odd: storing", "training a tokenizer", "even: tokenizing held_out", "odd: tokenizing train"]


def entries(data: DataConfig) -> set[str]:
    """Names of the complete entries of the cache."""
    found = pathlib.Path(data.directory).glob("*/*")
    return {entry.name for entry in found if entry.suffix not in (".lock", ".partial")}


@pytest.mark.slow
def test_preparing_killed_at_any_stage_leaves_nothing_half_made(data, corpus, tmp_path, run_python):
    data = dataclasses.replace(data, directory=str(tmp_path))

    def prepared(kill_at: str) -> int:
        return run_python(*call.words(killed.prepare, dataclasses.asdict(data), VOCAB, kill_at)).returncode

    for complete, stage in enumerate(STAGES):
        assert prepared(stage) == -signal.SIGKILL
        assert len(entries(data)) == complete
    assert prepared("no such stage") == 0
    assert not list(tmp_path.glob("*/*.partial"))
    digests = [part.index["digest"] for part in open_corpus(data, VOCAB).parts]
    assert digests == [part.index["digest"] for part in corpus.parts]


def test_an_unwritable_data_directory_is_refused(tmp_path):
    (tmp_path / "notes.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    with pytest.raises(UserError, match=f"{cache}/text: Not a directory; .* DEEPSEEK_JAX_DATA"):
        open_corpus(DataConfig(source=str(tmp_path / "notes.jsonl"), directory=str(cache)), VOCAB)


def test_a_prepared_corpus_is_not_prepared_again(data, corpus):
    def report(stage, done, total):
        raise AssertionError(stage)

    assert open_corpus(data, VOCAB, report).held_out_bytes == corpus.held_out_bytes


def test_a_tokenizer_is_trained_on_each_source_by_its_weight(data, corpus, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(prepare, "SAMPLE_BYTES", 20_000)
    monkeypatch.setattr(prepare, "train_bpe", lambda texts, size, path: seen.extend(texts) or path.touch())
    weights = data.shares
    texts = dict(zip(weights, (part.text for part in corpus.parts), strict=True))
    prepare.prepare_tokenizer(VOCAB, weights, texts, tmp_path, no_report)
    for topics, share in (TOPICS[::2], 15_000), (TOPICS[1::2], 5_000):
        sizes = [len(document.encode()) for document in seen if document in topics]
        assert sum(sizes) >= share > sum(sizes[:-1])


def test_a_changed_file_is_prepared_again(tmp_path):
    path = tmp_path / "notes.jsonl"
    data = DataConfig(source=str(path), directory=str(tmp_path / "cache"), sequence_length=16, held_out=0.5)
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    before = open_corpus(data, VOCAB)
    path.write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\nbroken\n')
    after = open_corpus(data, VOCAB)
    assert before.domains == after.domains == ["notes"]
    assert len(after.parts[0].store("train")) == 1 + len(before.parts[0].store("train"))
    assert after.parts[0].skipped["places"] == [f"{path}:4: broken JSON"]


@pytest.mark.parametrize("stage", ["notes: reading", "notes: storing"])
def test_a_source_that_changes_while_it_is_prepared_is_refused_and_leaves_nothing(tmp_path, stage):
    path, cache = tmp_path / "notes.jsonl", tmp_path / "cache"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')

    def report(at, done, total):
        if at == stage:
            with path.open("a") as file:
                file.write('{"text": "three"}\n')

    data = DataConfig(source=str(path), directory=str(cache), sequence_length=16, held_out=0.5)
    with pytest.raises(UserError, match=f"^{path} changed while it was read"):
        open_corpus(data, VOCAB, report)
    assert [entry.suffix for entry in cache.glob("*/*")] == [".lock"]
    assert open_corpus(data, VOCAB).parts[0].index["bytes"]["train"] > 0


def test_a_pipe_is_refused_as_a_source(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe' is neither a corpus .* nor a file or directory"):
        open_corpus(DataConfig(source=str(tmp_path / "pipe"), directory=str(tmp_path / "cache")), VOCAB)


def test_skipped_records_are_summarised_in_a_sentence(tmp_path):
    path = tmp_path / "notes.jsonl"
    data = DataConfig(source=str(path), directory=str(tmp_path / "cache"), held_out=0.5)
    for broken, named in ((0, None), (2, "all"), (1001, "the first 100")):
        path.write_text('{"text": "one"}\n{"text": "two"}\n' + "broken\n" * broken)
        (part,) = open_corpus(data, VOCAB).parts
        first = f"notes: {broken:,} records were skipped, the first: {path}:3: broken JSON"
        assert part.skipped_sentence == (f"{first}; {named} in {part.text}/skipped.json" if broken else "")


def test_held_out_bytes_are_those_of_the_decoded_tokens(corpus):
    for name, part in zip(corpus.domains, corpus.parts, strict=True):
        text = corpus.held_out_text(name)
        store = part.store("held_out")
        assert len(text) == corpus.held_out_bytes[name] > 0
        assert text.count(b"\0") == len(store)
        decoded = [corpus.tokenizer.decode(store.read(i, 0, int(n))) for i, n in enumerate(store.lengths)]
        assert "".join(text + "\0" for text in decoded).encode() == text


def test_compressors_are_scored_on_exactly_the_held_out_bytes(corpus):
    scores = bits_per_byte(corpus)
    assert set(scores) == {"gzip -9", "xz -9"} and set(scores["xz -9"]) == {*corpus.domains, "total"}
    text = corpus.held_out_text(corpus.domains[0])
    assert scores["gzip -9"][corpus.domains[0]] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert total_bits_per_byte(corpus) == {name: bits["total"] for name, bits in scores.items()}


def test_held_out_zero_holds_nothing_out(data, tmp_path):
    corpus = open_corpus(dataclasses.replace(data, held_out=0.0, directory=str(tmp_path)), VOCAB)
    assert list(corpus.held_out_batches(4)) == [] and set(corpus.held_out_bytes.values()) == {0}
    assert bits_per_byte(corpus)["xz -9"] == total_bits_per_byte(corpus) == {}


def test_a_text_may_be_held_out_entirely(tmp_path, corpus):
    """With held_out=1 all of a single file is held out; nothing is left to train a tokenizer or a model on."""
    (tmp_path / "one.txt").write_text("a single document")
    data = DataConfig(source=str(tmp_path / "one.txt"), directory=str(tmp_path / "cache"), held_out=1.0)
    with pytest.raises(UserError, match="no text to train a tokenizer on; give data.tokenizer."):
        open_corpus(data, VOCAB)
    tokenizer = next((pathlib.Path(corpus.data.directory) / "tokenizers").glob("*/tokenizer.json"))
    scored = open_corpus(dataclasses.replace(data, tokenizer=str(tokenizer)), VOCAB)
    assert scored.held_out_text("one") == b"a single document\0"
    with pytest.raises(UserError, match="leaves nothing of one to train on."):
        scored.train_batches(1, seed=0)


def test_a_source_may_have_the_longest_possible_file_name(tmp_path):
    path = tmp_path / ("ü" * 118 + ".txt")
    path.write_text("a text")
    data = DataConfig(source=str(path), directory=str(tmp_path / "cache"), held_out=0.0)
    text = prepare_text(data, data.source, tmp_path / "cache", lambda *_: None)
    assert text.name.startswith("ü" * 50 + "-")


def test_a_given_tokenizer_is_used(data, corpus):
    (path,) = pathlib.Path(data.directory).glob("tokenizers/*/tokenizer.json")
    given = dataclasses.replace(data, tokenizer=str(path))
    assert open_corpus(given, 4096).parts[0].index == corpus.parts[0].index
    with pytest.raises(UserError, match="set model.vocab_size to at least"):
        open_corpus(given, 300)


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a corpus .* nor a file"):
        open_corpus(DataConfig(source="prosa", directory=str(tmp_path)), VOCAB)


def test_a_data_directory_among_its_own_texts_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 50)
    data = DataConfig(source=str(tmp_path), directory=str(tmp_path / "prepared"), held_out=0.5, sequence_length=8)
    with pytest.raises(UserError, match="among the texts of .*; give another data.directory"):
        open_corpus(data, VOCAB, lambda *_: None)
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_domain_weights_are_parsed_and_normalised():
    assert DataConfig(source="code", weights="unused").shares == {"code": 1.0}
    assert DataConfig(weights="prose=3, a=b.txt=1").shares == {"prose": 0.75, "a=b.txt": 0.25}
    several = "prose=1,prose=2", "prose=-1,code=2", "code=1,=1", "prose=1e308,code=1e308"
    for weights in ("prose", "prose=x", "prose=0", "prose=nan", "prose=inf", "", *several):
        with pytest.raises(UserError, match="data.weights"):
            DataConfig(weights=weights)


def test_description_shows_sizes_and_a_packed_row(corpus):
    from rich.console import Console

    description = describe(corpus)
    assert json.loads(json.dumps(description)) == description
    sizes = description["domains"]["even"]
    assert sizes["held_out"]["bytes"] + sizes["held_out"]["documents"] == corpus.held_out_bytes["even"]
    assert sum(piece["tokens"] for piece in description["rows"]["even"]) <= corpus.data.sequence_length
    console = Console(width=100, file=io.StringIO())
    console.print(render(description))
    assert "segment 1" in console.file.getvalue() and "even: 0 records were skipped" in console.file.getvalue()


def test_preparing_needs_no_network_and_leaves_no_temporary_files(tmp_path, monkeypatch):
    """By itself tensorflow-datasets would look the name up in a Google bucket, and leave a directory in /tmp."""
    (tmp_path / "one.txt").write_text("A text of one file.\n" * 200)
    (beside := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(beside))
    monkeypatch.setattr(gcs_utils, "gcs_dataset_info_files", lambda name: pytest.fail(f"asked for {name}"))
    open_corpus(DataConfig(source=str(tmp_path / "one.txt"), directory=str(tmp_path / "cache"), held_out=0.0), 300)
    assert list(beside.iterdir()) == []
