"""The step of training as `deepseek-jax train` runs it, on one batch of random tokens."""

import time

import jax
import numpy as np

from benchmarks.rivals.serve import Stopwatch
from benchmarks.sizes import EXPERIMENT
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import batch_sharding
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.state import abstract_state, make_state
from deepseek_jax.train.step import compile_step, make_step


def prepare():
    mesh = make_mesh(EXPERIMENT.mesh)
    program = language_model_program(EXPERIMENT, bytes_a_target=np.ones(1))
    optimizer = make_optimizer(EXPERIMENT.optimizer, EXPERIMENT.train.steps)
    abstract = abstract_state(program, optimizer, mesh, ema=False)
    state = make_state(program, optimizer, abstract)
    step = compile_step(make_step(program, optimizer, EXPERIMENT), abstract)

    def play(batch, sequence, steps):
        """ "dispatch_seconds" are those until Python has handed the step over."""
        nonlocal state
        rows = jax.device_put(_random_batch(batch, sequence), batch_sharding(mesh, leading=1))
        stopwatch, dispatch = Stopwatch(), []
        for _ in range(steps):
            with stopwatch:
                start = time.perf_counter()
                state, metrics = step(state, rows)
                dispatch.append(time.perf_counter() - start)
                jax.block_until_ready((state, metrics))
        return stopwatch.measured | {"dispatch_seconds": dispatch}

    parameters = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    return {"program": f"deepseek_jax on jax {jax.__version__}", "parameters": parameters}, play


def _random_batch(batch, sequence):
    """One microbatch [1, batch, sequence] of one document a row."""
    tokens = np.random.default_rng(0).integers(0, EXPERIMENT.model.vocab_size, (1, batch, sequence), dtype=np.int32)
    positions = np.broadcast_to(np.arange(sequence, dtype=np.int32), tokens.shape)
    ones = np.ones_like(tokens)
    return {"tokens": tokens, "segment_ids": ones, "positions": positions, "domain_ids": ones - 1}
