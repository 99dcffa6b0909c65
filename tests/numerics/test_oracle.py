"""Whole models against what other programs computed: hidden states, routing, losses, gradients, cached decoding.

B batch  S sequence
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepseek_jax
from deepseek_jax.config import LossConfig
from deepseek_jax.convert import huggingface
from deepseek_jax.convert.names import mtp_prefix
from deepseek_jax.models.attention import sparse
from deepseek_jax.models.attention.selection import mask_of, pick_causally
from deepseek_jax.models.cached import CachedDecoder, unstacked
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.tree import merge
from deepseek_jax.tasks import language_model
from tests.numerics.golden_models import GENERATIONS, VARIANTS, goldens_with

CLOSE = {"rtol": 1e-5, "atol": 1e-4}  # logits reach 50 in v2_plain


# The model is an argument, not a closure: weights baked in as constants compile several times slower.
forward = jax.jit(Decoder.__call__)


def test_logits_are_those_of_the_reference(every_golden):
    hidden = forward(every_golden.model, *every_golden.batch).hidden
    np.testing.assert_allclose(hidden, every_golden.expected["final_hidden"], **CLOSE)
    np.testing.assert_allclose(every_golden.model.logits(hidden), every_golden.expected["logits"], **CLOSE)


@goldens_with("mtp_logits")
def test_mtp_states_and_logits_are_those_of_the_reference(golden):
    (hidden,) = forward(golden.model, *golden.batch).mtp
    np.testing.assert_allclose(hidden[:, :-1], golden.expected["mtp_hidden"], **CLOSE)
    np.testing.assert_allclose(golden.model.logits(hidden)[:, :-1], golden.expected["mtp_logits"], **CLOSE)


@goldens_with("pad_ids")  # Hugging Face gets V4's padding wrong: see test_v4.py
def test_left_padding_changes_nothing(golden):
    """Padding is segment 0 and is not attended to, whether the model runs at once or fills a cache."""
    tokens, mask, positions = (golden.expected[f"pad_{name}"] for name in ("ids", "mask", "pos"))
    model, real = golden.model, mask == 1
    expected = golden.expected["pad_logits"][real]
    hidden = forward(model, tokens, positions, mask).hidden
    np.testing.assert_allclose(model.logits(hidden)[real], expected, **CLOSE)
    caches = jax.jit(_empty_caches, static_argnums=1)(model, tokens.shape)
    logits, _ = _prefill_chunk(model, tokens, positions, mask, caches)
    np.testing.assert_allclose(logits[real], expected, **CLOSE)
    found = deepseek_jax.trace(golden.api_model, tokens, mask)
    np.testing.assert_allclose(found.logits[real], expected, **CLOSE)


def test_cached_decoding_in_odd_chunks(golden):
    """The rows are at different positions: the second prompt is two tokens shorter, and left-padded."""
    tokens, rows, behind = golden.expected["input_ids"], np.arange(2)[:, None], np.asarray([[0], [2]])
    caches = jax.jit(_empty_caches, static_argnums=1)(golden.model, tokens.shape)
    ends = np.cumsum([7, *(1, 5) * 5])
    for number, chunk in enumerate(np.split(np.arange(ends[-1]), ends[:-1])):
        positions = np.maximum(chunk - behind, 0)
        real = (chunk >= behind).astype(np.int32)
        step = _decode_chunk if number else _prefill_chunk
        logits, caches = step(golden.model, tokens[rows, positions], positions, real, caches)
        ours, expected = (each[real == 1] for each in (logits, golden.expected["logits"][rows, positions]))
        np.testing.assert_allclose(ours, expected, **CLOSE, err_msg=f"chunk {number}")


def test_greedy_decoding_with_a_cache(golden):
    """The prompt in chunks, then each most likely token, with the compiled functions of the test above."""
    length, expected = int(golden.expected["gen_prompt_len"]), golden.expected["gen_tokens"]
    prompt, ones = golden.expected["input_ids"][:, :length], np.ones_like(golden.expected["input_ids"])
    caches = jax.jit(_empty_caches, static_argnums=1)(golden.model, ones.shape)
    fives = (length - 7) // 5
    ends = np.cumsum([7, *(5,) * fives, *(1,) * (length - 7 - 5 * fives + expected.shape[1])])
    tokens = prompt
    for number, chunk in enumerate(np.split(np.arange(ends[-1]), ends[:-1])):
        step = _decode_chunk if number else _prefill_chunk
        positions = np.broadcast_to(chunk, (2, len(chunk)))
        logits, caches = step(golden.model, tokens[:, chunk], positions, ones[:, chunk], caches)
        if (made := ends[number] - length) >= 0 and made < expected.shape[1]:
            np.testing.assert_allclose(logits[:, -1], golden.expected["gen_logits"][:, made], **CLOSE)
            tokens = np.concatenate([tokens, np.asarray(logits[:, -1].argmax(-1, keepdims=True), tokens.dtype)], axis=1)
    np.testing.assert_array_equal(tokens[:, length:], expected)


@pytest.mark.slow
def test_generate_gives_the_references_tokens(golden):
    """Plain decoding of V3 is tested in test_api.py too."""
    _generates_the_references_tokens(golden, speculative=False)


@goldens_with("mtp_logits")
def test_speculation_gives_the_references_tokens(golden):
    _generates_the_references_tokens(golden, speculative=True)


def _generates_the_references_tokens(golden, speculative):
    """Through the public API, with prompts as lists."""
    length, steps = int(golden.expected["gen_prompt_len"]), golden.expected["gen_tokens"].shape[1]
    prompts = golden.expected["input_ids"][:, :length].tolist()
    tokens = deepseek_jax.generate(golden.api_model, prompts, steps, speculative=speculative)
    np.testing.assert_array_equal(tokens, golden.expected["gen_tokens"])


def test_hidden_states_and_routing_of_each_layer_are_those_of_the_reference(golden):
    found = deepseek_jax.trace(golden.api_model, golden.expected["input_ids"])
    np.testing.assert_allclose(found.logits, golden.expected["logits"], **CLOSE)
    for index, state in enumerate([found.embedding, *found.feed_forward]):
        if f"hs_{index}" in golden.expected:  # with hyper-connections, of the first row alone
            expected = golden.expected[f"hs_{index}"]
            ours = state[0] if golden.config.hc_mult else state
            np.testing.assert_allclose(ours, expected, **CLOSE, err_msg=f"after layer {index}")
    assert len(found.routing) == golden.config.num_moe_layers
    for index, routing in found.routing.items():
        experts, weights = _by_expert(routing.experts, routing.weights)
        expected = (golden.expected[f"router_{index}_{name}"] for name in ("indices", "weights"))
        expected_experts, expected_weights = _by_expert(*expected)
        np.testing.assert_array_equal(experts, expected_experts, err_msg=f"layer {index}")
        np.testing.assert_allclose(weights, expected_weights, **CLOSE, err_msg=f"layer {index}")


def test_losses_are_those_of_the_reference(golden):
    batch, totals = _one_document_a_row(golden.batch)
    output, weights = forward(golden.model, *golden.batch), {"mtp": 0.0, "index_warmup": None}

    @jax.jit
    def parts(model, output):
        return language_model.loss(AlreadyRun(model, output), batch, totals, weights, LossConfig())[1]

    found = parts(golden.model, output)
    np.testing.assert_allclose(found["loss/next"], golden.expected["loss"], **CLOSE)
    if golden.config.num_nextn_predict_layers:
        np.testing.assert_allclose(found["loss/mtp_1"], golden.expected["mtp_loss"], **CLOSE)


class AlreadyRun:
    """Stands for a model whose output is known, so that its losses compile without it."""

    def __init__(self, model, output):
        self.config, self.head_weight, self.output = model.config, model.head_weight, output

    def __call__(self, *_):
        return self.output


@pytest.mark.parametrize(
    "every_golden",
    [*GENERATIONS, *VARIANTS[:-2], *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS[-2:])],
    indirect=True,
)
def test_gradients_are_those_of_the_reference(every_golden):
    loss, grads = deepseek_jax.loss_and_grads(every_golden.api_model, every_golden.expected["input_ids"])
    np.testing.assert_allclose(loss, every_golden.expected["loss"], **CLOSE)
    _compare_gradients(every_golden, grads)
    for name in every_golden.meta.get("params_without_gradient", ()):
        assert (grads[name] == 0).all(), name


def _compare_gradients(golden, grads):
    """Compares the norm of every parameter's gradient, and some gradients whole, by Hugging Face's names."""
    for name, norm in zip(golden.expected["grad_names"], golden.expected["grad_norms"], strict=True):
        np.testing.assert_allclose(np.linalg.norm(_gradient(grads, name)), norm, rtol=1e-4, err_msg=name)
    for key in (key for key in golden.expected if key.startswith("grad__")):
        name = key.removeprefix("grad__")
        expected = golden.expected[key]
        np.testing.assert_allclose(_gradient(grads, name), expected, rtol=1e-4, atol=1e-5, err_msg=name)


def _gradient(grads, name):
    """The gradient of this name.  Some goldens name each expert's matrices, which are slices of our fused arrays."""
    match = re.fullmatch(r"(.*\.experts\.)(\d+)\.(gate|up|down)_proj\.weight", name)
    if match is None:
        return grads[name]
    fused, expert, part = match[1], int(match[2]), match[3]
    if part == "down":
        return grads[f"{fused}down_proj"][expert]
    return np.split(grads[f"{fused}gate_up_proj"][expert], 2)[("gate", "up").index(part)]


@goldens_with("indexer_0_indices")
def test_each_indexer_picks_the_references_keys(golden):
    """Compares the keys that each query picks, ignoring invisible ones, which only fill up the fixed number."""
    tokens, positions, segment_ids = golden.batch
    found = deepseek_jax.trace(golden.api_model, tokens)
    states = [found.embedding, *found.feed_forward]
    visible = np.tril(np.ones((tokens.shape[1],) * 2, bool))
    picks = jax.jit(_picks)(golden.model, states, golden.model.context(tokens, positions, segment_ids))
    for index, picked in enumerate(picks):
        ours, theirs = (
            np.asarray(mask_of(jnp.asarray(each, jnp.int32), tokens.shape[1])) & visible
            for each in (picked, golden.expected[f"indexer_{index}_indices"])
        )
        np.testing.assert_array_equal(ours, theirs, err_msg=f"layer {index}")


@goldens_with("indexer_0_indices")
def test_gathered_attention_has_the_references_loss_and_gradients(golden, monkeypatch):
    """Sequences this short would be masked, so gathering is forced.  Indexers get gradients from their own loss."""
    monkeypatch.setattr(sparse, "SPARSE_FROM", 1)
    batch, totals = _one_document_a_row(golden.batch)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(params, buffers, batch):
        model, weights = merge(golden.graphdef, params, buffers), {"mtp": 0.0, "index_warmup": None}
        config = LossConfig(sequence_balance=0.0, indexer_weight=1.0)
        return language_model.loss(model, batch, totals, weights, config)

    grads, parts = gradients(golden.params, golden.buffers, batch)
    np.testing.assert_allclose(parts["loss/next"], golden.expected["loss"], **CLOSE)
    grads = huggingface.export(golden.config, grads, fuse=True)
    _compare_gradients(golden, grads)
    modules = mtp_prefix(0, golden.config)
    for name, grad in grads.items():
        if "indexer" in name:
            assert np.abs(grad).max() > 0, name
        elif name.startswith(modules):  # the MTP loss has weight 0 here
            assert not grad.any(), name


def _one_document_a_row(golden_batch):
    """(a batch as in training, its totals)."""
    batch = dict(zip(("tokens", "positions", "segment_ids"), golden_batch, strict=True))
    return batch, language_model.totals(batch, depths=2)


def _by_expert(experts_TK, weights_TK):
    """(experts, weights) of each token sorted by expert, as the order of choices has no meaning."""
    experts_TK, weights_TK = (np.asarray(array).reshape(-1, array.shape[-1]) for array in (experts_TK, weights_TK))
    order = np.argsort(experts_TK, axis=1)
    return tuple(np.take_along_axis(array, order, axis=1) for array in (experts_TK, weights_TK))


def _picks(model, states, context):
    """The keys that each layer's indexer picks, [B, S, index_topk], from the hidden state before the layer."""
    picks = []
    for block, x in zip(unstacked(model), states):
        queries, keys = block.attention.queries_and_keys(block.attention_norm(x), context)
        picks.append(pick_causally(queries, keys, model.config.index_topk, sparse.BLOCK))
    return picks


def _empty_caches(model, shape):
    return CachedDecoder(model).empty_caches(*shape)


@jax.jit
def _prefill_chunk(model, tokens_BS, positions_BS, segment_ids_BS, caches):
    cached = CachedDecoder(model)
    hidden, caches = cached.prefill(tokens_BS, positions_BS, segment_ids_BS, caches)
    return cached.logits(hidden), caches


@jax.jit
def _decode_chunk(model, tokens_BS, positions_BS, segment_ids_BS, caches):
    cached = CachedDecoder(model)
    hidden, caches = cached.decode(tokens_BS, positions_BS, caches)
    return cached.logits(hidden), caches
