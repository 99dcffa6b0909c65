"""How the cost of V3.2's attention grows with length: scoring and masking all pairs, or gathering the selected keys.

    python -m benchmarks.sparse_attention --json out.json

One layer with small heads, one sequence; in both forms the indexer selects 512 keys per query.  Forward computes the
output and the indexer's divergence, backward their gradients for all parameters and the input.  Each case runs in its
own process, which reports XLA's planned temporaries and how much its memory grew.  A case that would take more than
three quarters of the free memory is not run; only its planned temporaries are reported.
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

LENGTHS = 1024, 2048, 4096, 8192, 16384, 32768
FORMS = "masked", "gathered"
TOPK, REPETITIONS, ENOUGH_SECONDS = 512, 3, 10
MEBI, KIBI = 2**20, 2**10


def measure_case(form: str, length: int) -> dict[str, dict]:
    """{"forward": ..., "backward": ...}: temp_bytes, and if it was run peak_bytes and the best seconds, cpu_seconds."""
    import jax

    layer, params, x = _layer(form, length)
    found, before = {}, _peak_bytes()
    for name, run in (("forward", layer), ("backward", jax.grad(layer, (0, 1)))):
        compiled = jax.jit(run).lower(params, x).compile()
        found[name] = {"temp_bytes": compiled.memory_analysis().temp_size_in_bytes}
        if found[name]["temp_bytes"] < 0.75 * _free_bytes():
            found[name] |= _run(compiled, params, x) | {"peak_bytes": _peak_bytes() - before}
    return found


def _layer(form, length):
    """(the function to run, its parameters, its input)"""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from deepseek_jax.models import rope
    from deepseek_jax.models.attention.sparse import SparseLatentAttention
    from deepseek_jax.models.config import ModelConfig
    from deepseek_jax.models.context import Context

    sizes = dict(hidden_size=128, num_attention_heads=4, q_lora_rank=64, kv_lora_rank=64)
    heads = dict(qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, index_n_heads=4, index_head_dim=32)
    config = ModelConfig(layer_types=("dsa",), index_topk=TOPK, initializer_range=0.1, **sizes, **heads)
    graphdef, params = nnx.split(SparseLatentAttention(config, "dsa", rngs=nnx.Rngs(params=0)))
    x = jax.random.normal(jax.random.key(0), (1, length, config.hidden_size))

    def layer(params, x):
        attention = nnx.merge(graphdef, params)
        positions, ones = jnp.arange(length)[None], jnp.ones((1, length), jnp.int32)
        context = Context(ones, positions, ones, ones > 0, {"dsa": rope.tables(config, "dsa", positions)})
        queries, keys = attention.queries_and_keys(x, context)
        if form == "masked":
            found = attention.by_mask(queries, keys, block=length)
        else:
            found = attention.by_gathering(queries, keys)
        return found.mixed.sum() + found.divergence.mean()

    return layer, params, x


def _run(compiled, *arguments) -> dict[str, float]:
    import jax

    laps = []
    while len(laps) < REPETITIONS and sum(lap[0] for lap in laps) < ENOUGH_SECONDS:
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        laps.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    seconds, cpu_seconds = map(min, zip(*laps))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBI


def _free_bytes() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * KIBI


def table(results: dict) -> str:
    """A row per length and direction; ratios are gathered / masked, and "-" marks cases that were not run."""
    columns = [("temp_bytes", "temporaries, MiB", MEBI), ("peak_bytes", "grown, MiB", MEBI)]
    columns += [("seconds", "seconds", 1), ("cpu_seconds", "CPU seconds", 1)]
    names = "".join(f"{form:>9}" for form in FORMS) + f"{'ratio':>7}"
    rows = [" " * 15 + "".join(f"{title:^25}" for _, title, _ in columns), f"tokens{'':9}" + names * len(columns)]
    for length, forms in results.items():
        for direction in ("forward", "backward"):
            both = [forms[form][direction] for form in FORMS]
            cells = "".join(_cells(*(each.get(name) for each in both), unit) for name, _, unit in columns)
            rows.append(f"{length:6} {direction:8}{cells}")
    return "\n".join(rows)


def _cells(masked, gathered, unit) -> str:
    digits = 2 if unit == 1 else 0
    numbers = "".join(f"{'-':>9}" if each is None else f"{each / unit:9,.{digits}f}" for each in (masked, gathered))
    return numbers + (f"{'-':>7}" if None in (masked, gathered) else f"{gathered / masked:7.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="N", help="in tokens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write everything measured")
    args = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = {
            length: {form: pool.apply(measure_case, (form, length)) for form in FORMS} for length in args.lengths
        }
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps({"index_topk": TOPK, "lengths": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
