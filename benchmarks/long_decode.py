"""Greedy decoding up to a length of 4,096: v3_tiny without MTP, float32, against the rival that is installed.

python -m benchmarks.long_decode --rival-python HF/bin/python --json out.json

Texts of several lengths show how the cost of a token depends on the number of tokens before it.
"""

import functools

from benchmarks import options
from benchmarks.contest import alternate, summary, table
from benchmarks.sizes import LONG, PROMPT


def measure(args, logs):
    workers = {"deepseek_jax": options.start_ours("decoding", logs)}
    if args.rival_python:
        workers["transformers, generate()"] = options.start_hugging_face(args.rival_python, "decoding", logs)
    tables, results, seconds = [], {"about": [worker.about for worker in workers.values()]}, {}
    for length in LONG:
        sizes = {"batch": 1, "prompt": PROMPT, "new": length - PROMPT, "repetitions": 1}
        contestants = {
            name: functools.partial(worker.round, **sizes, **({} if name == "deepseek_jax" else {"way": "generate"}))
            for name, worker in workers.items()
        }
        rounds = alternate(contestants, args.rounds)
        summaries = {name: summary(measured, length - PROMPT) for name, measured in rounds.items()}
        seconds[length] = {name: row["seconds"] for name, row in summaries.items()}
        tables.append(table(f"decoding, batch 1, {PROMPT} + {length - PROMPT}", summaries))
        results[f"length {length}"] = {"summaries": summaries, "rounds": rounds}
    for worker in workers.values():
        worker.close()
    tables.append(_by_length(seconds))
    return "\n\n".join(tables), {"long_decoding": results}


def _by_length(seconds: dict[int, dict[str, float]]) -> str:
    """A table of milliseconds per token between each length and the next; the first includes the prefill."""
    starts = [PROMPT, *LONG]
    head = f"{'milliseconds a token, from to':38}" + "".join(f"{f'{a}-{b}':>12}" for a, b in zip(starts, LONG))
    rows = []
    for name in seconds[LONG[0]]:
        taken = [0.0, *(seconds[length][name] for length in LONG)]
        each = [(taken[i + 1] - taken[i]) / (starts[i + 1] - starts[i]) * 1e3 for i in range(len(LONG))]
        rows.append(f"{name:38}" + "".join(f"{milliseconds:12.2f}" for milliseconds in each))
    return "\n".join([head, *rows])


if __name__ == "__main__":
    options.run(__doc__.splitlines()[0], measure)
