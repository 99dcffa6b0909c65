"""Conversations: chat templates, the mask of answers from packing to the loss, and refusals."""

import dataclasses
import datetime
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from deepseek_jax import api
from deepseek_jax.config import DataConfig, EvalConfig, OptimizerConfig
from deepseek_jax.data import chat, compressors, documents
from deepseek_jax.data.inspect import describe, render
from deepseek_jax.data.pipeline import SEPARATOR, open_corpus
from deepseek_jax.data.tokenizer import Tokenizer, train_bpe
from deepseek_jax.errors import UserError
from deepseek_jax.tasks import language_model
from deepseek_jax.train import samples
from deepseek_jax.train.loop import train
from tests.train import tiny

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2", "reasoning_content": "easy"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4", "reasoning_content": "two twos"},
]
# What DeepSeek's own templates make of TURNS, between bos and the last eos.
WRITTEN = {
    "v3": "Be brief.<｜User｜>1+1?<｜Assistant｜>2<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>4",
    "v3.2": "Be brief.<｜User｜>1+1?<｜Assistant｜></think>2<｜end▁of▁sentence｜>"
    "<｜User｜>2+2?<｜Assistant｜><think>two twos</think>4",
}
SAID = {"v3": ["2", "<｜end▁of▁sentence｜>", "4"], "v3.2": ["2", "<｜end▁of▁sentence｜>", "two twos", "</think>", "4"]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of bytes alone, which of a conversation's control tokens has only the user's."""
    path = tmp_path_factory.mktemp("chat") / "tokenizer.json"
    train_bpe([], 400, path)
    description = json.loads(path.read_text())
    description["added_tokens"].append(description["added_tokens"][-1] | {"id": 262, "content": chat.USER})
    description["model"]["vocab"][chat.USER] = 262
    path.write_text(json.dumps(description))
    return Tokenizer(path)


@pytest.mark.parametrize("template", ["v3", "v3.2"])
def test_templates_equal_deepseeks(template):
    pieces = chat.render(chat.checked(TURNS), template)
    assert "".join(piece.text for piece in pieces) == WRITTEN[template]
    assert [piece.text for piece in pieces if piece.answer] == SAID[template]
    assert chat.render(TURNS, "v4") == chat.render(TURNS, "v3.2")


def test_control_tokens_are_found_by_name_and_never_forged(tokenizer):
    forged = [{"role": "user", "content": chat.USER}, {"role": "assistant", "content": "yes"}]
    ids, answers = chat.encode(chat.render(forged, "v3"), tokenizer)
    assert ids.count(tokenizer.token(chat.USER)) == 1 and tokenizer.token(chat.ASSISTANT) is None
    assert tokenizer.decode(ids) == f"{chat.USER}{chat.USER}{chat.ASSISTANT}yes"
    said = [id for id, answer in zip(ids, answers, strict=True) if answer]
    assert tokenizer.decode(said) == "yes"
    assert chat.prompt(forged[:1], "v3", tokenizer) == [tokenizer.bos, *ids[: -len(said)]]


@pytest.mark.parametrize("think", [False, True])
def test_a_prompt_ends_where_the_last_answer_begins(tokenizer, think):
    thoughts = {"reasoning_content": "two twos"} if think else {"reasoning_content": ""}
    ids, answers = chat.encode(chat.render([*TURNS[:-1], TURNS[-1] | thoughts], "v4"), tokenizer)
    last = len(answers) - answers[::-1].index(0)
    assert chat.prompt(TURNS[:-1], "v4", tokenizer, think) == [tokenizer.bos, *ids[:last]]
    assert tokenizer.decode(ids[:last]).endswith(chat.THINK if think else chat.THOUGHT)
    assert chat.encode_spelled(chat.spell(TURNS[:-1], "v4", think), tokenizer) == [tokenizer.bos, *ids[:last]]


def test_a_spelled_conversation_may_end_in_the_beginning_of_an_answer(tokenizer):
    begun = [TURNS[1], {"role": "assistant", "content": "It is"}]
    assert chat.spell(begun, "v3.2") == "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜></think>It is"
    expected = [tokenizer.bos, *chat.encode(chat.render(begun, "v3.2"), tokenizer)[0]]
    assert chat.encode_spelled(chat.spell(begun, "v3.2"), tokenizer) == expected


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("text", "not a list of messages"),
        (TURNS[1:2], "not user and assistant in turns"),
        (TURNS[2:], "not user and assistant in turns"),
        ([TURNS[1], {"role": "assistant", "content": " "}], "a message without text"),
        ([TURNS[1], {"role": "assistant", "content": 4}], "a message without text"),
        ([{"role": "user"}, TURNS[2]], "a message without text"),
    ],
)
def test_malformed_conversations_are_refused(messages, reason):
    with pytest.raises(ValueError, match=reason):
        chat.checked(messages)


def test_other_keys_of_a_message_may_be_of_any_type():
    turns = [{"role": "user", "content": "a", "at": datetime.datetime(2026, 1, 1)}]
    turns += [{"role": "assistant", "content": "b", "name": "\ud800"}]
    kept = json.loads(documents._chat_of(turns, "messages"))
    assert kept == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_null_reasoning_content_counts_as_none():
    talk = [TURNS[1], TURNS[2] | {"reasoning_content": None}]
    assert chat.render(chat.checked(talk), "v3.2") == chat.render(
        [TURNS[1], {"role": "assistant", "content": "2"}], "v4"
    )


@pytest.mark.parametrize(("held_out", "found"), [(0.2, 20), (0.0, 0)])
def test_samples_use_the_held_out_questions_cyclically(corpus, held_out, found):
    data = dataclasses.replace(corpus.data, held_out=held_out)
    held = open_corpus(data, 400)
    heads = [held.held_out_text(held.domains[0])] * 20
    texts = [text for text in samples.questions(heads, 1) if text]
    assert len(texts) == found and all(json.loads(text)[0]["role"] == "user" for text in texts)
    if found:
        count = held.held_out_text(held.domains[0]).count(SEPARATOR)
        assert 1 < count < 20 and texts[0] == texts[count] != texts[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    """Forty conversations of unequal length, and two invalid records."""
    directory = tmp_path_factory.mktemp("chats")
    talks = [
        [{"role": "user", "content": "q" * (number % 7 + 1)}, {"role": "assistant", "content": "z" * (number % 5 + 1)}]
        for number in range(40)
    ]
    records = [json.dumps({"messages": talk}) for talk in [*talks, "none", talks[0][:1]]]
    (directory / "talks.jsonl").write_text("\n".join(records))
    data = DataConfig(
        source=str(directory / "talks.jsonl"),
        directory=str(directory / "prepared"),
        tokenizer=str(tokenizer.path),
        sequence_length=32,
        fim_rate=0.0,
        held_out=0.2,
        chat="v3",
    )
    return open_corpus(data, 400)


def test_packed_rows_mark_the_tokens_of_answers(corpus, tokenizer):
    assert corpus.parts[0].skipped["count"] == 2
    rows = [row for batch in corpus.held_out_batches(4) for row in map(dict, _rows(batch))]
    asked = 0
    for row in rows:
        said = (row["tokens"] == tokenizer.encode("z")[0]) | (row["tokens"] == tokenizer.eos)
        np.testing.assert_array_equal(row["answers"] > 0, said & (row["segment_ids"] > 0))
        within = (row["segment_ids"][1:] == row["segment_ids"][:-1]) & (row["segment_ids"][1:] > 0)
        asked += int((within & (row["answers"][1:] > 0)).sum())
    assert asked == corpus.held_out_targets["talks"]
    letters = sum(len(json.loads(talk)[1]["content"]) + 1 for talk in _texts(corpus))
    assert corpus.held_out_bytes["talks"] == letters


def test_held_out_sizes_count_answers_only(corpus):
    description = describe(corpus)
    sizes = description["domains"]["talks"]["held_out"]
    assert sizes["answers"] + sizes["documents"] == corpus.held_out_targets["talks"]
    assert sizes["answers"] < sizes["tokens"] == corpus.parts[0].store("held_out").lengths.sum()
    assert sizes["bytes"] == sizes["answers"], "an answer is letters of one byte, each a token"
    assert sizes["bytes_per_token"] == 1.0
    console = Console(width=200, file=io.StringIO())
    console.print(render(description))
    assert f"are of what the assistant says, {description['domains']['talks']['train']['answers']}" in (
        console.file.getvalue()
    )


def test_there_are_no_compressor_baselines_for_conversations(corpus):
    """Compressors would have to compress the questions too, so their scores would not be comparable."""
    assert corpus.held_out_bytes["talks"] > 0
    assert compressors.bits_per_byte(corpus) == compressors.total_bits_per_byte(corpus) == {}


def test_a_run_trains_on_answers_and_generates_from_wrapped_prompts(corpus, tokenizer, run_command, tmp_path):
    evaluation = EvalConfig(every=0, batches=1, final_batches=1, samples=1, sample_tokens=4)
    experiment = dataclasses.replace(
        tiny.experiment(tmp_path, steps=2), data=corpus.data, optimizer=OptimizerConfig(), eval=evaluation
    )
    scores = train(experiment, tmp_path / "run", Console(quiet=True))
    assert math.isfinite(scores["final/loss"])
    asked = json.loads(_texts(corpus)[0])[0]["content"]
    assert (tmp_path / "run/samples.txt").read_text().startswith(f"{asked}\n")
    words = "generate", "--workdir", str(tmp_path / "run"), "--prompt", "qq", "--max-new-tokens", "4"
    status, answer, _ = run_command(*words)
    wrapped = chat.prompt([{"role": "user", "content": "qq"}], "v3", tokenizer)
    said = api.generate(api.from_pretrained(tmp_path / "run"), [wrapped], 4, eos=tokenizer.eos)[0]
    assert status == 0 and answer == f"qq\n{tokenizer.decode(said)}\n"
    status, _, said = run_command(*words, "--think")
    assert status == 2 and "the template v3 has none" in said
    status, thinking, _ = run_command(*words, "--think", "--chat", "v4")
    wrapped = chat.prompt([{"role": "user", "content": "qq"}], "v4", tokenizer, think=True)
    said = api.generate(api.from_pretrained(tmp_path / "run"), [wrapped], 4, eos=tokenizer.eos)[0]
    assert status == 0 and thinking == f"qq\n{tokenizer.decode(said)}\n" != answer


def _rows(batch):
    return [{name: array[row] for name, array in batch.items()} for row in range(len(batch["tokens"]))]


def _texts(corpus):
    return [text for text in corpus.held_out_text("talks").split(b"\0") if text]


def test_only_answers_are_targets_at_every_depth(corpus):
    batch = next(iter(corpus.held_out_batches(4)))
    counts = language_model.totals({name: array[None] for name, array in batch.items()}, 2)
    answers, segments = batch["answers"], batch["segment_ids"]
    for depth in (1, 2):
        same = (segments[:, depth:] == segments[:, :-depth]) & (segments[:, depth:] > 0)
        expected = same & (answers[:, depth:] > 0)
        got = np.asarray(language_model.targets(batch, depth))
        np.testing.assert_array_equal(got[:, :-depth], expected)
        assert not got[:, -depth:].any()
        assert counts[f"targets_{depth}"] == expected.sum() and counts[f"seen_{depth}"] == same.sum()


def test_contradictory_chat_settings_are_refused(corpus):
    with pytest.raises(UserError, match="data.chat needs data.tokenizer"):
        DataConfig(chat="v3", fim_rate=0.0)
    with pytest.raises(UserError, match="data.fim_rate is 0.1; conversations"):
        DataConfig(chat="v3", tokenizer="x")
    with pytest.raises(UserError, match="data.chat is 'v5'; choose one of v3, v3.2, v4"):
        DataConfig(chat="v5")
    with pytest.raises(UserError, match="operations are conversations; set data.chat"):
        open_corpus(dataclasses.replace(corpus.data, source="operations", chat=""), 400)
    with pytest.raises(UserError, match="prose is text; leave data.chat empty"):
        open_corpus(dataclasses.replace(corpus.data, source="prose"), 400)
