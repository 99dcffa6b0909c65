"""Group relative policy optimisation (GRPO): the model learns from rewards for answers of its own, as R1 did.

    deepseek-jax train --config configs/grpo_tiny.py --workdir runs/grpo_tiny

DeepSeekMath (arXiv:2402.03300, section 4.1), DeepSeek-R1 (arXiv:2501.12948, section 2.2).  A step samples a group of
answers to each question.  The reward of one is 1 if it ends as the reference answer does, else 0; its advantage is that
less the group's mean, over the group's standard deviation.  Each batch of answers serves one update, so the ratio of
new to old probabilities is 1 where the gradient is taken, and clipping it would change nothing.

The questions come from conversations (data.chat): the first question of the second conversation in each packed row,
as a row may begin within its first one.  Of its answer only what follows the reasoning is used.

metrics.jsonl has rollout/reward, rollout/tokens and rollout/kl, means over answers; rollout/questions, how many fitted
into question_tokens, with a reference that fits into answer_tokens; and rollout/undecided, the share of groups whose
rewards are all equal, which therefore teach nothing.

S tokens of a row  Q rows  P tokens of a question  G answers to each  N = Q G answers
A tokens of an answer  T = P + A
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.checking import at_least
from deepseek_jax.errors import UserError
from deepseek_jax.infer.generate import continuations
from deepseek_jax.infer.prompts import NO_EOS
from deepseek_jax.infer.sampling import Sampling
from deepseek_jax.models import tree
from deepseek_jax.parallel.current import current_mesh
from deepseek_jax.parts import add_settings
from deepseek_jax.tasks.language_model import next_token_nll
from deepseek_jax.train.state import scored_model

EPS = 1e-6  # added to the standard deviation of a group's rewards
CHUNK_TOKENS = 2048  # answers' tokens whose logits are in memory at a time


@dataclasses.dataclass(frozen=True)
class GRPO:
    group_size: int = 8
    question_tokens: int = 32  # longer questions are left out, and so are those with longer reference answers ...
    answer_tokens: int = 48  # ... and an answer that has not ended by then is wrong
    thought_end: int = -1  # the token </think>, after which an answer has to be right; -1: all of it has to be
    # Weight of the divergence (KL) from a reference policy: the moving average of train.ema_decay.  R1 has 0.001, and
    # makes the present policy its reference every 400 updates.
    kl_weight: float = 0.0

    def __post_init__(self):
        at_least("parts.grpo", self, 2, "group_size")
        at_least("parts.grpo", self, 1, "question_tokens", "answer_tokens")
        at_least("parts.grpo", self, 0, "kl_weight")


class Questions(NamedTuple):
    """`tokens_NP` end in the last column, after `padding_N` zeros; `references_NA` are filled up with `eos`.

    Each question comes G times in a row.  `there_N`: whether the batch's row has one that fits, and its whole answer.
    """

    tokens_NP: Int[Array, "N P"]
    padding_N: Int[Array, " N"]
    references_NA: Int[Array, "N A"]
    there_N: Bool[Array, " N"]
    domain_N: Int[Array, " N"]
    eos: Int[Array, ""]


def change_program(program):
    """The program that trains on answers which the model gives, weighted by their advantages."""
    settings = program.parts.grpo

    def rollouts(state, batch, update):
        _check(state, batch, settings)
        asked = questions({name: column.reshape(-1, column.shape[-1]) for name, column in batch.items()}, settings)
        policy = program.graphdef, *program.to_model(state["params"], state["buffers"])
        answers_NA = sampled(policy, asked, update, settings)
        length_N = lengths(answers_NA, asked.eos)
        rows = rows_of(asked, answers_NA, length_N)
        reward_N = is_right(answers_NA, asked.references_NA, asked.eos, settings.thought_end).astype(jnp.float32)
        advantage_N, undecided_N = advantages(reward_N, settings.group_size)

        def mean(x_N):
            return (x_N * asked.there_N).sum() / jnp.maximum(asked.there_N.sum(), 1)

        told = {"reward": mean(reward_N), "tokens": mean(length_N), "undecided": mean(undecided_N)}
        told["questions"] = asked.there_N.sum() / settings.group_size
        weights_NT = jnp.broadcast_to(advantage_N[:, None], rows["tokens"].shape)
        if settings.kl_weight:
            reference = program.graphdef, *program.to_model(*scored_model(state))
            slope_NT, kl_NT = divergence(policy, reference, rows, microbatches=len(batch["tokens"]))
            weights_NT += settings.kl_weight * slope_NT
            told["kl"] = mean(kl_NT.sum(axis=1) / length_N)
        # The loss is a mean over all tokens; GRPO's is one over answers, of the mean over each one's tokens.
        rows["weights"] = weights_NT * (told["tokens"] / length_N)[:, None]
        rows = {name: column.reshape(len(batch["tokens"]), -1, column.shape[-1]) for name, column in rows.items()}
        return rows, {f"rollout/{name}": value for name, value in told.items()}

    return dataclasses.replace(program, rollouts=rollouts)


def _check(state: dict, batch: dict, settings: GRPO):
    """UserError for what cannot work; called when the step is traced."""
    mesh = current_mesh()
    for axis in ("stage", "context"):
        if mesh and mesh.shape[axis] > 1:
            raise UserError(f"grpo generates answers, which mesh.{axis} cannot spread; set it to 1.")
    if "answers" not in batch:
        raise UserError("grpo needs questions with answers: set data.chat, and data.source to conversations.")
    if settings.kl_weight and "ema" not in state:
        raise UserError("parts.grpo.kl_weight needs train.ema_decay, whose moving average is the reference policy.")


def questions(rows: dict[str, Int[Array, "Q S"]], settings: GRPO) -> Questions:
    """The first question of the second conversation in each row, and its answer."""
    tokens_QS, P, A = rows["tokens"], settings.question_tokens, settings.answer_tokens
    second_QS = rows["segment_ids"] == 2
    said_QS = second_QS & (rows["answers"] > 0)
    begin_Q, said_Q = second_QS.argmax(axis=1), said_QS.argmax(axis=1)
    over_QS = (jnp.arange(tokens_QS.shape[1]) >= said_Q[:, None]) & ~said_QS
    end_Q = over_QS.argmax(axis=1)  # 0 if the row ends before the answer does
    asked_Q, answered_Q = said_Q - begin_Q, end_Q - said_Q
    there_Q = said_QS.any(axis=1) & over_QS.any(axis=1) & (asked_Q <= P) & (answered_Q <= A)
    eos_Q1 = _window(tokens_QS, end_Q - 1, 1)
    padding_Q = jnp.where(there_Q, P - asked_Q, P - 1)  # at least one token, so that no prompt is empty
    tokens_QP = jnp.where(jnp.arange(P) < padding_Q[:, None], 0, _window(tokens_QS, said_Q - P, P))
    references_QA = jnp.where(jnp.arange(A) < answered_Q[:, None], _window(tokens_QS, said_Q, A), eos_Q1)
    each = tokens_QP, padding_Q, references_QA, there_Q, rows["domain_ids"][:, 0]
    repeated = (jnp.repeat(of_question, settings.group_size, axis=0) for of_question in each)
    return Questions(*repeated, eos=jnp.where(there_Q, eos_Q1[:, 0], NO_EOS).max())


def sampled(policy: tree.Parts, asked: Questions, update: Int[Array, ""], settings: GRPO) -> Int[Array, "N A"]:
    """An answer to each question.  What an update draws depends on its number, not on where the run was interrupted."""
    key = jax.random.fold_in(jax.random.key(0), update)
    graphdef, params, buffers = policy
    P, A = settings.question_tokens, settings.answer_tokens
    given = asked.tokens_NP, asked.padding_N, key, asked.eos, A, Sampling(temperature=1.0).drawing()
    return continuations(params, buffers, *given, graphdef, (P + A,))


def lengths(answers_NA: Int[Array, "N A"], eos: Int[Array, ""]) -> Int[Array, " N"]:
    """Tokens of each answer, its end of text included; A if it has none."""
    is_end_NA = answers_NA == eos
    return jnp.where(is_end_NA.any(axis=1), is_end_NA.argmax(axis=1) + 1, answers_NA.shape[1])


def is_right(
    answers_NA: Int[Array, "N A"], references_NA: Int[Array, "N A"], eos: Int[Array, ""], thought_end: int
) -> Bool[Array, " N"]:
    """Whether each answer has ended, has an end of its reasoning if the reference has one, and is right after it."""

    def after_reasoning(tokens_NA):
        thought_NA = (tokens_NA == thought_end) & (jnp.arange(tokens_NA.shape[1]) < lengths(tokens_NA, eos)[:, None])
        begin_N = jnp.where(thought_NA, jnp.arange(1, tokens_NA.shape[1] + 1), 0).max(axis=1)
        # Past the end of an array there is only eos, which both may have more of.
        padded = jnp.pad(tokens_NA, ((0, 0), (0, tokens_NA.shape[1])), constant_values=NO_EOS)
        final = _window(padded, begin_N, tokens_NA.shape[1])
        return thought_NA.any(axis=1), jnp.where(final == NO_EOS, eos, final)

    (thought_N, final_NA), (expected_N, right_NA) = after_reasoning(answers_NA), after_reasoning(references_NA)
    ended_N = (answers_NA == eos).any(axis=1)
    return ended_N & (thought_N == expected_N) & (final_NA == right_NA).all(axis=1)


def advantages(reward_N: Float[Array, " N"], group_size: int) -> tuple[Float[Array, " N"], Bool[Array, " N"]]:
    """(the rewards' distances from their group's mean, in its standard deviations; whether a group's are all equal)."""
    reward_QG = reward_N.reshape(-1, group_size)
    spread_Q1 = reward_QG.std(axis=1, keepdims=True)
    advantage_QG = (reward_QG - reward_QG.mean(axis=1, keepdims=True)) / (spread_Q1 + EPS)
    return advantage_QG.reshape(-1), jnp.repeat(spread_Q1 == 0, group_size)


def rows_of(asked: Questions, answers_NA: Int[Array, "N A"], length_N: Int[Array, " N"]) -> dict[str, Array]:
    """Questions and answers as a batch [N, T], of which the answers' tokens are to be learned; padding where no
    question is."""
    tokens_NT = jnp.concatenate([asked.tokens_NP, answers_NA], axis=1)
    P, places_T = asked.tokens_NP.shape[1], jnp.arange(tokens_NT.shape[1])
    positions_NT = places_T - asked.padding_N[:, None]
    real_NT = (positions_NT >= 0) & (places_T < P + length_N[:, None]) & asked.there_N[:, None]
    return {
        "tokens": tokens_NT,
        "segment_ids": real_NT.astype(jnp.int32),
        "positions": jnp.where(real_NT, positions_NT, 0),
        "domain_ids": jnp.broadcast_to(asked.domain_N[:, None], tokens_NT.shape),
        "answers": (real_NT & (places_T >= P)).astype(jnp.int32),
    }


def divergence(
    policy: tree.Parts, reference: tree.Parts, rows: dict[str, Array], microbatches: int
) -> tuple[Float[Array, "N T"], Float[Array, "N T"]]:
    """Of each answer's token, 0 elsewhere: (the slope of the divergence by the token's nats, the divergence itself).

    GRPO estimates it by r - ln r - 1, r being the reference's probability over the policy's (DeepSeekMath, equation 4).
    """

    def nats_KMT(model):
        def of_microbatch(part):
            return next_token_nll(tree.merge(*model), part, CHUNK_TOKENS)[0]

        return jax.lax.map(of_microbatch, parts)

    parts = {name: column.reshape(microbatches, -1, column.shape[-1]) for name, column in rows.items()}
    log_ratio = (nats_KMT(policy) - nats_KMT(reference)).reshape(rows["tokens"].shape)
    log_ratio = jnp.pad(log_ratio[:, :-1], ((0, 0), (1, 0)))  # nats are found where the token before is
    log_ratio = jnp.where(rows["answers"] > 0, log_ratio, 0)
    return jnp.exp(log_ratio) - 1, jnp.exp(log_ratio) - log_ratio - 1


def _window(x_NS: Array, first_N: Int[Array, " N"], size: int) -> Array:
    """[N, size]: each row from its own first place on; places outside of the row give its nearest."""
    return jnp.take_along_axis(x_NS, first_N[:, None] + jnp.arange(size), axis=1, mode="clip")


add_settings("grpo", GRPO)
