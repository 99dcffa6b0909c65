"""Runs of a config with changes and seeds, each in a directory of its own; what is finished is not run again."""

import json
from pathlib import Path

from rich.console import Console

SCORES = "scores.json"  # below a run directory: the final scores


def finished(config: str, changes: dict[str, str], seed: int, directory: Path) -> dict[str, float]:
    """The final scores of `config` with the dotted keys `changes` and this seed, trained now or before."""
    from deepseek_jax.experiment_file import resolve
    from deepseek_jax.train.loop import train

    scores = directory / SCORES
    if not scores.exists():
        found = train(resolve(config, changes | {"train.seed": str(seed)}), directory, Console(quiet=True))
        scores.write_text(json.dumps(found, indent=2) + "\n")
        print(f"{directory}: {json.dumps(found)}", flush=True)
    return json.loads(scores.read_text())
