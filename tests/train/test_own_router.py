"""A router of one's own: what it tells comes into the rows of metrics.jsonl."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.config import Experiment, TrainConfig
from deepseek_jax.models.moe import router
from deepseek_jax.train import metrics
from deepseek_jax.train.program import language_model_program
from tests.train import tiny

MODEL = dataclasses.replace(tiny.MOE, num_hidden_layers=3, num_nextn_predict_layers=1, num_hash_layers=1)
EXPERIMENT = Experiment(model=dataclasses.replace(MODEL, n_group=1), train=TrainConfig(steps=10))
LENGTH = 16


class Telling(router.TopKRouter):
    def __call__(self, x_TD, tokens_T):
        routing = super().__call__(x_TD, tokens_T)
        own = {"ones": jnp.ones(tokens_T.shape), "best": routing.weights_TK.max(axis=-1)}
        return dataclasses.replace(routing, own=own)


@pytest.fixture
def batch():
    """[2, 16], of which the last four places of each row are padding."""
    rows = {name: np.zeros((2, LENGTH), np.int32) for name in ("tokens", "segment_ids", "positions", "domain_ids")}
    rows["tokens"][:, :-4] = np.random.default_rng(0).integers(1, MODEL.vocab_size, (2, LENGTH - 4))
    rows["segment_ids"][:, :-4], rows["positions"][:, :-4] = 1, np.arange(LENGTH - 4)
    return rows


def row_of(batch) -> dict:
    program = language_model_program(EXPERIMENT, np.array([4.0]))
    params, buffers = program.make_parameters()
    scheduled = program.scheduled(jnp.zeros((), jnp.int32)) | {"microbatch": 0}
    _, aux = jax.jit(program.loss)(params, buffers, batch, program.totals(batch), scheduled)
    return metrics.language_model_row(jax.device_get(aux), {}, MODEL)


def test_what_it_tells_of_tokens_is_in_the_row_by_layer(batch, monkeypatch):
    monkeypatch.setitem(router.ROUTERS, "moe", Telling)
    row = row_of(batch)
    layers = [layer for layer in row["router/entropy"] if layer != "1"]  # that one chooses by a table
    assert "mtp 0" in layers and "2" in layers
    assert row["router/own/ones"] == pytest.approx(dict.fromkeys(layers, 1.0))  # padding is left out
    assert all(0 < best <= MODEL.routed_scaling_factor for best in row["router/own/best"].values())


def test_other_routers_tell_nothing(batch):
    assert not any(name.startswith("router/own") for name in row_of(batch))


def test_every_number_that_a_loss_measures_of_routers_is_in_the_row():
    measured = {"bytes": 0.0, "router/load": {}, "router/entropy": {}, "router/z_loss": np.float32(0.5)}
    assert metrics.language_model_row(measured, {}, MODEL) == {"router/z_loss": 0.5}
