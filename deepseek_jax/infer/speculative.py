"""Speculative decoding: drafts with the multi-token prediction modules, verifies with the model (V3, section 2.2.3).

A round decodes the newest token and the k drafts after it in one chunk, accepts the leading drafts that equal the
model's own choices, and adds one more token of the model.  So the tokens are those of plain decoding, in fewer steps,
whether greedy or sampled: every token is sampled with its own key, so a draft is accepted just as often as it would
have been sampled.  In bfloat16 a chunk rounds differently from single tokens: near-ties may be decided differently.

Rows accept different numbers of drafts and so are at different positions.  Cache entries of rejected drafts need no
clearing: no query attends to positions after its own, and they are overwritten before a query reaches them.

B batch  S prompt length  N new tokens  T text length  k modules  C = k + 1 tokens per chunk
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from deepseek_jax import compiling
from deepseek_jax.errors import UserError
from deepseek_jax.infer.cache_lengths import cache_lengths
from deepseek_jax.infer.prompts import NO_EOS, after_eos, left_padded, refuse_past, round_up
from deepseek_jax.infer.sampling import GREEDY, Drawing, Sampling, best, sample, token_keys
from deepseek_jax.models.cached import CachedDecoder, grown
from deepseek_jax.models.tree import Parts, merge


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """How many tokens were drafted in the rounds of all rows, and how many of them were accepted."""

    rounds: int
    drafted: int
    accepted: int

    @property
    def rate(self) -> float:
        return self.accepted / max(1, self.drafted)

    def __str__(self):
        return f"{self.accepted} of {self.drafted} drafts accepted ({self.rate:.1%}) in {self.rounds} rounds"


def new_tokens(
    model: Parts,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos: int = NO_EOS,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> tuple[Int[np.ndarray, "B N"], Acceptance]:
    """(what `generate.new_tokens` returns, how many drafts were accepted); UserError without MTP modules."""
    graphdef, params, buffers = model
    if not params.get("mtp"):
        raise UserError(
            "the model has no multi-token prediction module to draft with; decode without speculation, or train one "
            "with model.num_nextn_predict_layers=1."
        )
    tokens_BS, padding_B = left_padded(prompts)
    k = len(params["mtp"])
    # The last round of a row may end k columns late, and its chunk and drafts reach 2 k columns further.
    lengths = cache_lengths(tokens_BS.shape[1], round_up(max_new_tokens) + 3 * k)
    key = jax.random.key(seed)
    new, rounds, accepted = _new_tokens(
        params, buffers, tokens_BS, padding_B, key, eos, max_new_tokens, sampling.drawing(), graphdef, lengths
    )
    new_BN = np.asarray(new)[:, :max_new_tokens]
    refuse_past(new_BN, params["embedding"].shape[0])
    return new_BN, Acceptance(int(rounds), int(rounds) * k, int(accepted))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Speculated:
    """The state between two rounds.  Columns are those of the left-padded text, so new tokens begin at S in every row.

    `text_BT` holds, in column `newest_B`, the newest accepted token, which is not decoded yet, and k drafts after it.
    `recent`: the model's hidden states ("flow") of the k - 1 columns before.
    """

    text_BT: Int[Array, "B T"]
    newest_B: Int[Array, "B"]
    done_B: Array
    recent: Array
    caches: tuple
    module_caches: tuple
    rounds: Array
    accepted: Array


@compiling.jit(static_argnums=(8, 9))
def _new_tokens(params, buffers, tokens_BS, padding_B, key, eos, wanted, drawing, graphdef, lengths):
    """(new tokens [B, N], of which the first `wanted` are valid; rounds; accepted drafts)."""
    model = CachedDecoder(merge(graphdef, params, buffers))
    speculation = Speculation(model, tokens_BS, padding_B, key, drawing, wanted, eos)
    k = speculation.k
    progress = speculation.start(lengths)
    for here in lengths:
        progress = speculation.grow(progress, here)
        progress = jax.lax.while_loop(
            lambda progress, here=here: ~progress.done_B.all() & (progress.newest_B.max() + k < here),
            speculation.round,
            progress,
        )
    return after_eos(progress.text_BT[:, tokens_BS.shape[1] :], eos), progress.rounds, progress.accepted


class Speculation:
    """What stays the same in all rounds, and the steps of a round."""

    def __init__(
        self,
        model: CachedDecoder,
        tokens_BS: Int[Array, "B S"],
        padding_B: Int[Array, "B"],
        key: Key[Array, ""],
        drawing: Drawing,
        wanted: Int[Array, ""],
        eos: Int[Array, ""],
    ):
        self.model, self.k = model, len(model.modules)
        self.tokens_BS, self.padding_B, self.key, self.drawing = tokens_BS, padding_B, key, drawing
        self.last_column, self.eos = tokens_BS.shape[1] + wanted - 1, eos

    def start(self, lengths: tuple[int, ...]) -> Speculated:
        """Prefills the prompts, chooses the first new token of each, and drafts the tokens after it."""
        (batch, length), k = self.tokens_BS.shape, self.k
        positions_BS = self._positions(jnp.arange(length)[None])
        real_BS = (positions_BS >= 0).astype(jnp.int32)
        where = jnp.maximum(positions_BS, 0), real_BS
        x, caches = self.model.prefill(self.tokens_BS, *where, self.model.empty_caches(batch, lengths[0]))
        newest_B = jnp.full((batch,), length)
        first_B1 = self._choose(self.model.logits(x[:, -1:]), newest_B[:, None])
        text_BS = jnp.concatenate([self.tokens_BS, first_B1], axis=1)
        flow, module_caches = x, []
        for depth, empty in enumerate(self.model.empty_module_caches(batch, lengths[0]), start=1):
            flow, cache = self.model.prefill_module(depth, flow, text_BS[:, depth:], *where, empty)
            text_BS = jnp.concatenate([text_BS, best(self.model.logits(flow[:, -1:], depth))], axis=1)
            module_caches.append(cache)
        return Speculated(
            text_BT=jnp.pad(text_BS, ((0, 0), (0, lengths[-1] - text_BS.shape[1]))),
            newest_B=newest_B,
            done_B=(first_B1[:, 0] == self.eos) | (newest_B >= self.last_column),
            recent=x[:, length + 1 - k :],
            caches=caches,
            module_caches=tuple(module_caches),
            rounds=jnp.asarray(0),
            accepted=jnp.asarray(0),
        )

    def grow(self, progress: Speculated, length: int) -> Speculated:
        batch = progress.newest_B.shape[0]
        return dataclasses.replace(
            progress,
            caches=grown(progress.caches, self.model.empty_caches(batch, length)),
            module_caches=grown(progress.module_caches, self.model.empty_module_caches(batch, length)),
        )

    def round(self, progress: Speculated) -> Speculated:
        """Verifies one chunk and makes the next drafts; rows that are done stay as they are."""
        active_B, text_BT = ~progress.done_B, progress.text_BT
        chunk_BC = progress.newest_B[:, None] + jnp.arange(self.k + 1)
        x, caches = self.model.decode(_take(text_BT, chunk_BC), self._positions(chunk_BC), progress.caches)
        true_BC = self._choose(self.model.logits(x), chunk_BC + 1)
        right_Bk = _take(text_BT, chunk_BC[:, 1:]) == true_BC[:, :-1]
        accepted_B = jnp.where(active_B, jnp.cumprod(right_Bk, axis=1).sum(axis=1), 0)
        text_BT = _put(text_BT, chunk_BC + 1, true_BC, active_B)
        newest_B = progress.newest_B + jnp.where(active_B, accepted_B + 1, 0)
        ended_B = ((true_BC == self.eos) & (chunk_BC < newest_B[:, None])).any(axis=1)
        progress = dataclasses.replace(
            progress,
            text_BT=text_BT,
            newest_B=newest_B,
            done_B=progress.done_B | ended_B | (newest_B >= self.last_column),
            caches=caches,
            rounds=progress.rounds + active_B.sum(),
            accepted=progress.accepted + accepted_B.sum(),
        )
        return self._draft(progress, jnp.concatenate([progress.recent, x], axis=1), chunk_BC[:, :1], active_B)

    def _draft(self, progress, flow, before_B1, active_B) -> Speculated:
        """Drafts k tokens after the newest, from the hidden states `flow` of the 2 k columns around `before_B1`.

        `before_B1` is the newest column before this round.  A module looks as many tokens ahead as its depth, so its
        last k - 1 columns were computed from drafts in that round, and are computed again from the accepted tokens.
        """
        k, newest_B1, text_BT = self.k, progress.newest_B[:, None], progress.text_BT
        window_BW = before_B1 + jnp.arange(1 - k, k + 1)
        recent = _take(flow, newest_B1 - before_B1 + jnp.arange(k - 1))
        last_B1 = jnp.maximum(newest_B1 - before_B1 + k - 2, 0)  # the column before the newest, within the window
        module_caches = []
        for depth, cache in enumerate(progress.module_caches, start=1):
            ahead_BW = _take(text_BT, window_BW + depth)
            flow, cache = self.model.decode_module(depth, flow, ahead_BW, self._positions(window_BW), cache)
            draft_B1 = best(self.model.logits(_take(flow, last_B1), depth))
            text_BT = _put(text_BT, newest_B1 + depth, draft_B1, active_B)
            module_caches.append(cache)
        return dataclasses.replace(progress, text_BT=text_BT, recent=recent, module_caches=tuple(module_caches))

    def _positions(self, columns):
        return columns - self.padding_B[:, None]

    def _choose(self, logits_BSV, columns_BS):
        steps_BS = columns_BS - self.tokens_BS.shape[1]
        return sample(logits_BSV, token_keys(self.key, steps_BS), self.drawing)


def _take(x: Array, columns_BS: Int[Array, "B S"]) -> Array:
    """x[b, columns[b, s]] at [b, s]."""
    return x[jnp.arange(x.shape[0])[:, None], columns_BS]


def _put(x_BT, columns_BS, new_BS, active_B):
    """`x_BT` with `new_BS` written at `columns_BS` in the rows that are active."""
    columns_BS = jnp.where(active_B[:, None], columns_BS, x_BT.shape[1])  # past the end: dropped
    return x_BT.at[jnp.arange(x_BT.shape[0])[:, None], columns_BS].set(new_BS, mode="drop")
