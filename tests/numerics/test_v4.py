"""What only V4 has: indexers over compressed entries; and padding, which Hugging Face's compressors take for tokens.

B batch  S sequence
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.attention.entries import offer_masked
from deepseek_jax.models.cached import CachedDecoder, unstacked
from deepseek_jax.models.decoder import Decoder

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
MODELS = ["v4", pytest.param("v4_r128", marks=pytest.mark.slow)]
pytestmark = pytest.mark.parametrize("golden", MODELS, indirect=True)


@pytest.mark.slow
def test_padding_on_either_side_changes_nothing(golden):
    """Prompts padded on the left, on the right and on both sides, against the logits without padding."""
    given, expected = golden.expected["input_ids"], golden.expected["logits"]
    length = given.shape[1] - 5
    rows, padding = np.array([0, 1, 0]), np.array([[5, 0], [0, 11], [3, 6]])
    places = np.arange(length) - padding[:, :1]
    real = (places >= 0) & (places < length - padding.sum(axis=1, keepdims=True))
    positions = np.clip(places, 0, None)
    tokens = np.where(real, given[rows[:, None], positions], 7)
    for run in (_at_once, _filling_caches):
        logits = jax.jit(run)(golden.model, tokens, positions, real.astype(np.int32))
        np.testing.assert_allclose(logits[real], expected[rows[:, None], positions][real], **CLOSE)


def test_each_v4_indexer_picks_the_references_entries(golden):
    """Compares the entries that each token picks, with -1 for invisible ones, which only fill up the number."""
    choices = jax.jit(_choices)(golden.model, *golden.batch)
    assert choices.keys() == {f"indexer_{layer}_indices" for layer in _layers_with_an_indexer(golden.config)}
    for name, chosen in choices.items():
        np.testing.assert_array_equal(np.sort(chosen), np.sort(golden.expected[name]), err_msg=name)


def _at_once(model, tokens_BS, positions_BS, segment_ids_BS):
    return model.logits(Decoder.__call__(model, tokens_BS, positions_BS, segment_ids_BS).hidden)


def _filling_caches(model, tokens_BS, positions_BS, segment_ids_BS):
    cached = CachedDecoder(model)
    caches = cached.empty_caches(*tokens_BS.shape)
    return cached.logits(cached.prefill(tokens_BS, positions_BS, segment_ids_BS, caches)[0])


def _layers_with_an_indexer(config):
    return [layer for layer, kind in enumerate(config.attention_kinds[: config.num_hidden_layers]) if kind == "csa"]


def _choices(model, tokens_BS, positions_BS, segment_ids_BS):
    """The entries that each token picks [B S K], -1 where no more are visible; by their names in the goldens."""
    context = model.context(tokens_BS, positions_BS, segment_ids_BS)
    x, choices = model.embed_streams(tokens_BS), {}
    for layer, block in enumerate(unstacked(model)):
        if block.kind.attention == "csa":
            choices[f"indexer_{layer}_indices"] = _picked(block, x, context)
        x, _ = block(x, context)
    return choices


def _picked(block, x, context):
    def meet(h_BSD):
        queries, _, entries = block.attention.queries_and_keys(block.attention_norm(h_BSD), context)
        return h_BSD, offer_masked(queries, entries, block.attention.reach.topk, warmup=None)

    _, met = block.attention_residual(x, meet)
    scores = jnp.where(met.mask, met.index_scores, -jnp.inf)
    scores, best = jax.lax.top_k(scores, min(block.attention.reach.topk, scores.shape[-1]))
    return jnp.where(scores > -jnp.inf, best, -1)
