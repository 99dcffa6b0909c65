"""The command line that benchmarks share: which rivals are installed, and where results go."""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.contest import Worker
from benchmarks.sizes import EXPERIMENT
from deepseek_jax.convert.config_json import to_json


def run(description: str, *measures: Callable[[argparse.Namespace, Path], tuple[str, dict]]):
    """Runs each measure(args, directory for logs), which returns (a text to print, results for --json)."""
    args = _parse(description)
    results = {"cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()}
    if results["load_before"][0] > 0.5:
        print("The machine is busy: trust the ratios a little and the rates not at all.", file=sys.stderr)
    logs = Path(tempfile.mkdtemp(prefix="deepseek_jax-benchmark-"))  # kept, to be read when a worker dies
    for measure in measures:
        text, measured = measure(args, logs)
        print(f"\n{text}")
        results |= measured
    results["load_after"] = os.getloadavg()
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def start_ours(contest: str, logs: Path) -> Worker:
    return Worker([sys.executable, "-m", "benchmarks.ours", contest], logs / "ours.log")


def start_hugging_face(python: str, contest: str, logs: Path) -> Worker:
    (logs / "config.json").write_text(json.dumps(to_json(EXPERIMENT.model)))
    script = Path(__file__).parent / "rivals/hugging_face.py"
    return Worker([python, str(script), contest, str(logs)], logs / "hugging_face.log")


def start_torch(python: str, logs: Path) -> Worker:
    script = Path(__file__).parent / "rivals/torch_hybrid.py"
    return Worker([python, str(script)], logs / "torch_hybrid.log")


def _parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    here = sys.executable if all(map(importlib.util.find_spec, ("torch", "transformers"))) else None
    parser.add_argument("--rival-python", default=here, metavar="PYTHON", help="Python with torch, transformers")
    parser.add_argument("--maxtext-python", metavar="PYTHON", help="Python with maxtext (training only)")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="rounds of each contestant (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write everything measured")
    return parser.parse_args()
