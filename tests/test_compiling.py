"""XLA's optimisation level: the package's default, the suite's (tests/xla_flags.py), and one set in XLA_FLAGS."""

import jax
import numpy as np

from deepseek_jax import compiling
from deepseek_jax.compiling import LEVEL, compiler_options
from deepseek_jax.config import MeshConfig
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train import step
from deepseek_jax.train.program import language_model_program
from tests import xla_flags
from tests.train import tiny, toy


def test_an_optimisation_level_in_xla_flags_is_respected(monkeypatch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_enable_fast_math=false --{LEVEL}=1")
    assert compiler_options(mesh) is None
    monkeypatch.delenv("XLA_FLAGS")
    assert compiler_options(mesh) == {LEVEL: 2}


def test_compiler_options_are_chosen_at_the_first_call(monkeypatch):
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda function, **how: given.append(how) or jit(function, **how))
    monkeypatch.delenv("XLA_FLAGS")

    @compiling.jit(static_argnums=1)
    def repeated(x, times: int):
        return x * times

    assert not given, "asked before it was called"
    assert [repeated(2, 3), repeated(2, 4)] == [6, 8]
    assert given == [{"static_argnums": 1, "compiler_options": {LEVEL: 2}}]


def test_least_memory_adds_its_compiler_options(monkeypatch):
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda function, **how: given.append(how) or jit(function, **how))
    monkeypatch.delenv("XLA_FLAGS")
    assert compiling.jit(static_argnums=1, least_memory=True)(lambda x, times: x * times)(2, 3) == 6
    assert given == [{"static_argnums": 1, "compiler_options": {LEVEL: 2} | compiling.LEAST_MEMORY}]


def test_a_compiled_function_works_inside_jit_grad_and_vmap(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")

    @compiling.jit(static_argnums=1)
    def power(x, exponent: int):
        return x**exponent

    assert jax.jit(lambda: power(3.0, 2))() == 9
    assert jax.grad(lambda x: power(x, 2))(3.0) == jax.jit(jax.grad(lambda x: power(x, 2)))(3.0) == 6
    np.testing.assert_array_equal(jax.vmap(lambda x: power(x, 2))(np.ones(2)), 1)


def test_the_suites_xla_flags_give_the_steps_that_users_get(tmp_path, monkeypatch):
    config = tiny.experiment(tmp_path)
    newer_way = {xla_flags.FUSION_EMITTERS: True} if xla_flags.EMITTERS_OPTIONAL else {}
    rng, losses = np.random.default_rng(0), []
    tokens = rng.integers(1, config.model.vocab_size, (1, 2, 16)).astype(np.int32)
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape)
    batch = {"tokens": tokens, "segment_ids": ones, "positions": positions, "domain_ids": ones - 1}
    for as_users in False, True:
        if as_users:
            monkeypatch.delenv("XLA_FLAGS")
            monkeypatch.setattr(step, "compiler_options", lambda mesh: compiler_options(mesh) | newer_way)
        program = language_model_program(config, np.ones(1))
        state, run = toy.start(config, task=program, devices=jax.devices()[:1])
        losses.append([])
        for _ in range(5):
            state, measured = run(state, batch)
            losses[-1].append(float(measured["loss/next"]))
    quick, users = losses
    assert quick[-1] < quick[0] - 0.1, "a step that does nothing is the same however it is compiled"
    np.testing.assert_allclose(users, quick, rtol=1e-5)
