"""Continues prompts of different lengths, in one compiled program: a prefill, then loops of cached decoding steps.

B batch  S prompt length  N new tokens
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from deepseek_jax import compiling
from deepseek_jax.infer.cache_lengths import cache_lengths
from deepseek_jax.infer.prompts import NO_EOS, after_eos, before_eos, left_padded, refuse_past, round_up
from deepseek_jax.infer.sampling import GREEDY, Sampling, sample, token_keys
from deepseek_jax.models.cached import CachedDecoder, grown
from deepseek_jax.models.tree import Parts, merge


def generate(
    model: Parts,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> list[list[int]]:
    """The new tokens after each prompt, up to but without `eos`.

    A prompt needs at least one token: to generate from scratch, the beginning-of-text token.
    """
    return before_eos(new_tokens(model, prompts, max_new_tokens, eos=eos, sampling=sampling, seed=seed), eos)


def new_tokens(
    model: Parts,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos: int = NO_EOS,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    padded_to: int = 1,
) -> Int[np.ndarray, "B N"]:
    """As `generate`, but as one array, in which a row's first `eos` is followed only by `eos`.

    `padded_to`: the least number of tokens that prompts are padded to; a program is compiled for each length.
    """
    graphdef, params, buffers = model
    tokens_BS, padding_B = left_padded(prompts, padded_to)
    lengths = cache_lengths(tokens_BS.shape[1], round_up(max_new_tokens))
    key = jax.random.key(seed)
    wanted, drawing = max_new_tokens, sampling.drawing()
    new = continuations(params, buffers, tokens_BS, padding_B, key, eos, wanted, drawing, graphdef, lengths)
    new_BN = np.asarray(new)[:, :max_new_tokens]
    refuse_past(new_BN, params["embedding"].shape[0])
    return new_BN


@compiling.jit(static_argnums=(8, 9))
def continuations(params, buffers, tokens_BS, padding_B, key, eos, wanted, drawing, graphdef, lengths):
    """New tokens [B, N], the first `wanted` of them valid, after prompts that end in the last column of `tokens_BS`.

    Caches grow to each of `lengths` in turn.  It may be part of another compiled program.
    """
    model = CachedDecoder(merge(graphdef, params, buffers))
    batch, length = tokens_BS.shape
    positions_BS = jnp.arange(length) - padding_B[:, None]
    segment_ids_BS = (positions_BS >= 0).astype(jnp.int32)
    caches = model.empty_caches(batch, lengths[0])
    x, caches = model.prefill(tokens_BS, jnp.maximum(positions_BS, 0), segment_ids_BS, caches)

    def choose(x, step):
        keys_B1 = token_keys(key, jnp.full((batch, 1), step))
        return sample(model.logits(x[:, -1:]), keys_B1, drawing)[:, 0]

    def decode(carry):
        step, out_BN, done_B, caches = carry
        newest_B1 = jax.lax.dynamic_slice_in_dim(out_BN, step - 1, 1, axis=1)
        x, caches = model.decode(newest_B1, (length + step - 1 - padding_B)[:, None], caches)
        next_B = choose(x, step)
        return step + 1, out_BN.at[:, step].set(next_B), done_B | (next_B == eos), caches

    first_B = choose(x, 0)
    out_BN = jnp.full((batch, lengths[-1] - length), eos, jnp.int32).at[:, 0].set(first_B)
    carry = jnp.asarray(1), out_BN, first_B == eos, caches
    for here in lengths:
        *progress, caches = carry
        carry = *progress, grown(caches, model.empty_caches(batch, here))
        last = jnp.minimum(here - length + 1, wanted)
        carry = jax.lax.while_loop(lambda carry, last=last: (carry[0] < last) & ~carry[2].all(), decode, carry)
    return after_eos(carry[1], eos)
