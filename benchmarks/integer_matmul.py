"""Does XLA's CPU code multiply integers faster than floats?  int8 x int8 into int32, against float32 and bfloat16.

python -m benchmarks.integer_matmul
"""

import time

import jax
import jax.numpy as jnp

SHAPES = ((1, 1024, 1024), (16, 1024, 4096), (2048, 1024, 1024))  # rows, inputs, outputs
KINDS = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "int8 into int32": (jnp.int8, jnp.int32),
    "int8 weights, expanded": (None, jnp.float32),
}


def main():
    print(f"| rows x inputs x outputs | {' | '.join(KINDS)} |\n|---|{'---:|' * len(KINDS)}")
    for rows, inputs, outputs in SHAPES:
        times = [f"{1e3 * seconds(kind, rows, inputs, outputs):.2f} ms" for kind in KINDS]
        print(f"| {rows} x {inputs} x {outputs} | {' | '.join(times)} |")


def seconds(kind: str, rows: int, inputs: int, outputs: int) -> float:
    """Seconds per product, the best of five trials."""
    dtype, result = KINDS[kind]
    x = jax.random.randint(jax.random.key(0), (rows, inputs), -127, 128)
    w = jax.random.randint(jax.random.key(1), (inputs, outputs), -127, 128)
    x, w = (x.astype(jnp.float32), w.astype(jnp.int8)) if dtype is None else (x.astype(dtype), w.astype(dtype))
    product = jax.jit(lambda x, w: jnp.matmul(x, w.astype(x.dtype), preferred_element_type=result))
    product(x, w).block_until_ready()
    repeats, found = max(1, int(2e9 / (2 * rows * inputs * outputs))), []
    repeats = min(repeats, 200)
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(repeats):
            y = product(x, w)
        y.block_until_ready()
        found.append((time.perf_counter() - began) / repeats)
    return min(found)


if __name__ == "__main__":
    main()
