"""The scores stated in the hybrid configs: the mean of three seeds, next to a simple baseline for each data set.

    python -m experiments.hybrid_scores --workdir runs/hybrid_scores

Minutes are those of a whole run, from its config to its report, including the baseline's fit.  The table goes to
experiments/results/hybrid_scores.md.
"""

import argparse
import statistics
from pathlib import Path

from deepseek_jax.cli import runtime
from experiments.runs import finished

SEEDS = (0, 1, 2)
RESULT = Path("experiments/results/hybrid_scores.md")
MEASURED = {  # config -> (name of the score, name of the baseline's score)
    "hybrid_mnist": ("accuracy", "logistic regression, accuracy"),
    "hybrid_text": ("accuracy", "TF-IDF + logistic regression, accuracy"),
    "hybrid_detect": ("map50", None),
    "hybrid_regress": ("r2", "ridge regression, r2"),
    "hybrid_series": ("mae", "seasonal naive, mae"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/hybrid_scores"))
    names = ", ".join(MEASURED)
    parser.add_argument("configs", nargs="*", default=list(MEASURED), metavar="CONFIG", help=f"default: all of {names}")
    args = parser.parse_args()
    if unknown := [config for config in args.configs if config not in MEASURED]:
        parser.error(f"there is no measured config {unknown[0]}; name some of {names}")
    runtime.prepare()
    rows = ["| config | score | mean of 3 seeds | each seed | plain model | minutes | CPU minutes |"]
    rows.append("|---|---|---|---|---|---|---|")
    for config in args.configs:
        score, rival = MEASURED[config]
        runs = [finished(f"configs/{config}.py", {}, seed, args.workdir / f"{config}_{seed}") for seed in SEEDS]
        found = [run[f"final/{score}"] for run in runs]
        beside = f"{runs[0][f'final/{rival}']:.4f} ({rival.rpartition(',')[0]})" if rival else ""
        seeds = ", ".join(f"{value:.4f}" for value in found)
        cost = " | ".join(f"{statistics.mean(run[name] for run in runs):.1f}" for name in ("minutes", "cpu_minutes"))
        rows.append(f"| `{config}` | {score} | {statistics.mean(found):.4f} | {seeds} | {beside} | {cost} |")
    table = "\n".join(rows) + "\n"
    if len(args.configs) == len(MEASURED):
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
