"""How hard XLA works on a step: at a level of ours, or at the one that somebody named."""

import jax
import numpy as np

from deepseek_jax.config import MeshConfig
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train.compiling import LEVEL, compiler_options
from deepseek_jax.train.program import language_model_program
from tests.train import tiny, toy


def test_a_level_that_is_named_stays(monkeypatch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_enable_fast_math=false --{LEVEL}=1")
    assert compiler_options(mesh) is None
    monkeypatch.delenv("XLA_FLAGS")
    assert compiler_options(mesh) == {LEVEL: 2}


def test_steps_are_the_same_at_the_level_of_a_user_and_of_this_suite(tmp_path, monkeypatch):
    """All other tests train at the level that tests/conftest.py names."""
    config = tiny.experiment(tmp_path)
    rng, losses = np.random.default_rng(0), []
    tokens = rng.integers(1, config.model.vocab_size, (1, 2, 16)).astype(np.int32)
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape)
    batch = {"tokens": tokens, "segment_ids": ones, "positions": positions, "domain_ids": ones - 1}
    for named in True, False:
        if not named:
            monkeypatch.delenv("XLA_FLAGS")
        program = language_model_program(config, np.ones(1))
        state, step = toy.start(config, task=program, devices=jax.devices()[:1])
        losses.append([])
        for _ in range(5):
            state, measured = step(state, batch)
            losses[-1].append(float(measured["loss/next"]))
    at_level_0, at_level_2 = losses
    assert at_level_0[-1] < at_level_0[0] - 0.1, "a step that does nothing is the same at any level"
    np.testing.assert_allclose(at_level_2, at_level_0, rtol=1e-5)
