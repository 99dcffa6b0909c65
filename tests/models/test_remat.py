"""What the backward pass computes again under each setting of `train.remat`."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from deepseek_jax.config import Experiment, TrainConfig
from deepseek_jax.models.attention import kernels
from deepseek_jax.models.moe import experts
from deepseek_jax.models.remat import POLICIES
from deepseek_jax.train.program import language_model_program
from tests.parallel import curves


def counts(jaxpr) -> collections.Counter:
    """How often each primitive occurs in a jaxpr and those inside."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        found[equation.primitive.name] += 1
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += counts(inner)
    return found


def of_gradient(remat: str) -> collections.Counter:
    program = language_model_program(Experiment(model=curves.V3, train=TrainConfig(remat=remat)), np.array([4.0]))
    batch = curves.packed(0)
    totals = program.totals(jax.tree.map(lambda leaf: leaf[None], batch))

    def loss(params, buffers):
        return program.loss(params, buffers, batch, totals, program.scheduled(0) | {"microbatch": 0})[0]

    return counts(jax.make_jaxpr(jax.grad(loss))(*jax.eval_shape(program.make_parameters)).jaxpr)


def test_dots_keeps_what_routers_choose_and_the_loops_over_blocks_of_experts_compute(monkeypatch):
    monkeypatch.setattr(experts, "fastest", lambda *arguments, how: experts.in_blocks(*arguments, how))
    none, dots, full = map(of_gradient, ("none", "dots", "full"))
    for name in "while", "sort", "top_k":
        assert none[name] == dots[name] < full[name], name


def test_dots_computes_only_the_last_of_the_experts_three_products_again(monkeypatch):
    monkeypatch.setattr(experts, "fastest", lambda *arguments, how: experts.ragged(*arguments, how))
    none, dots, full = (of_gradient(remat)["ragged_dot_general"] for remat in ("none", "dots", "full"))
    layers = full - none
    assert layers % 3 == 0 and dots - none == layers // 3


@pytest.mark.parametrize("remat, again", [("dots", 0), ("full", 1)])
def test_dots_keeps_the_output_of_the_attention_kernel(remat, again):
    q_BSHK, segments_BS = jnp.ones((1, 512, 1, 128)), jnp.ones((1, 512), jnp.int32)

    def attend(q_BSHK):
        return kernels.on_tpu(q_BSHK, q_BSHK, q_BSHK, segments_BS, segments_BS, scale=1.0)

    def calls(attend):
        slope = jax.grad(lambda q_BSHK: (attend(q_BSHK) ** 2).sum())
        jaxpr = jax.make_jaxpr(slope)(q_BSHK).jaxpr
        return counts(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])["pallas_call"]

    assert calls(jax.checkpoint(attend, policy=POLICIES[remat])) == calls(attend) + again
