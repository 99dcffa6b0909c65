"""GRPO as a plugin: which questions it asks, what it rewards, its gradient beside the objective's, meshes, resuming."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.train.loop import train
from deepseek_jax.train.reporting.sinks import read_rows
from deepseek_jax.train.start import first_state
from deepseek_jax.train.step import gradient_function
from tests.experiments import rewarded

EOS, THOUGHT = 1, 9


@pytest.fixture(scope="module")
def grpo():
    """The plugin, which adds a part: not imported while tests are collected, or all of them would know that part."""
    return importlib.import_module("experiments.parts.grpo")


@pytest.fixture
def small(grpo):
    return grpo.GRPO(group_size=2, question_tokens=3, answer_tokens=4)


def packed(*conversations, length=24):
    """A row with these (question, answer) pairs, the last one cut at the row's end."""
    row = {name: np.zeros(length, np.int32) for name in ("tokens", "segment_ids", "answers", "domain_ids")}
    at = 0
    for number, (question, answer) in enumerate(conversations, start=1):
        tokens = [*question, *answer]
        room = slice(at, min(at + len(tokens), length))
        count = room.stop - at
        row["tokens"][room], row["segment_ids"][room] = tokens[:count], number
        row["answers"][room] = ([0] * len(question) + [1] * len(answer))[:count]
        at = room.stop
    return row


def stacked(*rows):
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}


def test_the_second_conversation_of_a_row_is_asked(grpo, small):
    first, second, third = ([5], [6, EOS]), ([7, 8], [4, 3, EOS]), ([2], [2, EOS])
    asked = jax.jit(grpo.questions, static_argnums=1)(stacked(packed(first, second, third)), small)
    assert asked.tokens_NP.tolist() == [[0, 7, 8]] * 2 and asked.padding_N.tolist() == [1, 1]
    assert asked.references_NA.tolist() == [[4, 3, EOS, EOS]] * 2
    assert asked.there_N.all() and asked.eos == EOS


@pytest.mark.parametrize(
    "second, length",
    [
        pytest.param(([7, 8, 8, 8], [4, EOS]), 24, id="a question that is too long"),
        pytest.param(([7], [4, 4, 4, 4, EOS]), 24, id="an answer that is too long"),
        pytest.param(([7], [4, 4, EOS]), 6, id="an answer that the row cuts"),
        pytest.param(([7, 7], [4]), 5, id="a question that the row cuts"),
    ],
)
def test_what_does_not_fit_is_left_out(grpo, small, second, length):
    whole = packed(([5], [6, EOS]), ([7], [4, EOS]), ([2], [2, EOS]), length=24)
    rows = whole, packed(([5], [6, EOS]), second, length=length)
    rows = [{name: np.pad(x, (0, 24 - len(x)), mode="edge") for name, x in row.items()} for row in rows]
    asked = jax.jit(grpo.questions, static_argnums=1)(stacked(*rows), small)
    assert asked.there_N.tolist() == [True, True, False, False] and asked.eos == EOS
    batch = grpo.rows_of(asked, jnp.full((4, 4), 3), jnp.full(4, 4))
    assert not batch["segment_ids"][2:].any() and not batch["answers"][2:].any()


@pytest.mark.parametrize(
    "answer, right",
    [
        ([2, THOUGHT, 4, EOS, EOS, EOS], True),
        ([THOUGHT, 4, EOS, EOS, EOS, EOS], True),  # with less reasoning
        ([2, 2, 2, THOUGHT, 4, EOS], True),  # with more
        ([THOUGHT, 5, THOUGHT, 4, EOS, EOS], True),  # what follows the last end of it counts
        ([2, THOUGHT, 5, EOS, EOS, EOS], False),
        ([2, THOUGHT, 4, 4, EOS, EOS], False),
        ([2, THOUGHT, EOS, EOS, EOS, EOS], False),
        ([4, EOS, EOS, EOS, EOS, EOS], False),  # without an end of the reasoning
        ([2, 2, 2, 2, THOUGHT, 4], False),  # without an end
    ],
)
def test_an_answer_is_right_by_what_follows_its_reasoning(grpo, answer, right):
    reference = jnp.asarray([[7, THOUGHT, 4, EOS, EOS, EOS]])
    assert grpo.is_right(jnp.asarray([answer]), reference, EOS, THOUGHT).tolist() == [right]


def test_without_reasoning_the_whole_answer_has_to_be_right(grpo):
    reference = jnp.asarray([[4, 5, EOS]] * 3)
    answers = jnp.asarray([[4, 5, EOS], [4, EOS, EOS], [5, 5, EOS]])
    assert grpo.is_right(answers, reference, EOS, -1).tolist() == [True, False, False]


def test_advantages_are_distances_from_the_mean_of_a_group(grpo):
    rewards = jnp.asarray([1.0, 0, 0, 0, 1, 1, 1, 1])
    found, undecided = grpo.advantages(rewards, group_size=4)
    np.testing.assert_allclose(found, [3**0.5, *[-(3**-0.5)] * 3, 0, 0, 0, 0], atol=1e-4)
    assert undecided.tolist() == [False] * 4 + [True] * 4


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("grpo")


def test_the_gradient_is_that_of_the_objective(grpo, directory, monkeypatch):
    """Of equation 3 of DeepSeekMath with its divergence, by automatic differentiation, in two microbatches."""
    monkeypatch.setattr(grpo, "is_right", rewarded.rewards_even_tokens)
    weight = 0.3
    changes = {"train.ema_decay": 0.9, "parts.grpo.kl_weight": weight, "train.microbatch_size": 4}
    setup = rewarded.prepared(directory, changes)
    state = first_state(setup)
    state["ema"]["params"] = jax.tree.map(lambda leaf: 0.9 * leaf, state["ema"]["params"])
    program = setup.program
    rows, told = jax.jit(program.rollouts)(state, next(setup.inputs()), 3)
    flat = {name: leaf.reshape(-1, leaf.shape[-1]) for name, leaf in rows.items()}
    count, columns = flat["tokens"].shape
    assert count == 32 and 0 < told["rollout/reward"] < 1 and told["rollout/kl"] > 0

    reward_QG = (flat["tokens"][:, 8] % 2 == 0).reshape(-1, 4).astype(jnp.float32)
    spread_QG = reward_QG - reward_QG.mean(axis=1, keepdims=True)
    advantage_N1 = (spread_QG / (reward_QG.std(axis=1, keepdims=True) + grpo.EPS)).reshape(-1, 1)

    def log_probabilities(params):
        model = tree.merge(program.graphdef, params, state["buffers"])
        logits = model.logits(model(flat["tokens"], flat["positions"], flat["segment_ids"]).hidden)[:, :-1]
        return jnp.take_along_axis(jax.nn.log_softmax(logits), flat["tokens"][:, 1:, None], axis=-1)[..., 0]

    reference_NT, said_NT = log_probabilities(state["ema"]["params"]), flat["answers"][:, 1:]

    def objective(params):
        new_NT = log_probabilities(params)
        ratio_NT = jnp.exp(new_NT - jax.lax.stop_gradient(new_NT))
        apart_NT = reference_NT - new_NT
        gain_NT = ratio_NT * advantage_N1 - weight * (jnp.exp(apart_NT) - apart_NT - 1)
        return ((gain_NT * said_NT).sum(axis=1) / said_NT.sum(axis=1)).mean()

    def in_halves(params):
        gradient = gradient_function(program, state, rows, 3)
        parts = ({name: leaf[k] for name, leaf in rows.items()} for k in range(2))
        return jax.tree.map(jnp.add, *(gradient(params, part, k)[1] for k, part in enumerate(parts)))

    expected = jax.jit(jax.grad(lambda params: -objective(params)))(state["params"])
    found = jax.jit(in_halves)(state["params"])
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * scale)


@pytest.mark.slow
def test_a_run_that_is_stopped_draws_the_same_answers(grpo, directory, monkeypatch):
    monkeypatch.setattr(grpo, "is_right", rewarded.rewards_even_tokens)
    found = rewarded.experiment(directory)
    train(found, directory / "whole", rewarded.QUIET)
    train(found, directory / "stopped", rewarded.QUIET, until=3)
    train(found, directory / "stopped", rewarded.QUIET)
    whole, stopped = (
        [
            {name: row[name] for name in ("loss/total", "grad_norm", "rollout/reward", "rollout/tokens")}
            for row in read_rows(directory / name / "metrics.jsonl")
            if "rollout/reward" in row
        ]
        for name in ("whole", "stopped")
    )
    assert whole == stopped and len(whole) == 6
    assert len({row["rollout/tokens"] for row in whole}) > 1


def test_rewards_rise(grpo, directory, monkeypatch):
    monkeypatch.setattr(grpo, "is_right", rewarded.rewards_even_tokens)
    found = rewarded.experiment(directory, {"train.steps": 50, "optimizer.peak_lr": 1e-2, "checkpoint.every": 0})
    train(found, directory / "rising", rewarded.QUIET)
    rewards = [
        row["rollout/reward"] for row in read_rows(directory / "rising/metrics.jsonl") if "rollout/reward" in row
    ]
    assert np.mean(rewards[:3]) < 0.65 and np.mean(rewards[-5:]) > 0.8


@pytest.fixture(scope="module")
def alone(directory, on_devices):
    return on_devices(1, rewarded.curve, str(directory), {})


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2,fsdp=4", "expert=4,tensor=2"])
def test_every_mesh_draws_and_learns_as_one_device(directory, on_devices, alone, mesh):
    on_mesh = {f"mesh.{name}": int(size) for name, size in (axis.split("=") for axis in mesh.split(","))}
    together = on_devices(8, rewarded.curve, str(directory), on_mesh)
    np.testing.assert_allclose(together, alone, rtol=1e-4)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"parts.grpo.kl_weight": 0.1}, "train.ema_decay"),
        ({"data.chat": "", "data.source": "literature"}, "data.chat"),
    ],
)
def test_settings_that_cannot_work_are_refused(directory, changes, why):
    assert why in rewarded.refusal(str(directory), changes)


def test_a_run_whose_questions_are_all_too_long_says_so(directory, caplog):
    found = rewarded.experiment(directory, {"parts.grpo.question_tokens": 1})
    train(found, directory / "long", rewarded.QUIET)
    assert [each.getMessage()[:35] for each in caplog.records] == ["step 1 had nothing to learn from: n"]


def test_a_mesh_that_splits_sequences_is_refused(directory, on_devices):
    assert "mesh.context" in on_devices(2, rewarded.refusal, str(directory), {"mesh.context": 2})


def test_sizes_that_cannot_work_are_refused(small):
    for wrong in ({"group_size": 1}, {"question_tokens": 0}, {"answer_tokens": 0}, {"kl_weight": -1.0}):
        with pytest.raises(UserError, match=f"parts.grpo.{next(iter(wrong))}"):
            dataclasses.replace(small, **wrong)
