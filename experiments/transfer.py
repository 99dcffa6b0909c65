"""Features trained on ImageNet against training from scratch: configs/hybrid_transfer.py, equal steps, three seeds.

    python -m experiments.transfer --workdir runs/transfer

The table goes to experiments/results/transfer.md.
"""

import argparse
import statistics
from pathlib import Path

from deepseek_jax.cli import runtime
from experiments.runs import finished

SEEDS = (0, 1, 2)
RESULT = Path("experiments/results/transfer.md")
BEGINNINGS = {
    "EfficientNet-Lite0's features": {},
    "the same network from nothing": {"start.checkpoint": ""},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/transfer"))
    args = parser.parse_args()
    runtime.prepare()
    rows = ["| begins with | test accuracy, mean of 3 seeds | each seed |", "|---|---|---|"]
    for number, (name, changes) in enumerate(BEGINNINGS.items()):
        directories = [args.workdir / f"{number}_{seed}" for seed in SEEDS]
        runs = [finished("configs/hybrid_transfer.py", changes, *pair) for pair in zip(SEEDS, directories)]
        found = [run["final/accuracy"] for run in runs]
        each = ", ".join(f"{value:.4f}" for value in found)
        rows.append(f"| {name} | {statistics.mean(found):.4f} | {each} |")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(table := "\n".join(rows) + "\n")
    print(table)


if __name__ == "__main__":
    main()
