"""A custom router: what it reports appears in the rows of metrics.jsonl, and it may draw noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.config import Experiment, TrainConfig
from deepseek_jax.models.moe import router
from deepseek_jax.train import metrics
from deepseek_jax.train.program import language_model_program
from tests.models.noisy import NoisyRouter
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
    """[2, 16]; the last four positions of each row are padding."""
    rows = {name: np.zeros((2, LENGTH), np.int32) for name in ("tokens", "segment_ids", "positions", "domain_ids")}
    rows["tokens"][:, :-4] = np.random.default_rng(0).integers(1, MODEL.vocab_size, (2, LENGTH - 4))
    rows["segment_ids"][:, :-4], rows["positions"][:, :-4] = 1, np.arange(LENGTH - 4)
    return rows


def started():
    """(parameters, buffers, jitted measure(params, buffers, batch, update, microbatch) -> aux of the loss, program)."""
    program = language_model_program(EXPERIMENT, np.array([4.0]))

    @jax.jit
    def measure(params, buffers, batch, update, microbatch):
        scheduled = program.scheduled(update) | {"microbatch": microbatch}
        return program.loss(params, buffers, batch, program.totals(batch), scheduled)[1]

    return *program.make_parameters(), measure, program


def row_of(batch) -> dict:
    *model, measure, _ = started()
    return metrics.language_model_row(jax.device_get(measure(*model, batch, 0, 0)), {}, MODEL)


def test_what_a_router_reports_of_tokens_is_in_the_row_by_layer(batch, monkeypatch):
    monkeypatch.setitem(router.ROUTERS, "moe", Telling)
    row = row_of(batch)
    layers = [layer for layer in row["router/entropy"] if layer != "1"]  # layer 1 routes by a hash table
    assert "mtp 0" in layers and "2" in layers
    assert row["router/own/ones"] == pytest.approx(dict.fromkeys(layers, 1.0))  # padding is left out
    assert all(0 < best <= MODEL.routed_scaling_factor for best in row["router/own/best"].values())


def test_a_router_that_does_not_choose_by_scores_has_no_balance_loss(batch, monkeypatch):
    def balance():
        *model, measure, _ = started()
        return float(measure(*model, batch, 0, 0)["loss/balance"])

    assert balance() > 0
    monkeypatch.setitem(router.ROUTERS, "moe", type("Fixed", (Telling,), {"by_scores": False}))
    assert balance() == 0  # nor has the hash table of layer 1


def test_other_routers_report_nothing_of_their_own(batch):
    assert not any(name.startswith("router/own") for name in row_of(batch))


def test_every_router_metric_of_the_loss_is_in_the_row():
    measured = {"bytes": 0.0, "router/load": {}, "router/entropy": {}, "router/z_loss": np.float32(0.5)}
    assert metrics.language_model_row(measured, {}, MODEL) == {"router/z_loss": 0.5}


def test_a_router_draws_new_noise_for_each_update_microbatch_layer_and_token(batch, monkeypatch):
    monkeypatch.setitem(router.ROUTERS, "moe", NoisyRouter)
    params, buffers, measure, program = started()
    for kernel in (params["layers"]["2-2"], params["mtp"]["0"]["block"]):  # equal scores, so the noise decides
        kernel["feed_forward"]["router"]["kernel"] *= 0
    given = params, buffers, batch
    first = [measure(*given, update, microbatch) for update, microbatch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    loads = [np.asarray(aux["router/load"]["layers/2-2"][0]) for aux in first]
    assert all((one != other).any() for number, one in enumerate(loads) for other in loads[:number])
    assert max((load > 0).sum() for load in loads) > EXPERIMENT.model.num_experts_per_tok  # tokens differ
    assert any((aux["router/load"]["mtp/0/block"] != load).any() for aux, load in zip(first, loads, strict=True))
    again = measure(*given, 1, 0)
    assert all(jax.tree.leaves(jax.tree.map(lambda one, other: (one == other).all(), first[2], again)))
    scored = [jax.jit(program.score)(*given)["nats"] for _ in range(2)]
    monkeypatch.setitem(router.ROUTERS, "moe", router.TopKRouter)
    plain = jax.jit(started()[3].score)(*given)["nats"]
    assert scored[0] == scored[1] == plain  # held-out text is scored without noise


def test_without_a_drawing_router_the_loss_has_no_random_key(batch):
    *model, measure, program = started()
    assert program.scheduled(0).keys() == {"mtp", "index_warmup"}
    assert "random_" not in str(jax.make_jaxpr(measure)(*model, batch, 0, 0))
