"""The corpus of additions, its tokenizer, and the score that its runs have in studies."""

import importlib
import json
import re
import types

import pytest

from deepseek_jax.data import chat
from deepseek_jax.data.skipped import Skipped
from deepseek_jax.data.tokenizer import Tokenizer
from tests.experiments import rewarded
from tests.paths import ROOT

TOKENIZER = ROOT / "experiments/parts/sums_tokenizer.json"


@pytest.fixture(scope="module")
def sums():
    """The plugin, which adds a corpus: not imported while tests are collected, or all of them would know it."""
    return importlib.import_module("experiments.parts.sums")


def test_the_reasoning_adds_digit_by_digit(sums):
    assert sums.reasoning(47, 985) == ("7+5+0=12 4+8+1=13 0+9+1=10", "1032")
    assert sums.reasoning(0, 0) == ("0+0+0=00", "0")


def test_the_tokenizer_has_a_token_for_each_byte_and_control_token(sums, tmp_path):
    sums.write_tokenizer(str(tmp_path / "tokenizer.json"))
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(TOKENIZER.read_text())
    said = {"role": "assistant", "content": "3", "reasoning_content": "1+2+0=03"}
    talk = json.dumps([{"role": "user", "content": "1+2"}, said])
    ids, answers, _ = chat.encode_document(talk, "v4", Tokenizer(TOKENIZER))
    assert len(ids) == 3 + len("1+2") + len("1+2+0=03") + 1 + len("3") and sum(answers) == 10


def test_additions_differ_and_are_right(sums, tmp_path):
    corpus = sums.Sums(digits=2, count=500, seed=3, held_out=0.1, data_dir=tmp_path)
    documents = list(corpus.documents(Skipped()))
    assert len({document.group for document in documents}) == len(documents) == 500
    for document in documents:
        question, answer = json.loads(document.text)
        a, b = map(int, question["content"].split("+"))
        assert max(a, b) < 100 and int(answer["content"]) == a + b
    few = list(sums.Sums(digits=1, count=500, seed=3, held_out=0.1, data_dir=tmp_path).documents(Skipped()))
    assert len(few) == 100, "all that there are"


@pytest.mark.parametrize(
    "form, right", [("{thoughts}</think>{answer}", 1), ("</think>{answer}", 1), ("{answer}", 0), ("</think>", 0)]
)
def test_the_score_counts_answers_after_the_reasoning(sums, tmp_path, monkeypatch, form, right):
    experiment = rewarded.experiment(tmp_path)
    tokenizer = Tokenizer(TOKENIZER)

    def generate(model, prompts, longest, eos):
        found = []
        for prompt in prompts:
            a, b = map(int, tokenizer.decode(prompt[2:-2]).split("+"))  # without control tokens
            thoughts, answer = sums.reasoning(a, b)
            parts = re.split(f"({chat.THOUGHT})", form.format(thoughts=thoughts, answer=answer))
            pieces = [chat.Piece(part, control=part == chat.THOUGHT) for part in parts]
            found.append(chat.encode(pieces, tokenizer)[0])
        assert max(map(len, found)) < longest and eos == tokenizer.eos
        return found

    monkeypatch.setattr(sums, "generate", generate)
    assert sums.right(types.SimpleNamespace(experiment=experiment, model=None)) == {"right": right}
