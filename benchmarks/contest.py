"""Measures contestants, each in its own process, in turn (A B A B), so that a busy machine affects all equally."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Measured = dict[str, list[float]]  # "seconds" and "cpu_seconds" of each repetition, and whatever else was measured


class Worker:
    """A script in its own process that keeps its model loaded and does a round of work on request (see `serve.py`).

    Its other output goes to the file `log`, whose last lines are shown if the script dies.
    """

    def __init__(self, command: list[str], log: Path):
        self.log = log
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=Path(__file__).parents[1],
            )
        self.about = self._answer()

    def round(self, **arguments) -> Measured:
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text().splitlines()[-15:])
            raise RuntimeError(f"{' '.join(self.process.args)} ended:\n{tail}")
        return json.loads(line)


def alternate(contestants: dict[str, Callable[[], Measured]], rounds: int) -> dict[str, list[Measured]]:
    """`rounds` rounds of each contestant in turn, after one uncounted round that warms up compilers and caches."""
    results = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, play in contestants.items():
            print(f"round {number} of {rounds}{' (warm-up)' * (number == 0)}: {name}", file=sys.stderr)
            measured = play()
            if number > 0:
                results[name].append(measured)
    return results


def summary(rounds: list[Measured], tokens: int) -> dict[str, float]:
    """Medians over all repetitions of all rounds, and rates; `tokens` is how many one repetition processes."""
    pooled = {key: [value for measured in rounds for value in measured[key]] for key in rounds[0]}
    medians = {key: statistics.median(values) for key, values in pooled.items()}
    by_round = [tokens / statistics.median(measured["seconds"]) for measured in rounds]
    rates = {
        "tokens_per_s": tokens / medians["seconds"],
        "slowest_round": min(by_round),
        "fastest_round": max(by_round),
    }
    return (
        medians | rates | {"tokens_per_cpu_s": tokens / medians["cpu_seconds"], "repetitions": len(pooled["seconds"])}
    )


def table(title: str, summaries: dict[str, dict[str, float]], unit: str = "tokens") -> str:
    """One row per contestant; its ratios say how many times as fast the first contestant is.

    `unit`: what `summary` counted, if not tokens.
    """
    first = next(iter(summaries.values()))
    head = f"{title:38} {unit + '/s':>9} {'rounds':>15} {'CPU s':>8} {'ratio':>6} {'CPU ratio':>9}"
    rows = [
        f"{name:38} {row['tokens_per_s']:9,.0f} {row['slowest_round']:7,.0f}-{row['fastest_round']:<7,.0f} "
        f"{row['cpu_seconds']:8.3f} {first['tokens_per_s'] / row['tokens_per_s']:6.2f} "
        f"{first['tokens_per_cpu_s'] / row['tokens_per_cpu_s']:9.2f}"
        for name, row in summaries.items()
    ]
    return "\n".join([head, *rows])
