"""Weights that each layer computes from adapters, masks or rounding, against a model with precomputed weights."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from deepseek_jax.compress.config import PruneConfig, QuantizeConfig
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.views import as_trained
from deepseek_jax.tune.config import LoraConfig, TuneConfig
from tests.parallel import curves
from tests.views import training

SMALL = dataclasses.replace(training.MODEL, num_nextn_predict_layers=0)
LORA = TuneConfig(lora=LoraConfig(rank=2))
DORA = TuneConfig(lora=LoraConfig(rank=2, dora=True))
HALF = PruneConfig(method="magnitude", sparsity=0.5)
SECTIONS = {
    "adapters": {"tune": LORA, "prune": PruneConfig()},
    "lengths over masks over four bits": {
        "tune": DORA,
        "prune": HALF,
        "quantize": QuantizeConfig(weights="int4", group=8),
    },
    "rounded as they train": {"prune": PruneConfig(), "quantize": QuantizeConfig(weights="fp8", trained=True)},
    "single experts": {"tune": TuneConfig(experts="2: 1; 4: 0 3"), "prune": PruneConfig()},
    "single experts, rounded as they train": {
        "tune": TuneConfig(experts="1: 0 2"),
        "prune": PruneConfig(),
        "quantize": QuantizeConfig(weights="fp8", trained=True),
    },
}


def setting(sections, model, remat="none"):
    """(program, trained parameters, buffers, a batch) of an experiment with these sections."""
    experiment = training.experiment(**sections)
    train = dataclasses.replace(experiment.train, remat=remat)
    experiment = dataclasses.replace(experiment, model=model, train=train)
    program = as_trained(language_model_program(experiment, np.array([4.0])), experiment)
    params, buffers = jax.jit(program.make_parameters)()
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(lambda leaf: leaf + 0.02 * jax.random.normal(next(keys), leaf.shape), params)
    return program, params, buffers, curves.packed(0)


def given(program, batch):
    totals = program.totals(jax.tree.map(lambda leaf: leaf[None], batch))
    return totals, program.scheduled(0) | {"microbatch": 0}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("lengths over masks over four bits", marks=pytest.mark.slow),
        "rounded as they train",
        pytest.param("single experts, rounded as they train", marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_equal_those_with_precomputed_weights(name):
    program, params, buffers, batch = setting(SECTIONS[name], SMALL)

    def in_layers(params):
        return program.loss(params, buffers, batch, *given(program, batch))[0]

    def before(params):
        return program.model.loss(*program.to_model(params, buffers), batch, *given(program, batch))[0]

    (got, slopes), (expected, wanted) = (jax.jit(jax.value_and_grad(loss))(params) for loss in (in_layers, before))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    jax.tree.map(lambda *each: np.testing.assert_allclose(*each, rtol=1e-4, atol=1e-7), slopes, wanted)


@pytest.mark.parametrize("name", [pytest.param("adapters", marks=pytest.mark.slow), "single experts"])
def test_adapted_experts_never_exist_for_all_layers_at_once(name):
    """The frozen experts are an input; no operation has a result of the size of all layers' experts."""
    program, params, buffers, batch = setting(SECTIONS[name], curves.V3, remat="full")
    experts = buffers["frozen"]["layers"]["1-6"]["feed_forward"]["experts"]
    sizes = {experts[name].shape for name in ("gate", "up", "down")}

    def sizes_made(loss):
        step = jax.value_and_grad(loss, has_aux=True)
        return set(_shapes(jax.make_jaxpr(step)(params, buffers, batch, *given(program, batch)).jaxpr))

    assert not sizes & sizes_made(program.loss)
    assert sizes <= sizes_made(
        lambda params, buffers, *rest: program.model.loss(*program.to_model(params, buffers), *rest)
    )


def _shapes(jaxpr):
    """The shapes of all results computed in a jaxpr and those nested in it."""
    for equation in jaxpr.eqns:
        yield from (lazy_weight.aval.shape for lazy_weight in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _shapes(inner)
