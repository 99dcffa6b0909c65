"""How hard XLA works on a step: as users have it, as tests/quickly.py has it, and as somebody names it."""

import jax
import numpy as np

from deepseek_jax import compiling
from deepseek_jax.compiling import LEVEL, compiler_options
from deepseek_jax.config import MeshConfig
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train import step
from deepseek_jax.train.program import language_model_program
from tests import quickly
from tests.train import tiny, toy


def test_a_level_that_is_named_stays(monkeypatch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_enable_fast_math=false --{LEVEL}=1")
    assert compiler_options(mesh) is None
    monkeypatch.delenv("XLA_FLAGS")
    assert compiler_options(mesh) == {LEVEL: 2}


def test_a_function_is_compiled_for_the_platform_that_is_there_when_it_is_called(monkeypatch):
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda function, **how: given.append(how) or jit(function, **how))
    monkeypatch.delenv("XLA_FLAGS")

    @compiling.jit(static_argnums=1)
    def repeated(x, times: int):
        return x * times

    assert not given, "asked before it was called"
    assert [repeated(2, 3), repeated(2, 4)] == [6, 8]
    assert given == [{"static_argnums": 1, "compiler_options": {LEVEL: 2}}]


def test_a_program_that_is_to_take_the_least_memory(monkeypatch):
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda function, **how: given.append(how) or jit(function, **how))
    monkeypatch.delenv("XLA_FLAGS")
    assert compiling.jit(static_argnums=1, least_memory=True)(lambda x, times: x * times)(2, 3) == 6
    assert given == [{"static_argnums": 1, "compiler_options": {LEVEL: 2} | compiling.LEAST_MEMORY}]


def test_inside_of_another_program_it_has_no_options_of_its_own(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")

    @compiling.jit(static_argnums=1)
    def power(x, exponent: int):
        return x**exponent

    assert jax.jit(lambda: power(3.0, 2))() == 9
    assert jax.grad(lambda x: power(x, 2))(3.0) == jax.jit(jax.grad(lambda x: power(x, 2)))(3.0) == 6
    np.testing.assert_array_equal(jax.vmap(lambda x: power(x, 2))(np.ones(2)), 1)


def test_steps_are_the_same_as_users_and_as_this_suite_compile_them(tmp_path, monkeypatch):
    config = tiny.experiment(tmp_path)
    newer_way = {quickly.NEWER_WAY: True} if quickly.HAS_BOTH else {}
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
