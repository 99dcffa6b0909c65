"""What is stored of a finished run: its scores, loss curve, expert loads, time and device."""

import math
import os
import statistics
from pathlib import Path

import numpy as np

from deepseek_jax.config import AnyExperiment
from deepseek_jax.studies import budget
from deepseek_jax.train.reporting.shown import SHOWN
from deepseek_jax.train.reporting.sinks import METRICS_FILE, read_rows

LATE = 0.2  # last share of the rows, over which noisy metrics are averaged
BALANCE = ("max_violation", "dead_experts", "load_entropy")


def summarise(directory: Path, experiment: AnyExperiment, seconds: float) -> dict:
    """JSON-able: scores {name: number}, curve [[tokens or records spent, loss]], shares {layer: [per expert]},
    parameters, seconds, device.

    Scores: the final ones; those of the last evaluation during training or, if early stopping went back to earlier
    parameters, of the last one up to these; median speed; peak memory; late means of router and indexer metrics.
    """
    rows = list(read_rows(directory / METRICS_FILE))
    shown = SHOWN[experiment.family]
    trained = [row for row in rows if shown.loss in row]
    late = trained[-max(round(LATE * len(trained)), 1) :]
    kept = next((row["stopping/kept_step"] for row in rows if "stopping/kept_step" in row), math.inf)
    scores = {
        key: value
        for row in rows
        for key, value in row.items()
        if key.startswith("final/") or (key.startswith("val/") and row["step"] <= kept)
    }
    speeds = [row[shown.speed] for row in trained if shown.speed in row]
    if speeds:
        scores[shown.speed] = statistics.median(speeds)
    scores["memory_bytes"] = max(row["memory_bytes"] for row in trained)
    for name in BALANCE:
        layers = [value for row in late for value in row.get(f"router/{name}", {}).values()]
        scores |= {name: statistics.mean(layers)} if layers else {}
    recalls = [row["indexer/recall"] for row in late if "indexer/recall" in row]
    scores |= {"indexer_recall": statistics.mean(recalls)} if recalls else {}
    spent = budget.units(experiment)
    shares = next((row["router/share"] for row in reversed(rows) if "router/share" in row), {})
    return {
        "scores": scores,
        "curve": [[spent[row["step"] - 1], round(row[shown.loss], 4)] for row in trained],
        "shares": shares,
        "parameters": _parameters(experiment),
        "seconds": round(seconds, 1),
        "device": _device(),
    }


def _device() -> str:
    """The devices of this process: for a run that was resumed elsewhere, those on which it ended."""
    import jax

    device = jax.devices()[0]
    return f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"


def _parameters(experiment: AnyExperiment) -> dict[str, int]:
    """Total and active parameters of a language model, without MTP modules; {} for other families."""
    if experiment.family != "language_model":
        return {}
    from deepseek_jax.models.counts import census

    counts = census(experiment.model).main
    return {"total": counts.total, "active": counts.activated}


def finite(scores: dict) -> dict[str, float]:
    """The scores that are finite, as Python floats: JSON has no NaN or infinity."""
    return {name: float(value) for name, value in scores.items() if np.isfinite(value)}
