"""Rotary embeddings against complex numbers in float64, near and far from position 0."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models import rope
from deepseek_jax.models.config import ModelConfig, RopeScaling

RELEASED = ModelConfig(
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    rope_scaling=RopeScaling(factor=40.0, original_max_position_embeddings=4096),
)
FAR = [0, 1, 4095, 4096, 163_839]  # the first positions, the end of the original context and of the extended one


def test_yarn_keeps_fast_pairs_and_slows_down_slow_ones():
    """Of V3's 32 pairs, 0 to 10 turn more than 32 times over 4,096 tokens, and 23 and later less than once."""
    plain = 10000.0 ** (-np.arange(32) / 32)
    ours = rope.frequencies(64, 10000.0, RELEASED.rope_scaling)
    np.testing.assert_allclose(ours[:11], plain[:11], rtol=1e-12)
    np.testing.assert_allclose(ours[23:], plain[23:] / 40, rtol=1e-12)
    share = (plain[10:24] - ours[10:24]) / (plain[10:24] * (1 - 1 / 40))
    np.testing.assert_allclose(share, np.linspace(0, 1, 14), atol=1e-12)


def test_yarns_ramp_may_end_beyond_the_last_pair():
    """As in DeepSeek's code, which bounds it by the dimension, not by the last pair, 3: here it ends at pair 4."""
    plain, ramp = 1000.0 ** (-np.arange(4) / 4), np.array([0, 0, 1 / 3, 2 / 3])
    ours = rope.frequencies(8, 1000.0, RopeScaling(factor=4.0, original_max_position_embeddings=4096))
    np.testing.assert_allclose(ours, plain * (1 - ramp) + plain / 4 * ramp, rtol=1e-12)


@pytest.mark.parametrize("theta, original, factor_of_all", [(10000.0, 1, 1), (2.0, 100_000, 4)])
def test_yarns_ramp_may_be_cut_to_end_before_it_begins(theta, original, factor_of_all):
    """As in DeepSeek's code, whose ramp then falls: texts shorter than any turn are left alone."""
    ours = rope.frequencies(16, theta, RopeScaling(factor=4.0, original_max_position_embeddings=original))
    np.testing.assert_allclose(ours, theta ** (-np.arange(8) / 8) / factor_of_all, rtol=1e-12)


def test_softmax_scale_of_the_released_model():
    assert RELEASED.softmax_scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


@pytest.mark.parametrize("mscale, mscale_all_dim", [(1.0, 1.0), (1.0, 0.707), (0.707, 1.0)])
def test_tables_are_exact_but_for_rounding_at_every_distance(mscale, mscale_all_dim):
    """The only error is the rounding of float32 angles, which grows with the position."""
    scaling = RopeScaling(40.0, 4096, mscale=mscale, mscale_all_dim=mscale_all_dim)
    config = ModelConfig(qk_rope_head_dim=64, rope_scaling=scaling)
    cos, sin = rope.tables(config, "mla", jnp.asarray([FAR]))
    angles = np.asarray(FAR)[:, None] * rope.frequencies(64, 10000.0, scaling)
    turns = np.exp(1j * angles) * (0.1 * mscale * math.log(40) + 1) / (0.1 * mscale_all_dim * math.log(40) + 1)
    error = np.abs(np.asarray(cos[0]) + 1j * np.asarray(sin[0]) - turns)
    assert (error <= 1e-6 + 2.0**-22 * angles).all()


@pytest.mark.parametrize("interleave", [True, False])
def test_rotation_is_a_product_of_complex_numbers(interleave):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8))
    positions = np.asarray([[0, 1, 2], [5, 6, 7]])
    config = ModelConfig(qk_rope_head_dim=8, rope_scaling=RopeScaling())
    rotated = rope.rotate(
        jnp.asarray(x, jnp.float32), *rope.tables(config, "mla", jnp.asarray(positions)), interleave=interleave
    )
    pairs = x[..., 0::2] + 1j * x[..., 1::2] if interleave else x[..., :4] + 1j * x[..., 4:]
    turned = pairs * np.exp(1j * positions[..., None, None] * 10000.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(rotated, np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-5)


@pytest.mark.parametrize("shift", [1, 1000, 40_000])
def test_scores_depend_on_distance_only(shift):
    rng = np.random.default_rng(1)
    query, key = (jnp.asarray(rng.normal(size=(1, 6, 64)), jnp.float32) for _ in range(2))

    def scores(start):
        tables = rope.tables(RELEASED, "mla", start + jnp.arange(6)[None])
        return jnp.einsum("BSR,BTR->BST", *(rope.rotate(x, *tables, interleave=True) for x in (query, key)))

    tolerance = 1e-4 + 64 * shift * 2.0**-22
    np.testing.assert_allclose(scores(shift), scores(0), atol=tolerance)
