"""Continues prompts of different lengths: one compiled prefill, one compiled loop of cached decoding steps.

B batch  S prompt places
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from deepseek_jax.errors import UserError
from deepseek_jax.infer.sampling import GREEDY, Sampling, sample
from deepseek_jax.models.cached import CachedDecoder
from deepseek_jax.models.tree import merge

PLACES = 32  # prompts and new tokens are padded to multiples of this, so that few lengths are compiled


def generate(
    model: tuple,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> list[list[int]]:
    """The tokens that follow each prompt, up to and without `eos`.  `model` is (structure, parameters, buffers).

    A prompt holds at least one token, the beginning-of-text token for a text from nothing.
    """
    if not all(len(prompt) for prompt in prompts):
        raise UserError("a prompt is empty; begin it with the tokenizer's beginning-of-text token.")
    graphdef, params, buffers = model
    places = round_up(max(map(len, prompts)))
    tokens_BS = np.zeros((len(prompts), places), np.int32)
    padding_B = np.array([places - len(prompt) for prompt in prompts], np.int32)
    for row, prompt in zip(tokens_BS, prompts):
        row[places - len(prompt) :] = prompt
    key = jax.random.key(seed)
    new = _generate(params, buffers, tokens_BS, padding_B, key, eos, graphdef, round_up(max_new_tokens), sampling)
    return [_before_eos(row[:max_new_tokens], eos) for row in np.asarray(new).tolist()]


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def _generate(params, buffers, tokens_BS, padding_B, key, eos, graphdef, steps, sampling) -> Int[Array, "B steps"]:
    """Prompts padded on the left by `padding_B`, so that all end in the last place."""
    model = CachedDecoder(merge(graphdef, params, buffers))
    batch, length = tokens_BS.shape
    places_BS = jnp.arange(length) - padding_B[:, None]
    real_BS = (places_BS >= 0).astype(jnp.int32)
    caches = model.empty_caches(batch, length + steps)
    hidden, caches = model.prefill(tokens_BS, jnp.maximum(places_BS, 0), real_BS, caches)
    first_B = sample(model.logits(hidden[:, -1:])[:, 0], jax.random.fold_in(key, 0), sampling)

    def unfinished(carry):
        step, _, new_B, done_B, _ = carry
        return (step < steps) & ~(done_B | (new_B == eos)).all()

    def decode(carry):
        step, out, new_B, done_B, caches = carry
        positions_B1 = (length + step - 1 - padding_B)[:, None]
        hidden, caches = model.decode(new_B[:, None], positions_B1, caches)
        next_B = sample(model.logits(hidden)[:, 0], jax.random.fold_in(key, step), sampling)
        done_B |= new_B == eos
        next_B = jnp.where(done_B, eos, next_B)
        return step + 1, out.at[:, step].set(next_B), next_B, done_B, caches

    out = jnp.full((batch, steps), eos, jnp.int32).at[:, 0].set(first_B)
    start = jnp.asarray(1), out, first_B, jnp.zeros((batch,), bool), caches
    return jax.lax.while_loop(unfinished, decode, start)[1]


def round_up(length: int) -> int:
    return -(-length // PLACES) * PLACES


def _before_eos(tokens: list[int], eos: int) -> list[int]:
    return tokens[: tokens.index(eos)] if eos in tokens else tokens
