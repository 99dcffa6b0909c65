"""What each part of the hybrid network gives: MNIST-5k with one part left out at a time, three seeds.

    python -m experiments.hybrid_parts --workdir runs/hybrid_parts

A run that is finished is not run again, so the command may be stopped and repeated.  The table goes to
experiments/results/hybrid_parts.md.
"""

import argparse
import statistics
from pathlib import Path

from deepseek_jax.cli import runtime
from experiments.runs import finished

CONFIG, SEEDS = "configs/hybrid_small.py", (0, 1, 2)
RESULT = Path("experiments/results/hybrid_parts.md")
PARTS = {
    "all parts": {},
    "no convolution": {"model.convolution.filters": ""},
    "no recurrence": {"model.recurrent.kind": "none"},
    "no attention": {"model.attention.num_heads": "0"},
    "no augmentation": {f"augment.image.{name}": "0" for name in ("rotate", "scale", "crop")},
    "no dropout": {"model.dropout": "0"},
    "no early stopping": {"stopping.patience": "0"},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/hybrid_parts"))
    workdir = parser.parse_args().workdir
    runtime.prepare()
    accuracy = {}
    for name, changes in PARTS.items():
        runs = [finished(CONFIG, changes, seed, workdir / f"{name.replace(' ', '_')}_{seed}") for seed in SEEDS]
        accuracy[name] = [run["final/accuracy"] for run in runs]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(table(accuracy))
    print(table(accuracy))


def table(accuracy: dict[str, list[float]]) -> str:
    """Markdown: each variant's mean, its seeds, and the mean of its paired differences to the whole network."""
    whole = accuracy["all parts"]
    rows = ["| variant | test accuracy, mean | each seed | difference |", "|---|---|---|---|"]
    for name, found in accuracy.items():
        difference = statistics.mean(one - other for one, other in zip(found, whole, strict=True))
        seeds = ", ".join(f"{value:.4f}" for value in found)
        rows.append(f"| {name} | {statistics.mean(found):.4f} | {seeds} | {difference:+.4f} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
