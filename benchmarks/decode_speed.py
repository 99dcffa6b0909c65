"""Greedy decoding in tokens per second, including prefill: v3_tiny without MTP, float32, against the installed rival.

python -m benchmarks.decode_speed --rival-python HF/bin/python --json out.json
"""

import functools

from benchmarks import options
from benchmarks.contest import alternate, summary, table
from benchmarks.sizes import DECODE_BATCHES, NEW, PROMPT

REPETITIONS = 3  # per round


def measure(args, logs):
    ours, rival = options.start_ours("decoding", logs), None
    if args.rival_python:
        rival = options.start_hugging_face(args.rival_python, "decoding", logs)
    workers = [ours, rival] if rival else [ours]
    tables, results = [], {"about": [worker.about for worker in workers]}
    for batch in DECODE_BATCHES:
        sizes = {"batch": batch, "prompt": PROMPT, "new": NEW, "repetitions": REPETITIONS}
        contestants = {"deepseek_jax": functools.partial(ours.round, **sizes)}
        if rival:
            for way, name in (("generate", "transformers, generate()"), ("loop", "transformers, its cache by hand")):
                contestants[name] = functools.partial(rival.round, way=way, **sizes)
        rounds = alternate(contestants, args.rounds)
        summaries = {name: summary(measured, batch * NEW) for name, measured in rounds.items()}
        tables.append(table(f"decoding, batch {batch}, {PROMPT} + {NEW}", summaries))
        results[f"batch {batch}"] = {"summaries": summaries, "rounds": rounds}
    for worker in workers:
        worker.close()
    return "\n\n".join(tables), {"decoding": results}


if __name__ == "__main__":
    options.run(__doc__.splitlines()[0], measure)
