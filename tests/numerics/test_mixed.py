"""Each attention with each feed-forward in either residual form has gradients, and decodes as it scores.

B batch  S sequence
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.attention.indexer import DIVERGENCE
from deepseek_jax.models.attention.kinds import KINDS
from deepseek_jax.models.cached import CachedDecoder
from deepseek_jax.models.checks import OF_FEED_FORWARD
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.tree import merge

B, S, PROMPT = 2, 24, 11
SIZES = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    q_lora_rank=12,
    kv_lora_rank=8,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=6,
    index_n_heads=2,
    index_head_dim=6,
    index_topk=4,
    sliding_window=6,
    csa_rate=2,
    hca_rate=5,
    o_groups=2,
    o_lora_rank=6,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=8,
    n_group=1,
    topk_group=1,
    initializer_range=0.2,
)


def config(feed_forwards, streams, attentions=KINDS):
    """A model with one layer of each of these kinds of attention, and these feed-forwards in order."""
    return ModelConfig(
        **SIZES,
        num_hidden_layers=len(attentions),
        layer_types=tuple(attentions),
        mlp_layer_types=tuple(feed_forwards),
        num_nextn_predict_layers=0,
        hc_mult=streams,
        first_k_dense_replace=0,
    )


TURNS = [(turn, streams) for turn in range(len(OF_FEED_FORWARD)) for streams in (2, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("turn, streams", TURNS)
def test_every_combination_has_gradients_and_decodes_as_it_scores(turn, streams):
    """Each layer has a different attention; over the turns, each attention is paired with each feed-forward."""
    kinds = itertools.islice(itertools.cycle(OF_FEED_FORWARD), turn, turn + len(KINDS))
    _has_gradients_and_decodes_as_it_scores(config(kinds, streams), turn)


@pytest.mark.slow
def test_a_combination_has_gradients_and_decodes_as_it_scores():
    """Two attentions of different generations in one model; the test above has all."""
    _has_gradients_and_decodes_as_it_scores(config(("dense", "moe"), 2, ("dsa", "gqa")), 0)


def _has_gradients_and_decodes_as_it_scores(config, seed):
    make = jax.jit(initialise, static_argnums=0)
    graphdef, params, buffers = make(config, jax.random.key(seed))
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (B, S)).astype(np.int32)
    run = jax.jit(_learn_and_decode, static_argnums=0)
    grads, logits, decoded = run(graphdef, params, buffers, tokens)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and (grad != 0).any(), jax.tree_util.keystr(path)
    np.testing.assert_allclose(decoded, logits, rtol=1e-4, atol=1e-4)


def _learn_and_decode(graphdef, params, buffers, tokens_BS):
    """(gradients, logits of all positions at once, the same logits by a prefill and one decoded chunk)."""
    positions = jnp.broadcast_to(jnp.arange(S), tokens_BS.shape)
    segment_ids = jnp.ones_like(positions)

    def loss(params):
        """A loss of the logits plus the indexers' divergences, so that every parameter gets a gradient."""
        model = merge(graphdef, params, buffers)
        output = model(tokens_BS, positions, segment_ids)
        logits = model.logits(output.hidden)
        learned = [told[DIVERGENCE].sum() for told in output.attentions.values() if DIVERGENCE in told]
        nll = -jax.nn.log_softmax(logits)[..., 0].mean()
        return nll + sum(learned), logits

    grads, logits = jax.grad(loss, has_aux=True)(params)
    cached = CachedDecoder(merge(graphdef, params, buffers))
    start, rest = ([each[:, part] for each in (tokens_BS, positions)] for part in (slice(PROMPT), slice(PROMPT, S)))
    x, caches = cached.prefill(*start, segment_ids[:, :PROMPT], cached.empty_caches(B, S))
    further, _ = cached.decode(*rest, caches)
    return grads, logits, jnp.concatenate([cached.logits(x), cached.logits(further)], axis=1)
