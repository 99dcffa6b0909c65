"""Documents packed into one row do not influence each other, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.decoder import shift
from deepseek_jax.tasks.cross_entropy import cross_entropy
from deepseek_jax.tasks.language_model import totals

LENGTHS = (30, 21, 45)  # of the documents in a row of 96 tokens
SEGMENTS = np.repeat(np.arange(1, 4, dtype=np.int32), LENGTHS)[None]
POSITIONS = np.concatenate([np.arange(length, dtype=np.int32) for length in LENGTHS])[None]


@jax.jit
def losses(model, tokens):
    """By depth, the NLL [1, S] of the next token, and of the one after it where the model has MTP."""
    output, ones = model(tokens, POSITIONS, SEGMENTS), jnp.ones(tokens.shape)
    hidden = {1: output.hidden} | {depth: state for depth, state in enumerate(output.mtp, start=2)}
    return {d: cross_entropy(state, model.head_weight(), shift(tokens, d), ones)[1] for d, state in hidden.items()}


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_changing_a_document_changes_no_loss_in_others(golden, changed):
    tokens = golden.expected["input_ids"][:1, :96]
    if tokens.shape[1] < SEGMENTS.shape[1]:
        tokens = np.resize(tokens, SEGMENTS.shape)
    other = np.where(SEGMENTS == changed, (tokens + 7) % golden.config.vocab_size, tokens)
    before, after = losses(golden.model, tokens), losses(golden.model, other)
    for depth in before:
        # The targets of a document's last tokens are in the next document; the loss leaves these out.
        inside = np.asarray(shift(SEGMENTS, depth)) == SEGMENTS
        np.testing.assert_array_equal(*(np.asarray(x[depth])[inside & (SEGMENTS != changed)] for x in (before, after)))
        own = inside & (SEGMENTS == changed)
        assert (np.asarray(before[depth])[own] != np.asarray(after[depth])[own]).any()


def test_targets_end_with_their_document():
    counted = totals({"segment_ids": jnp.asarray(SEGMENTS)}, depths=2)
    assert counted["targets_1"] == sum(length - 1 for length in LENGTHS)
    assert counted["targets_2"] == sum(length - 2 for length in LENGTHS)
