"""The tiny models of tests/goldens, loaded as this package's models, with what other programs computed with them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import deepseek_jax
from deepseek_jax.convert import huggingface
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.tree import merge, split
from tests.paths import GOLDENS


@dataclasses.dataclass(frozen=True)
class Golden:
    config: ModelConfig
    graphdef: nnx.GraphDef
    params: dict
    buffers: dict
    expected: dict[str, np.ndarray]
    meta: dict

    @property
    def model(self) -> Decoder:
        return merge(self.graphdef, self.params, self.buffers)

    @property
    def api_model(self) -> deepseek_jax.Model:
        return deepseek_jax.Model(self.config, self.graphdef, self.params, self.buffers)

    @property
    def batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`input_ids`, positions and segment ids [B, S]: one unpadded document per row."""
        tokens = self.expected["input_ids"]
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        return tokens, positions, np.ones_like(tokens)


GENERATIONS = ["v1", "moe", "v2", "v3", "v32", "v4"]
VARIANTS = ["v2_lite", "v2_plain", "v3_plain", "v3_fp8", "v4_quant", "v4_r128"]


def names(having: str = "logits") -> list:
    """The goldens whose expected.npz has this key, as parameters.  Variants are marked slow."""
    found = [name for name in (*GENERATIONS, *VARIANTS) if having in np.load(GOLDENS / name / "expected.npz").files]
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in VARIANTS)) for name in found]


def goldens_with(key: str):
    """Decorates a test of `golden` that needs this key of expected.npz: only the goldens that have it are tested."""
    return pytest.mark.parametrize("golden", names(key), indirect=True)


@functools.cache
def load(name: str) -> Golden:
    directory = GOLDENS / name
    # Hugging Face leaves out V4's multi-token prediction; the same weights under DeepSeek's names (official/) have it.
    weights = directory / "official" if (directory / "official").exists() else directory
    config = huggingface.read_config(weights)
    graphdef, _, _ = split(jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0))))
    params, buffers = jax.tree.map(jnp.asarray, huggingface.load(weights, config))
    expected = dict(np.load(directory / "expected.npz"))
    return Golden(config, graphdef, params, buffers, expected, json.loads(str(expected["meta"])))
