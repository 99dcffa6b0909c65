"""Seconds from the command to the first step, cold and warm, and a running step's overhead besides computing.

    python -m benchmarks.startup --json out.json

Runs `deepseek-jax train` on configs/v3_tiny.py twice: with an empty compilation cache, then with the one that the first
run filled.  The corpus is prepared beforehand and not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import options

CONFIG = str(Path(__file__).parents[1] / "configs/v3_tiny.py")
STEPS = 60  # length of the run
SETTLED = 10  # first steps that are not counted, while programs compile and buffers fill


def measure(args, logs):
    _run(logs, "data", "prepare", "--config", CONFIG).wait()
    results = {start: _start(logs, start) for start in ("cold", "warm")}
    lines = (
        f"{start} start: first step after {measured['first_step_seconds']:.1f} s; "
        f"of a step the loop's thread takes {1000 * measured['dispatch_seconds']:.2f} ms to hand it to XLA "
        f"and {1000 * measured['overhead_seconds']:.2f} ms for Python; "
        f"waiting for data {100 * measured['data_wait_share']:.2f}% of the time"
        for start, measured in results.items()
    )
    return "\n".join(lines), {"startup": results}


def _start(logs: Path, start: str) -> dict[str, float]:
    metrics = logs / start / "metrics.jsonl"
    words = "train", "--config", CONFIG, "--workdir", str(logs / start)
    began = time.perf_counter()
    process = _run(logs, *words, JAX_COMPILATION_CACHE_DIR=str(logs / "compiled"))
    _rows_until(1, process, metrics)
    first_step = time.perf_counter() - began
    rows = [row for row in _rows_until(STEPS, process, metrics) if row["step"] > SETTLED]
    process.kill()
    process.wait()
    return {
        "first_step_seconds": first_step,
        "dispatch_seconds": statistics.median(row["dispatch_seconds"] for row in rows),
        "overhead_seconds": statistics.median(row["overhead_seconds"] for row in rows),
        "data_wait_share": sum(row["data_wait_seconds"] for row in rows) / sum(row["step_seconds"] for row in rows),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows),
    }


def _run(logs: Path, *words: str, **environment: str) -> subprocess.Popen:
    with open(logs / "deepseek-jax.log", "a") as log:
        command = [sys.executable, "-m", "deepseek_jax", *words]
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)


def _rows_until(step: int, process, metrics: Path) -> list[dict]:
    """Waits for this step, then returns all rows of training in metrics.jsonl; a run's first row has no times."""
    while process.poll() is None:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        rows = [row for row in rows if "loss/total" in row]
        if rows and rows[-1]["step"] >= step:
            return rows
        time.sleep(0.02)
    raise RuntimeError(f"deepseek-jax train ended with code {process.returncode} before step {step}")


if __name__ == "__main__":
    options.run(__doc__.splitlines()[0], measure)
