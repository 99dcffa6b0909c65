"""A custom attention: what it tells of tokens is in metrics.jsonl and has gradients; it decodes as it trains."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.config import Experiment, TrainConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models import checks
from deepseek_jax.models.attention import costs, kinds
from deepseek_jax.models.cached import CachedDecoder, unstacked
from deepseek_jax.models.tree import flatten, merge
from deepseek_jax.train import metrics
from deepseek_jax.train.program import language_model_program
from tests.models.differential import DifferentialAttention
from tests.train import tiny

SIZES = {"num_key_value_heads": 1, "head_dim": 16, "qk_rope_head_dim": 8}  # each half of a head is rotated
DEPTH = {"num_hidden_layers": 2, "first_k_dense_replace": 2, "num_nextn_predict_layers": 1}
LENGTH, PROMPT = 12, 5


def program_of(patch, attention):
    patch.setitem(kinds.KINDS, "own", attention)
    patch.setitem(checks.OF_ATTENTION, "own", checks.OF_ATTENTION["gqa"])
    patch.setitem(costs.COSTS, "own", costs.COSTS["gqa"])
    model = dataclasses.replace(tiny.DENSE, layer_types=("own",), **SIZES, **DEPTH)
    return language_model_program(Experiment(model=model, train=TrainConfig(steps=10)), np.array([4.0]))


@pytest.fixture(scope="module")
def program():
    with pytest.MonkeyPatch.context() as patch:
        yield program_of(patch, DifferentialAttention)


@pytest.fixture(scope="module")
def batch():
    """[2, 12]; the last three positions of each row are padding."""
    rows = {name: np.zeros((2, LENGTH), np.int32) for name in ("tokens", "segment_ids", "positions", "domain_ids")}
    rows["tokens"][:, :-3] = np.random.default_rng(0).integers(1, tiny.DENSE.vocab_size, (2, LENGTH - 3))
    rows["segment_ids"][:, :-3], rows["positions"][:, :-3] = 1, np.arange(LENGTH - 3)
    return rows


@pytest.fixture(scope="module")
def measure(program, batch):
    """measure(params) -> (aux of the loss, the gradient of the entropy of head 0, summed over all layers)."""
    buffers, totals, scheduled = program.make_parameters()[1], program.totals(batch), program.scheduled(0)

    def entropy(params):
        _, aux = program.loss(params, buffers, batch, totals, scheduled)
        return sum(means.sum() for means in aux["attention/own/entropy_0"].values()), aux

    @jax.jit
    def run(params):
        gradient, aux = jax.grad(entropy, has_aux=True)(params)
        return aux, gradient

    return run


def test_what_an_attention_tells_of_tokens_is_in_the_row_by_layer(program, batch, measure):
    params, buffers = program.make_parameters()
    model = merge(program.graphdef, params, buffers)
    row = metrics.language_model_row(jax.device_get(measure(params)[0]), {}, model.config)
    told = [row[f"attention/own/entropy_{head}"] for head in range(2)]
    assert all(list(entropy) == ["0", "1", "mtp 0"] for entropy in told)
    assert all(0 < value < math.log(LENGTH) for entropy in told for value in entropy.values())
    context, block = model.context(batch["tokens"], batch["positions"], batch["segment_ids"]), unstacked(model)[0]
    _, first = jax.jit(lambda x: block.through_attention(x, context))(model.embed(batch["tokens"]))
    real = batch["segment_ids"] > 0
    np.testing.assert_allclose(told[1]["0"], first["entropy_1"][real].mean(), rtol=1e-5)


def test_what_an_attention_tells_can_be_a_term_of_the_loss(program, measure):
    params, _ = program.make_parameters()
    before, gradient = measure(params)
    flat = flatten(gradient)
    assert all((np.abs(flat[f"layers/0-1/attention/{name}"]).max((1, 2, 3)) > 0).all() for name in ("q", "k"))
    assert not flat["head"].any()
    after, _ = measure(jax.tree.map(lambda value, slope: value - 10 * slope, params, gradient))
    totals = (sum(means.sum() for means in aux["attention/own/entropy_0"].values()) for aux in (before, after))
    assert next(totals) > next(totals)


def test_an_output_projection_under_another_name_is_refused(monkeypatch):
    """Compression and adapters would take its heads for its only inputs."""

    class Renamed(DifferentialAttention):
        def __init__(self, config, kind, *, rngs):
            super().__init__(config, kind, rngs=rngs)
            self.proj, self.out = self.out, None

    with pytest.raises(UserError, match="^the parameter layers/0-1/attention/proj .* must be called out: compression"):
        program_of(monkeypatch, Renamed)


def test_its_decoding_agrees_with_its_call(program, batch):
    model = merge(program.graphdef, *program.make_parameters())
    tokens, positions = batch["tokens"], np.broadcast_to(np.arange(LENGTH), (2, LENGTH))
    ones = np.ones_like(tokens)

    @jax.jit
    def both():
        cached = CachedDecoder(model)
        of_prompt = tokens[:, :PROMPT], positions[:, :PROMPT], ones[:, :PROMPT]
        start, caches = cached.prefill(*of_prompt, cached.empty_caches(2, LENGTH))
        rest, _ = cached.decode(tokens[:, PROMPT:], positions[:, PROMPT:], caches)
        decoded = cached.logits(jnp.concatenate([start, rest], axis=1))
        return model.logits(model(tokens, positions, ones).hidden), decoded

    np.testing.assert_allclose(*both(), rtol=1e-4, atol=1e-4)
