"""The cost of a pipeline's idle turns and rounds: CPU time and memory, compared with plain layers.

    python -m benchmarks.pipeline

Sixteen dense layers of width 512 on 48 sequences of 128 tokens, forward and backward, remat full, on simulated host
devices.  These share the machine's cores, so idle turns show up as CPU time, as a stage without a microbatch computes
all the same.  On accelerators idle turns are waiting time.

N stages  R rounds  M microbatches
"""

import os
import time

LAYERS, WIDTH, BATCH, LENGTH, REPEATS = 16, 512, 48, 128, 2
CASES = [(1, 1, 1), *((4, R, M) for M in (4, 8) for R in (1, 2, 4)), (4, 1, 16), (3, 1, 3)]


def main():
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(N for N, _, _ in CASES)}"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print("| N, R, M | turns | idle | time by theory | measured | temporary MB a device |\n|---|---|---|---|---|---|")
    alone = None
    for N, R, M in CASES:
        seconds, temporary, schedule = measure(N, R, M)
        alone = alone or seconds
        work = schedule.microbatches * schedule.rounds
        theory = schedule.turns / work * schedule.filled / schedule.layers
        idle = 1 - work / schedule.turns
        cells = f"{N}, {R}, {M}", schedule.turns, f"{idle:.0%}", f"{theory:.2f}", f"{seconds / alone:.2f}"
        print("|", " | ".join(map(str, (*cells, f"{temporary / 1e6:.0f}"))), "|")


def measure(N: int, R: int, M: int):
    """(CPU seconds per gradient, bytes of temporaries per device, the schedule)."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from deepseek_jax.compiling import under
    from deepseek_jax.config import MeshConfig
    from deepseek_jax.parallel import pipeline
    from deepseek_jax.parallel.mesh import make_mesh

    @jax.checkpoint
    def layer(stack, x_BSD, context, number, _=None):
        kernel = jax.lax.dynamic_index_in_dim(stack["kernel"][...], number, keepdims=False)
        return x_BSD + jnp.tanh(x_BSD @ kernel), x_BSD.sum()

    def loss(stack, x_BSD):
        if N == 1:
            x_BSD, _ = jax.lax.scan(lambda x, number: layer(stack, x, None, number), x_BSD, jnp.arange(LAYERS))
        else:
            x_BSD, _ = pipeline.run(layer, stack, x_BSD, {}, M, R)
        return (x_BSD**2).sum()

    kernels = jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH)) / WIDTH
    stack = {"kernel": nnx.Param(kernels, out_sharding=("pipelined_layers", None, None))}
    x_BSD = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH))
    mesh = make_mesh(MeshConfig(stage=N, data=1), jax.devices()[:N])
    with jax.set_mesh(mesh):
        compiled = jax.jit(under(mesh, jax.grad(loss))).lower(stack, x_BSD).compile()
        jax.block_until_ready(compiled(stack, x_BSD))
        started = time.process_time()
        for _ in range(REPEATS):
            jax.block_until_ready(compiled(stack, x_BSD))
    seconds = (time.process_time() - started) / REPEATS
    return seconds, compiled.memory_analysis().temp_size_in_bytes, pipeline.Schedule(LAYERS, N, R, M)


if __name__ == "__main__":
    main()
