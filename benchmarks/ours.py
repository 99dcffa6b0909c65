"""This package as a contestant.

    python -m benchmarks.ours train|decode

Answers through rivals/serve.py, as the rivals do.
"""

import sys
import time

from deepseek_jax.cli import runtime

runtime.prepare()  # as the command line does, before jax is imported

import jax
import numpy as np

from benchmarks.rivals.serve import Stopwatch, serve
from benchmarks.sizes import EXPERIMENT
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import batch_sharding
from deepseek_jax.train.optimizer import make_optimizer
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.state import abstract_state, make_state
from deepseek_jax.train.step import compile_step, make_step


def about(params):
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"program": f"deepseek_jax, jax {jax.__version__}", "parameters": parameters}


def train():
    """The step of training as `deepseek-jax train` runs it, on one batch of random tokens."""
    model, mesh = EXPERIMENT.model, make_mesh(EXPERIMENT.mesh)
    program = language_model_program(EXPERIMENT, bytes_a_target=np.ones(1))
    optimizer = make_optimizer(EXPERIMENT.optimizer, EXPERIMENT.train.steps)
    abstract = abstract_state(program, optimizer, mesh, ema=False)
    state = make_state(program, optimizer, abstract)
    step = compile_step(make_step(program, optimizer, EXPERIMENT), abstract)

    def play(batch, sequence, steps):
        nonlocal state
        rows = jax.device_put(random_batch(batch, sequence, model.vocab_size), batch_sharding(mesh, leading=1))
        stopwatch, dispatch = Stopwatch(), []
        for _ in range(steps):
            with stopwatch:
                start = time.perf_counter()
                state, metrics = step(state, rows)
                dispatch.append(time.perf_counter() - start)
                jax.block_until_ready((state, metrics))
        return stopwatch.measured | {"dispatch_seconds": dispatch}

    return about(state["params"]), play


def random_batch(batch, sequence, vocab_size):
    """One microbatch [1, batch, sequence] of one document a row."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (1, batch, sequence), dtype=np.int32)
    positions = np.broadcast_to(np.arange(sequence, dtype=np.int32), tokens.shape)
    ones = np.ones_like(tokens)
    return {"tokens": tokens, "segment_ids": ones, "positions": positions, "domain_ids": ones - 1}


if __name__ == "__main__":
    serve(*{"train": train}[sys.argv[1]]())
