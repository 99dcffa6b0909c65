"""Training speed of the reference hybrid network: batches of 128 28 x 28 images, float32, AdamW, against PyTorch.

python -m benchmarks.hybrid_speed --rival-python HF/bin/python --json out.json
"""

import functools

from benchmarks import options
from benchmarks.contest import alternate, summary, table

BATCH, STEPS = 128, 5


def measure(args, logs):
    workers = {"deepseek_jax": options.start_ours("hybrid", logs)}
    if args.rival_python:
        workers["PyTorch"] = options.start_torch(args.rival_python, logs)
    tables, results = [], {}
    for sequence in ("rows", "cells"):
        rounds = alternate(_contestants(workers, sequence), args.rounds)
        summaries = {name: summary(measured, BATCH) for name, measured in rounds.items()}
        tables.append(table(f"hybrid, sequence of {sequence}", summaries, unit="images"))
        results[sequence] = {"summaries": summaries, "rounds": rounds}
    for worker in workers.values():
        worker.close()
    about = {name: worker.about for name, worker in workers.items()}
    return "\n\n".join(tables), {"hybrid": {"about": about} | results}


def _contestants(workers, sequence):
    """PyTorch takes part twice: with attention for all steps, as usual there, and only for the last, like ours."""
    sizes = {"sequence": sequence, "batch": BATCH, "steps": STEPS}
    contestants = {name: functools.partial(worker.round, **sizes) for name, worker in workers.items()}
    if "PyTorch" in workers:
        only = functools.partial(workers["PyTorch"].round, only_last=True, **sizes)
        contestants["PyTorch, the last step's attention"] = only
    return contestants


if __name__ == "__main__":
    options.run(__doc__.splitlines()[0], measure)
