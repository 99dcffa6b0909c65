"""The size in bytes of the decoding cache, for each kind of attention by the formula in its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models.cached import CachedDecoder
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.counts import cache_size
from deepseek_jax.models.decoder import Decoder, initialise
from deepseek_jax.models.presets import preset
from deepseek_jax.models.tree import merge, split

DEEP = {"num_hidden_layers": 61, "first_k_dense_replace": 61}


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_mla_caches_one_latent_and_one_rotated_key_per_token(dtype, size):
    """As released: 512 + 64 numbers per layer and token (DeepSeek-V2, table 1), and as many for each MTP module."""
    config = ModelConfig(layer_types=("mla",), **DEEP)
    per_token = (config.kv_lora_rank + config.qk_rope_head_dim) * size
    assert cache_bytes(config, dtype, batch=2, max_length=48) == (2 * 48 * 61 * per_token, 2 * 48 * 1 * per_token)


def test_gqa_caches_a_key_and_a_value_for_each_group():
    """DeepSeek-LLM 67B's eight groups of 128 dimensions."""
    config = ModelConfig(layer_types=("gqa",), num_key_value_heads=8, num_nextn_predict_layers=0, **DEEP)
    assert cache_bytes(config, "bfloat16", batch=3, max_length=32) == (3 * 32 * 61 * 2 * 8 * 128 * 2, 0)


@pytest.mark.parametrize("name", ["v1-67b", "v2-lite", "v3", "v3.2", "v4-flash", "v4-pro"])
def test_caches_of_released_models_grow_as_their_formulas_say(name):
    """Only growth is compared, as V4 also has a constant part.  512 tokens are whole runs of V4's 4 and 128."""
    config = preset(name)
    (short, _), (long, _) = (
        cache_bytes(config, "bfloat16", batch=1, max_length=max_length) for max_length in (1024, 1536)
    )
    assert long - short == 512 * cache_size(config)[0] * 2


def test_more_than_ten_mtp_modules_run_in_numerical_order():
    """Merging parameters into a model sorts its modules by name as strings, "10" before "2"."""
    sizes = {"vocab_size": 8, "hidden_size": 4, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2}
    config = ModelConfig(
        layer_types=("gqa",), mlp_layer_types=("dense",), num_hidden_layers=1, first_k_dense_replace=0,
        intermediate_size=4, num_nextn_predict_layers=11, initializer_range=1.0, **sizes,
    )  # fmt: skip
    made = Decoder(config, rngs=nnx.Rngs(params=0))
    put_together = merge(*split(made))
    tokens = jnp.arange(6)[None]

    def predict(model):
        return jax.jit(lambda: model(tokens, tokens, jnp.ones_like(tokens)).mtp)()

    jax.tree.map(np.testing.assert_array_equal, predict(made), predict(put_together))
    for depth, module in enumerate(CachedDecoder(put_together).modules):
        np.testing.assert_array_equal(module.project[...], made.mtp[str(depth)].project[...])


def cache_bytes(config, dtype, batch, max_length):
    """Bytes of the caches of (the layers, the MTP modules), computed without allocating the model."""

    def caches():
        model = CachedDecoder(merge(*initialise(config, jax.random.key(0), dtype=dtype)))
        return model.empty_caches(batch, max_length), model.empty_module_caches(batch, max_length)

    trees = jax.eval_shape(caches)
    return tuple(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in trees)
