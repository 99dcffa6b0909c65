"""Runs a config with changes and seeds, each run in its own directory, and publishes a table of what came of them."""

import json
import time
from pathlib import Path

from rich.console import Console

from deepseek_jax.files import write_json, write_text

SCORES = "scores.json"  # in a run directory: the final scores and the run's time
RESULTS = Path("experiments/results")


def finished(config: str, changes: dict[str, str], seed: int, directory: Path) -> dict[str, float]:
    """The final scores of `config` with the overrides `changes` (by dotted key) and this seed, trained now or before.

    Also "minutes", from the config to the report, and "cpu_minutes", over all cores; for a run that was interrupted,
    only those of its last part.  SystemExit if SIGTERM stops the run.
    """
    from deepseek_jax.experiment_file import resolve
    from deepseek_jax.train.loop import train

    scores = directory / SCORES
    if not scores.exists():
        began, cpu_began = time.perf_counter(), time.process_time()
        found = train(resolve(config, changes | {"train.seed": str(seed)}), directory, Console(quiet=True))
        if "final/loss" not in found:
            raise SystemExit(f"{directory}: stopped before its end; the same command resumes from there")
        found["minutes"] = (time.perf_counter() - began) / 60
        found["cpu_minutes"] = (time.process_time() - cpu_began) / 60
        write_json(scores, found)
        print(f"{directory}: {json.dumps(found)}", flush=True)
    return json.loads(scores.read_text())


def publish(name: str, table: str, complete: bool):
    """Prints a table in Markdown; a complete one becomes experiments/results/NAME.md."""
    if complete:
        write_text(RESULTS / f"{name}.md", table)
    print(table)
