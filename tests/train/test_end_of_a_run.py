"""What a run of text does beside its scores when it ends: no more of the held-out text is read than it takes."""

import dataclasses
import json
import types

import pytest

from deepseek_jax.config import EvalConfig, Experiment
from deepseek_jax.data import compressors
from deepseek_jax.data.pipeline import Corpus, open_corpus
from deepseek_jax.parallel import processes
from deepseek_jax.train import samples
from deepseek_jax.train.language_model import LanguageModelTask
from tests.train import tiny


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two domains; the documents of the first are as short as can be."""
    directory = tmp_path_factory.mktemp("corpus")
    data = tiny.experiment(directory).data
    (directory / "short.jsonl").write_text("".join(json.dumps({"text": f"{n}"}) + "\n" for n in range(400)))
    both = f"{directory}/short.jsonl=1,{data.source}=1"
    return open_corpus(dataclasses.replace(data, source="mix", weights=both, held_out=0.5), 400)


def task_of(corpus: Corpus, count: int = 0):
    task = object.__new__(LanguageModelTask)
    task.experiment, task.corpus = Experiment(data=corpus.data, eval=EvalConfig(samples=count)), corpus
    task.program = types.SimpleNamespace(graphdef=None, to_model=lambda *model: model)
    return task


def test_samples_begin_as_the_text_does_and_read_little_of_each_domain_once(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "generate", lambda model, tokens, *rest, **options: [[]] * len(tokens))
    whole = [corpus.held_out_text(domain) for domain in corpus.domains]
    read, original = [], corpus.held_out_text
    monkeypatch.setattr(corpus, "held_out_text", lambda *asked: read.append(original(*asked)) or read[-1])
    texts = task_of(corpus, 5).results({"params": {}, "buffers": {}}, tmp_path, None, [])
    prompts = [text[: samples.PROMPT].decode(errors="ignore") for text in whole]
    assert texts == [prompts[0], prompts[1], prompts[0], prompts[1], prompts[0]]
    assert len(read) == 2 and all(len(part) < len(text) for part, text in zip(read, whole, strict=True))


def test_compressors_are_given_all_text_once_in_the_process_that_writes_them(corpus, monkeypatch):
    expected = {name: bits["total"] for name, bits in compressors.bits_per_byte(corpus).items()}
    given, met = [], []
    counted = {name: lambda text, of=of: given.append(text) or of(text) for name, of in compressors.COMPRESSORS.items()}
    monkeypatch.setattr(compressors, "COMPRESSORS", counted)
    monkeypatch.setattr(processes, "barrier", lambda: met.append(len(given)))
    assert task_of(corpus).baselines() == expected and len(given) == 2
    monkeypatch.setattr(processes, "is_leader", lambda: False)
    assert task_of(corpus).baselines() == {} and len(given) == 2
    assert met == [2, 2]  # the others wait until it is done
