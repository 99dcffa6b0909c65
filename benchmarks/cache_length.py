"""Decoding time per token by context length, for each generation's attention: does it grow with keys no query sees?

    python -m benchmarks.cache_length --json out.json

Greedy decoding with the tiny configs without MTP modules, batch 1, float32, with caches of each length and random
weights, as the tokens do not affect the cost.  Each case is the best of REPETITIONS runs of STEPS tokens minus that of
one token, in wall and CPU time; on a busy machine only CPU time is meaningful.
"""

import argparse
import functools
import json
import time
from pathlib import Path

LENGTHS = 512, 1024, 2048, 4096, 8192
CONFIGS = {"mla": "v3_tiny", "dsa": "v32_tiny", "window, csa, hca": "v4_tiny"}
STEPS, REPETITIONS = 33, 5


def measure_config(name: str) -> dict[int, dict[str, float]]:
    """{cache length: {"wall": ..., "cpu": milliseconds per token}}"""
    import jax

    from deepseek_jax.experiment_file import resolve
    from deepseek_jax.models.decoder import initialise

    config = resolve(str(Path(__file__).parents[1] / f"configs/{name}.py")).model.without_mtp()
    graphdef, *arrays = initialise(config, jax.random.key(0))
    decode = jax.jit(functools.partial(_decode, graphdef), static_argnums=2)
    return {places: _milliseconds(functools.partial(decode, *arrays, places), places) for places in LENGTHS}


def _decode(graphdef, params, buffers, places, start, stop):
    """Decodes positions `start` to `stop` with a cache that holds zeros before them; returns the last token."""
    import jax
    import jax.numpy as jnp

    from deepseek_jax.infer.sampling import best
    from deepseek_jax.models.cached import CachedDecoder
    from deepseek_jax.models.tree import merge

    model = CachedDecoder(merge(graphdef, params, buffers))

    def step(carry):
        place, token_11, caches = carry
        x, caches = model.decode(token_11, place.reshape(1, 1), caches)
        return place + 1, best(model.logits(x)), caches

    start = start, jnp.zeros((1, 1), jnp.int32), model.empty_caches(1, places)
    return jax.lax.while_loop(lambda carry: carry[0] < stop, step, start)[1]


def _milliseconds(decode, places) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    def run(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(decode(jnp.asarray(places - steps), jnp.asarray(places)))
        return time.perf_counter() - wall, time.process_time() - cpu

    run(1)
    best = [[min(times) for times in zip(*(run(steps) for _ in range(REPETITIONS)))] for steps in (1, STEPS)]
    wall, cpu = (1000 * (many - one) / (STEPS - 1) for one, many in zip(*best))
    return {"wall": wall, "cpu": cpu}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write everything measured")
    args = parser.parse_args()
    from deepseek_jax.cli import runtime

    runtime.prepare()  # as the command line does, before anything imports jax
    results = {kinds: measure_config(name) for kinds, name in CONFIGS.items()}
    print(f"{'milliseconds a token, wall / CPU':34}" + "".join(f"{places:>15,}" for places in LENGTHS))
    for kinds, found in results.items():
        print(f"{kinds:34}" + "".join(f"{each['wall']:7.2f} /{each['cpu']:6.2f}" for each in found.values()))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
