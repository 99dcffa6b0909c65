"""Models to compress: random parameters and buffers in the place of trained ones."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deepseek_jax.config import Experiment, SupervisedExperiment
from deepseek_jax.models import tree
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.train.checkpoints.restore import Trained


def source_of(model: ModelConfig | HybridConfig) -> Trained:
    """A new model of this config as if it were restored from a run, with noise so that no two parameters are equal."""
    family = "supervised" if isinstance(model, HybridConfig) else "language_model"
    experiment = (SupervisedExperiment if family == "supervised" else Experiment)(model=model)
    _, *arrays = tree.split(module(model))
    draw = np.random.default_rng(1)

    def noise(leaf):
        return 0.1 * draw.normal(size=leaf.shape) if leaf.dtype == "float32" else 0

    params, buffers = jax.tree.map(lambda leaf: jnp.asarray(leaf + noise(leaf), leaf.dtype), arrays)
    return Trained(Path("runs/x"), experiment, 0, model, params, jax.tree.map(jnp.abs, buffers))


def module(model: ModelConfig | HybridConfig) -> Decoder | Hybrid:
    return (Hybrid if isinstance(model, HybridConfig) else Decoder)(model, rngs=nnx.Rngs(params=0))
