"""Freeing the memory mappings that compiled programs leave in a process."""

import jax
import jax.numpy as jnp

from deepseek_jax import host_memory


def test_programs_are_freed_only_above_the_limit():
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    host_memory.free_programs(most=1 << 30)
    assert double._cache_size() == 1
    host_memory.free_programs(most=0)
    assert double._cache_size() == 0
    assert double(jnp.ones(3)).sum() == 6
