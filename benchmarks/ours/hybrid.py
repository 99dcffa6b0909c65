"""The reference hybrid network trained on one batch of random images, in both forms of its sequence."""

import functools

import jax
import numpy as np
import optax
from flax import nnx

from benchmarks.rivals.serve import Stopwatch
from deepseek_jax.compiling import compiler_options
from deepseek_jax.config import MeshConfig
from deepseek_jax.models import tree
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.parallel.mesh import make_mesh

CONFIGS = {sequence: HybridConfig(sequence=sequence) for sequence in ("rows", "cells")}


@functools.cache
def trainer(sequence):
    """[params, opt_state] and the compiled step that takes and gives them."""
    graphdef, params, buffers = tree.split(Hybrid(CONFIGS[sequence], rngs=nnx.Rngs(params=0)))
    optimizer = optax.adamw(1e-3)

    def loss(params, images, labels):
        logits, _ = tree.merge(graphdef, params, buffers)(images, key=jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params, opt_state, images, labels):
        value, gradient = jax.value_and_grad(loss)(params, images, labels)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    options = compiler_options(make_mesh(MeshConfig()))
    return [params, optimizer.init(params)], jax.jit(step, donate_argnums=(0, 1), compiler_options=options)


def prepare():
    def play(sequence, batch, steps):
        trained, step = trainer(sequence)
        rng = np.random.default_rng(0)
        images, labels = rng.random((batch, 28, 28, 1), np.float32), rng.integers(0, 10, batch)
        stopwatch = Stopwatch()
        for _ in range(steps):
            with stopwatch:
                *trained[:], value = step(*trained, images, labels)
                value.block_until_ready()
        return stopwatch.measured

    parameters = {sequence: sum(leaf.size for leaf in jax.tree.leaves(trainer(sequence)[0][0])) for sequence in CONFIGS}
    return {"program": f"deepseek_jax on jax {jax.__version__}", "parameters": parameters}, play
