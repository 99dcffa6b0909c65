"""Greedy decoding as `deepseek-jax generate` does it, with a new model: which tokens come does not change the work."""

import jax
import numpy as np

from benchmarks.rivals.serve import Stopwatch
from benchmarks.sizes import EXPERIMENT
from deepseek_jax.infer.generate import generate
from deepseek_jax.models.decoder import initialise

NO_TOKEN = -1  # as the end of text: nothing stops early


def prepare():
    config = EXPERIMENT.model
    model = initialise(config, jax.random.key(0))

    def play(batch, prompt, new, repetitions):
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch, prompt)).tolist()
        stopwatch = Stopwatch()
        for _ in range(repetitions):
            with stopwatch:
                tokens = generate(model, prompts, new, eos=NO_TOKEN)
            assert all(len(row) == new for row in tokens)
        return stopwatch.measured

    parameters = sum(leaf.size for leaf in jax.tree.leaves(model[1]))
    return {"program": f"deepseek_jax on jax {jax.__version__}", "parameters": parameters}, play
