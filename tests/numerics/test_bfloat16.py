"""Models in bfloat16: their outputs are those of float32 except for rounding, and they learn.

B batch  S sequence
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import deepseek_jax
from deepseek_jax.config import LossConfig
from deepseek_jax.convert import huggingface
from deepseek_jax.models.attention import window
from deepseek_jax.models.attention.core import softmax_average
from deepseek_jax.models.attention.keys import Keys, Queries
from deepseek_jax.models.attention.mla import attend_latents
from deepseek_jax.models.attention.selection import by_blocks
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.mhc import HyperConnection, StreamHead
from deepseek_jax.models.moe.router import TopKRouter
from deepseek_jax.models.tree import merge, split
from deepseek_jax.tasks import language_model
from tests.paths import GOLDENS

OTHERS = ("v1", "moe", "v2", "v3", "v32")
STEPS = 4
CONFIG = ModelConfig(hidden_size=32, n_routed_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1, hc_mult=2)


def directory_of(name):
    official = GOLDENS / name / "official"
    return official if official.exists() else GOLDENS / name


@pytest.mark.parametrize("name", ["v4", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_bfloat16_logits_are_those_of_float32_but_for_rounding(name):
    """Means are compared: where two experts or keys score almost equally, rounding may flip a choice and so the logits.

    V3.2's untrained indexer scores so many keys alike that only the first index_topk positions are compared, at which
    every key is picked.
    """
    expected = dict(np.load(GOLDENS / name / "expected.npz"))
    model = deepseek_jax.from_pretrained(directory_of(name), dtype="bfloat16")
    scores = model(expected["input_ids"])
    assert scores.logits.dtype == np.float32
    judged = model.config.index_topk if name == "v32" else None
    assert 1e-4 < relative_error(scores.logits, expected["logits"], judged) < 0.05
    if scores.mtp_logits:
        assert relative_error(scores.mtp_logits[0][:, :-1], expected["mtp_logits"], judged) < 0.05


def relative_error(found, expected, judged=None):
    """Mean absolute error of the logits of the first `judged` positions, relative to the mean absolute value of all."""
    return np.abs(found - expected)[:, :judged].mean() / np.abs(expected).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4", *OTHERS])
def test_the_loss_falls_in_bfloat16(name):
    """A few steps on one batch with float32 parameters, bfloat16 activations, and all losses."""
    config = huggingface.read_config(directory_of(name))
    graphdef, _, _ = split(jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0), dtype="bfloat16")))
    params, buffers = huggingface.load(directory_of(name), config)
    tokens = np.load(GOLDENS / name / "expected.npz")["input_ids"][:, :48]
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens)}
    batch["positions"] = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    totals, scheduled = language_model.totals(batch, depths=2), {"mtp": 0.3, "index_warmup": None}
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            model = merge(graphdef, params, buffers)
            return language_model.loss(model, batch, totals, scheduled, LossConfig(indexer_weight=1.0))[0]

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value, optax.tree.norm(grads)

    state, losses = optimizer.init(params), []
    for _ in range(STEPS):
        params, state, value, norm = step(params, state)
        losses.append(float(value))
        assert np.isfinite(norm) and norm > 0
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.02, losses


def test_gradients_of_arguments_shared_by_blocks_are_summed_in_float32():
    """A thousand ones are added one by one; in bfloat16 the sum would stop growing at 256."""
    x = jnp.ones((1, 1000), jnp.bfloat16)
    grad = jax.jit(jax.grad(lambda shared: by_blocks(jnp.multiply, 1, x, shared).astype(jnp.float32).sum()))
    assert grad(jnp.bfloat16(1)) == 1000


def of_heads(query, entries):
    return softmax_average(query[:, None], entries[:, None], entries[:, None], jnp.ones((1, 1, 1, 2), bool))[0][0, 0, 0]


def of_latents(query, entries):
    return attend_latents(query[:, :, None], entries, jnp.ones((1, 1, 2), bool))[0, 0, 0]


def of_window(query, entries):
    """The first key is in the window, the second is a compressed entry; one softmax covers both."""
    one = jnp.ones((1, 1), jnp.int32)
    queries = Queries(query[:, None, :, None] * query.shape[-1] ** 0.5, one[None], one[None], None)
    near, far = Keys(entries[:, None, :1], one[None], one[None], None), Keys(entries[:, 1:], one, one, None)
    return window.attend(queries, near, far, jnp.full((1,), -jnp.inf), window.Reach(1)).mixed[0, 0, 0, 0]


@pytest.mark.parametrize("attend", [of_heads, of_latents, of_window])
def test_scores_reach_the_softmax_in_float32(attend):
    """The scores are 256 and 257, which are equal in bfloat16."""
    query, entries = jnp.bfloat16([[[256, 1, 0, 0]]]), jnp.bfloat16([[[1, 0, 0, 0], [1, 1, 0, 0]]])
    np.testing.assert_allclose(jax.jit(attend)(query, entries)[1], jax.nn.sigmoid(1.0), atol=2e-3)


def of_router(config):
    router = TopKRouter(config, rngs=nnx.Rngs(params=0))
    return lambda: router(jnp.ones((4, config.hidden_size), jnp.bfloat16), None)


def of_streams(config):
    connection, head = (kind(config, rngs=nnx.Rngs(params=0)) for kind in (HyperConnection, StreamHead))
    streams = jnp.ones((1, 4, config.hc_mult, config.hidden_size), jnp.bfloat16)
    return lambda: (connection(streams, lambda x: (x, None)), head(streams))


@pytest.mark.parametrize("part", [of_router, of_streams])
def test_routers_and_hyper_connections_multiply_at_full_float32_precision(part):
    """Checked in the lowered program: GPUs and TPUs round factors unless told otherwise, but the CPU here does not."""
    products = [line for line in jax.jit(part(CONFIG)).lower().as_text().splitlines() if "dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), products
