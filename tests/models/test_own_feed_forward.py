"""A custom feed-forward without experts, in a model whose other layers have experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deepseek_jax.config import Experiment, TrainConfig
from deepseek_jax.models import checks, feed_forward
from deepseek_jax.models.layers import linear
from deepseek_jax.models.tree import flatten, weight
from deepseek_jax.train.program import language_model_program
from tests.train import tiny

KINDS = ("squared", "moe", "squared")


class SquaredReLU(nnx.Module):
    """down(relu(up(x))^2), as in Primer (arXiv:2109.08668)."""

    def __init__(self, config, kind, *, rngs):
        D, F, scale = config.hidden_size, config.intermediate_size, config.initializer_range
        self.up = weight(rngs.params(), (D, F), ("embed", "mlp"), scale)
        self.down = weight(rngs.params(), (F, D), ("mlp", "embed"), scale)

    def __call__(self, x_BSD, context):
        return linear(jnp.square(jax.nn.relu(linear(x_BSD, self.up))), self.down), None


def test_a_feed_forward_without_experts_learns_beside_layers_that_have_them(monkeypatch):
    monkeypatch.setitem(feed_forward.FEED_FORWARDS, "squared", SquaredReLU)
    monkeypatch.setitem(checks.OF_FEED_FORWARD, "squared", checks.OF_FEED_FORWARD["dense"])
    model = dataclasses.replace(tiny.MOE, num_hidden_layers=3, mlp_layer_types=KINDS, num_nextn_predict_layers=1)
    assert model.num_moe_layers == 1
    program = language_model_program(Experiment(model=model, train=TrainConfig(steps=10)), np.array([4.0]))
    rows = np.random.default_rng(0).integers(1, model.vocab_size, (2, 12)).astype(np.int32)
    batch = {"tokens": rows, "segment_ids": np.ones_like(rows), "domain_ids": 0 * rows}
    batch["positions"] = np.broadcast_to(np.arange(12), rows.shape)
    params, buffers = program.make_parameters()
    given = buffers, batch, program.totals(batch), program.scheduled(0)
    gradient, aux = jax.jit(jax.grad(program.loss, has_aux=True))(params, *given)
    assert list(aux["router/load"]) == ["layers/1-1"]
    for block in ("layers/0-0", "layers/2-2", "mtp/0/block"):
        assert all(flatten(gradient)[f"{block}/feed_forward/{name}"].any() for name in ("up", "down"))
