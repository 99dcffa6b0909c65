"""What a run ends with: its table of scores; samples and baselines, which read no more held-out text than they need."""

import dataclasses
import gzip
import json
import lzma
import pathlib
import shutil
import types

import pytest
from rich.console import Console

from deepseek_jax.config import EvalConfig, Experiment
from deepseek_jax.data import compressors
from deepseek_jax.data.pipeline import Corpus, open_corpus
from deepseek_jax.parallel import processes
from deepseek_jax.train import samples
from deepseek_jax.train.language_model import LanguageModelTask
from deepseek_jax.train.reporting import summary
from deepseek_jax.train.reporting.shown import SHOWN
from tests.train import tiny
from tests.user_files import write_texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two domains, the first with the shortest possible documents."""
    directory = tmp_path_factory.mktemp("corpus")
    data = tiny.experiment(directory).data
    write_texts(directory / "short.jsonl", map(str, range(400)))
    both = f"{directory}/short.jsonl=1,{data.source}=1"
    return open_corpus(dataclasses.replace(data, source="mix", weights=both, held_out=0.5), 400)


@pytest.fixture
def uncompressed(corpus):
    """The corpus without stored results of earlier compressions."""
    shutil.rmtree(pathlib.Path(corpus.data.directory) / "compressed", ignore_errors=True)
    return corpus


def task_of(corpus: Corpus, count: int = 0):
    task = object.__new__(LanguageModelTask)
    task.experiment, task.corpus = Experiment(data=corpus.data, eval=EvalConfig(samples=count)), corpus
    task.program = types.SimpleNamespace(graphdef=None, to_model=lambda *model: model)
    return task


def test_sample_prompts_are_held_out_openings_and_little_text_is_read_for_them(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "generate", lambda model, tokens, *rest, **options: [[]] * len(tokens))
    whole = [corpus.held_out_text(domain) for domain in corpus.domains]
    read, original = [], corpus.held_out_text
    monkeypatch.setattr(corpus, "held_out_text", lambda *asked: read.append(original(*asked)) or read[-1])
    texts = task_of(corpus, 5).results({"params": {}, "buffers": {}}, tmp_path, None, [])
    firsts = [text.partition(samples.SEPARATOR)[0] for text in whole]
    prompts = [first[: samples.PROMPT].decode(errors="ignore") for first in firsts]
    assert texts == [prompts[0], prompts[1], prompts[0], prompts[1], prompts[0]]
    assert len(read) == 2 and all(len(part) < len(text) for part, text in zip(read, whole, strict=True))


def test_only_the_leader_compresses_the_held_out_text(uncompressed, monkeypatch):
    corpus = uncompressed
    texts = [corpus.held_out_text(domain) for domain in corpus.domains]
    size, told, met = sum(map(len, texts)), [], []
    expected = {
        "gzip -9": 8 * len(gzip.compress(b"".join(texts), 9)) / size,
        "xz -9": 8 * len(lzma.compress(b"".join(texts), preset=9)) / size,
    }
    monkeypatch.setattr(processes, "barrier", lambda: met.append(len(told)))

    def ask():
        return task_of(corpus).baselines(lambda *stage: told.append(stage))

    assert ask() == expected and [done for _, done, of in told if of == size] == [0, len(texts[0])]
    monkeypatch.setattr(processes, "is_leader", lambda: False)
    assert ask() == {} and len(told) == 2
    assert met == [2, 2]  # both processes reach the barrier after the leader's work


def test_compressed_sizes_are_stored_and_each_text_has_its_own(uncompressed):
    first = compressors.bits_per_byte(uncompressed)
    told = []
    assert compressors.bits_per_byte(uncompressed, lambda *stage: told.append(stage)) == first and not told
    assert compressors.total_bits_per_byte(uncompressed) == {name: bits["total"] for name, bits in first.items()}
    assert all(len(set(bits.values())) == 3 for bits in first.values())  # one for each domain and one for both


def test_compressed_sizes_need_no_writable_directory(uncompressed, monkeypatch):
    def refuse(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(compressors, "write_json", refuse)
    first = compressors.total_bits_per_byte(uncompressed)
    assert compressors.total_bits_per_byte(uncompressed) == first != {}


def test_a_score_without_a_label_is_in_the_table_under_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "LOWER", (*summary.LOWER, "median_error"))
    row = {"step": 3, "final/mse": 0.25, "final/median_error": 0.125, "final/loss/part": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    with (console := Console(width=120)).capture() as captured:
        summary.show(console, tmp_path, SHOWN["supervised"], [])
    shown = [line.strip("│ ").split() for line in captured.get().splitlines() if line.startswith("│")]
    assert shown[:2] == [["test", "mean", "squared", "error", "│", "0.25"], ["median_error", "│", "0.125"]]
