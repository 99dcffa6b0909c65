"""Prompts of different lengths as one array, and the new tokens as lists again.

B batch  S prompt length  N new tokens
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from deepseek_jax.errors import UserError

LENGTH_MULTIPLE = 32  # prompts and new tokens are padded to multiples of this, so that few lengths are compiled
NO_EOS = -1  # equals no token: nothing stops early


def left_padded(prompts: Sequence[Sequence[int]], at_least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [B, S], padding [B]): all prompts end in the last column, after `padding` zeros; S >= `at_least`."""
    refuse_empty(prompts)
    length = round_up(max(at_least, *map(len, prompts)))
    tokens_BS = np.zeros((len(prompts), length), np.int32)
    padding_B = np.array([length - len(prompt) for prompt in prompts], np.int32)
    for row, prompt, padding in zip(tokens_BS, prompts, padding_B):
        row[padding:] = prompt
    return tokens_BS, padding_B


def refuse_empty(prompts: Sequence[Sequence[int]]):
    if not len(prompts):
        raise UserError("the list of prompts is empty; give at least one.")
    if not all(map(len, prompts)):
        raise UserError("a prompt is empty; begin it with the tokenizer's beginning-of-text token.")


def beyond(lengths: Sequence[int], most: int, one: str = "the text") -> str | None:
    """A warning if texts of these `lengths` are longer than `most` tokens, else None; `one` names a single text."""
    longer = [length for length in lengths if length > most]
    if not longer:
        return None
    which = f"{len(longer)} of {len(lengths)} texts have up to" if len(lengths) > 1 else f"{one} has"
    return (
        f"{which} {max(longer):,} tokens, and the model was made for {most:,} (max_position_embeddings); do not rely "
        "on what comes after these."
    )


def round_up(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def power_of_two(length: int) -> int:
    """As `round_up`, but to one of fewer lengths, for callers with many batches."""
    return max(LENGTH_MULTIPLE, 1 << (int(length) - 1).bit_length())


def after_eos(tokens_BN: Int[Array, "B N"], eos: int) -> Int[Array, "B N"]:
    """The tokens, with all that follow a row's first `eos` replaced by `eos`."""
    is_eos_BN = tokens_BN == eos
    return jnp.where(jnp.cumsum(is_eos_BN, axis=1) > 0, eos, tokens_BN)


def refuse_past(new_BN: np.ndarray, vocabulary: int):
    """UserError if there are numbers past the vocabulary, which `sampling.sample` returns for NaN scores."""
    if rows := int((new_BN >= vocabulary).any(axis=1).sum()):
        raise UserError(
            f"the model's scores are NaN after {rows} of {len(new_BN)} prompts; look for NaN, infinity or very large "
            "numbers in its parameters."
        )


def before_eos(tokens_BN: np.ndarray, eos: int) -> list[list[int]]:
    """Each row's tokens up to but without its first `eos`."""
    return [row[: row.index(eos)] if eos in row else row for row in tokens_BN.tolist()]
