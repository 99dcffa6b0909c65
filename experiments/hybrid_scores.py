"""The scores of the hybrid configs over three seeds, beside simple baselines, and the benefit of pretrained weights.

    python -m experiments.hybrid_scores              the table of docs/hybrid.md
    python -m experiments.hybrid_scores transfer     that of docs/tuning.md: features trained on ImageNet, or new ones

CPU minutes are those of a whole run, from its config to its report, including the baselines' fit.  The table goes to
experiments/results.
"""

import argparse
import re
import statistics
from pathlib import Path

from deepseek_jax.cli import runtime
from deepseek_jax.studies.page import Table, markdown
from deepseek_jax.studies.study import slug
from experiments.runs import finished, publish

SEEDS = (0, 1, 2)
TABLES = {  # table -> row -> (config, overrides, name of the score)
    "hybrid_scores": {
        "hybrid_mnist": ("hybrid_mnist", {}, "accuracy"),
        "hybrid_detect": ("hybrid_detect", {}, "map50"),
        "hybrid_regress": ("hybrid_regress", {}, "r2"),
        "hybrid_series": ("hybrid_series", {}, "mae"),
        "hybrid_text": ("hybrid_text", {}, "accuracy"),
    },
    "transfer": {
        "EfficientNet-Lite0's features": ("hybrid_transfer", {}, "accuracy"),
        "the same network, newly initialised": ("hybrid_transfer", {"start.checkpoint": ""}, "accuracy"),
    },
}
HEAD = ("run", "score", "mean of 3 seeds", "each seed", "baseline", "CPU minutes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", default="hybrid_scores", choices=TABLES)
    parser.add_argument("--workdir", type=Path, help="where runs are kept; default: runs/TABLE")
    parser.add_argument("--only", default="", metavar="REGEX", help="only rows whose name matches; default: all")
    args = parser.parse_args()
    runtime.prepare()
    workdir, table = args.workdir or Path("runs", args.table), TABLES[args.table]
    rows = [row(name, *how, workdir) for name, how in table.items() if re.search(args.only, name)]
    publish(args.table, markdown([Table(HEAD, rows)]), complete=len(rows) == len(table))


def row(name: str, config: str, changes: dict[str, str], score: str, workdir: Path) -> list[str]:
    runs = [finished(f"configs/{config}.py", changes, seed, workdir / f"{slug(name)}_{seed}") for seed in SEEDS]
    found = [run[f"final/{score}"] for run in runs]
    baselines = {key[len("final/") : -len(f", {score}")]: runs[0][key] for key in runs[0] if key.endswith(f", {score}")}
    return [
        f"`{name}`" if name == config else name,
        score,
        f"{statistics.mean(found):.4f}",
        ", ".join(f"{value:.4f}" for value in found),
        ", ".join(f"{value:.4f} ({baseline})" for baseline, value in baselines.items()),
        f"{statistics.mean(run['cpu_minutes'] for run in runs):.1f}",
    ]


if __name__ == "__main__":
    runtime.script(main)
