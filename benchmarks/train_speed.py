"""Training speed of v3_tiny without MTP: 8 x 256 tokens, float32, AdamW, dropless, against the installed rivals.

python -m benchmarks.train_speed --rival-python HF/bin/python --maxtext-python MAXTEXT/bin/python --json out.json
"""

import functools

from benchmarks import options
from benchmarks.contest import alternate, summary, table
from benchmarks.rivals.maxtext import MaxText
from benchmarks.sizes import BATCH, EXPERIMENT, SEQUENCE

STEPS = 6  # per round


def measure(args, logs):
    sizes = {"batch": BATCH, "sequence": SEQUENCE, "steps": STEPS}
    workers = {"deepseek_jax": options.start_ours("training", logs)}
    if args.rival_python:
        workers["Hugging Face transformers"] = options.start_hugging_face(args.rival_python, "training", logs)
    contestants = {name: functools.partial(worker.round, **sizes) for name, worker in workers.items()}
    if args.maxtext_python:
        maxtext = MaxText(args.maxtext_python, EXPERIMENT.model, BATCH, SEQUENCE, logs / "maxtext.log")
        contestants["MaxText, every expert on every token"] = functools.partial(maxtext.round, STEPS)
    rounds = alternate(contestants, args.rounds)
    for worker in workers.values():
        worker.close()
    summaries = {name: summary(measured, BATCH * SEQUENCE) for name, measured in rounds.items()}
    about = {name: worker.about for name, worker in workers.items()}
    text = table(f"training, {BATCH} x {SEQUENCE}", summaries)
    return text, {"training": {"about": about, "summaries": summaries, "rounds": rounds}}


if __name__ == "__main__":
    options.run(__doc__.splitlines()[0], measure)
