"""Kernels for attention and the experts' products, against plain XLA and a large matrix product, on the local device.

python -m benchmarks.kernels

On a GPU the kernels are tokamax's (extra `gpu`, Python 3.12), on a TPU those in JAX.  On a CPU there are none: only the
plain forms are timed, at a small size.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.models import gpu
from deepseek_jax.models.attention import core, kernels
from deepseek_jax.models.moe import grouped

REPETITIONS = 10
# Batch, sequence, heads, key width, value width: a layer of DeepSeek-V3 with only 16 heads; and a small case for CPUs.
ATTENTION, ATTENTION_SMALL = (4, 4096, 16, 192, 128), (1, 512, 4, 192, 128)
# Rows, their width, the product's width, experts.
GROUPED = [(131_072, 1024, 512, 32), (131_072, 512, 1024, 32), (32_768, 2048, 1408, 64)]
GROUPED_SMALL = [(2048, 256, 128, 8)]
DOCUMENTS = 4  # per row on average, of random lengths


def main():
    platform = jax.default_backend()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    small = platform == "cpu"
    peak = _peak(1024 if small else 8192)
    print(f"a large product in bfloat16: {peak / 1e12:.1f} TFLOP/s\n")
    print(f"{'':46} {'forward':>26} {'with backward':>26}")
    _measure_attention(platform, *(ATTENTION_SMALL if small else ATTENTION), peak)
    for sizes in GROUPED_SMALL if small else GROUPED:
        _measure_grouped(platform, *sizes, peak)


def _measure_attention(platform, batch, length, heads, key_width, value_width, peak):
    q, k = (_normal(seed, (batch, length, heads, key_width)) for seed in (0, 1))
    v = _normal(2, (batch, length, heads, value_width))
    starts = np.random.default_rng(0).random((batch, length)) < DOCUMENTS / length
    segments = jnp.asarray(starts.cumsum(axis=1) + 1, jnp.int32)
    ways = {"in blocks": core.causal_attend_blockwise}
    ways |= {"gpu": {_library(): kernels.on_gpu}, "tpu": {"splash": kernels.on_tpu}}.get(platform, {})
    flops = batch * heads * length**2 * (key_width + value_width)  # the causal half
    title = f"attention {batch} x {length}, {heads} heads of {key_width}/{value_width}"
    for name, way in ways.items():
        attend = functools.partial(way, segment_ids_BS=segments, of_keys_BT=segments, scale=0.1)
        _row(f"{title}: {name}", attend, (q, k, v), flops, peak)


def _measure_grouped(platform, rows, features, out, experts, peak):
    x, kernel = _normal(0, (rows, features)), _normal(1, (experts, features, out))
    rng = np.random.default_rng(0)
    counts = jnp.asarray(rng.multinomial(rows, rng.dirichlet(np.full(experts, 4.0))), jnp.int32)
    ways = {"ragged_dot": jax.lax.ragged_dot}
    ways |= {"gpu": {_library(): grouped.grouped_matmul}, "tpu": {"megablox": grouped.on_tpu}}.get(platform, {})
    title = f"{rows} rows x {experts} of {features} x {out}"
    for name, way in ways.items():
        _row(f"{title}: {name}", lambda x, w, way=way: way(x, w, counts), (x, kernel), 2 * rows * features * out, peak)


def _library() -> str:
    return "tokamax" if gpu.library(jnp.bfloat16) else "JAX alone"


def _row(title, f, arguments, flops, peak):
    """Times `f`, forward and with its gradient, and prints a row.  `flops`: of the forward pass; backward has twice."""

    def both(*arguments):
        out, pull = jax.vjp(f, *arguments)
        return out, pull(jnp.ones_like(out))

    forward, all_of_it = _seconds(jax.jit(f), *arguments), _seconds(jax.jit(both), *arguments)
    told = [
        f"{seconds * 1e3:9.2f} ms {100 * done / seconds / peak:5.1f}% of peak"
        for seconds, done in ((forward, flops), (all_of_it, 3 * flops))
    ]
    print(f"{title:46} {told[0]:>26} {told[1]:>26}", flush=True)


def _peak(size) -> float:
    a = _normal(0, (size, size))
    return 2 * size**3 / _seconds(jax.jit(lambda a: a @ a.T), a)


def _normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def _seconds(f, *arguments) -> float:
    """The median time of a call, without the first one, which compiles."""
    jax.block_until_ready(f(*arguments))
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
