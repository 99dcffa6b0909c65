"""Judges from the rows of a run's metrics.jsonl whether it is healthy, and says why in sentences."""

import math

import numpy as np

from deepseek_jax.train.reporting.sampled_indices import sampled_indices
from deepseek_jax.train.reporting.shown import Shown

# Thresholds beyond which a person should look.  They come from watching runs, not from a paper.
LOSS_RISE = 1.1  # loss at the end of the run over that of its best stretch
GRADIENT_RISE = 10.0  # gradient norm at the end of the run over its median
MAX_VIOLATION = 3.0  # the busiest expert has four times the mean load
DATA_WAIT = 0.05  # share of the step time spent waiting for data


def verdict(rows: list[dict], steps: int, shown: Shown) -> tuple[bool, list[str]]:
    """(whether the run is healthy, its state and faults in words); `steps` is how many the run is to take."""
    trained = [row for row in rows if shown.loss in row]
    if not trained:
        return False, ["no step has finished yet"]
    complaints = [*_finite(trained), *_trends(trained, shown.loss), *_experts(trained), *_waiting(trained, shown)]
    last = trained[-1]["step"]
    state = "finished" if last == steps else f"at step {last} of {steps}"
    if last < steps and any("final/loss" in row for row in rows):
        state = f"stopped early, {state}"
    scores = [row for row in rows if math.isfinite(row.get(shown.score, math.nan))]
    if scores:
        best = min(scores, key=lambda row: row[shown.score])
        state += f", best {shown.score_label} {best[shown.score]:.4f} at step {best['step']}"
    return not complaints, [state, *complaints]


def _finite(trained: list[dict]):
    last = trained[-1]
    if not (math.isfinite(last["loss/total"]) and math.isfinite(last["grad_norm"])):
        yield f"the loss or gradient of step {last['step']} is not finite"
    if count := last["skipped"]:
        steps = "1 step was dropped because it was" if count == 1 else f"{count} steps were dropped because they were"
        yield f"{steps} not finite"


def _trends(trained: list[dict], name: str):
    trained = [row for row in trained if math.isfinite(row[name]) and math.isfinite(row["grad_norm"])]
    if not trained:
        return
    stretch = max(len(trained) // 10, 1)
    loss = np.array([row[name] for row in trained])
    medians = [np.median(loss[i : i + stretch]) for i in sampled_indices(len(loss) - stretch + 1)]
    if medians[-1] > LOSS_RISE * min(medians):
        yield f"the loss rose to {medians[-1]:.3f} from {min(medians):.3f} at its best"
    norm = np.array([row["grad_norm"] for row in trained])
    if np.median(norm[-stretch:]) > GRADIENT_RISE * np.median(norm):
        yield "the gradient norm is growing"


def _experts(trained: list[dict]):
    recent = trained[-max(len(trained) // 10, 1) :]
    for layer in trained[-1].get("router/max_violation", {}):
        dead = min(row["router/dead_experts"][layer] for row in recent)
        if dead:
            yield f"layer {layer} has {dead} dead experts"
        violation = np.median([row["router/max_violation"][layer] for row in recent])
        if violation > MAX_VIOLATION:
            yield f"layer {layer} is out of balance: its busiest expert has {violation + 1:.1f} times the mean load"


def _waiting(trained: list[dict], shown: Shown):
    timed = [row for row in trained if "step_seconds" in row]
    if timed:
        share = sum(row["data_wait_seconds"] for row in timed) / sum(row["step_seconds"] for row in timed)
        if share > DATA_WAIT:
            yield f"{share:.1%} of the time went into waiting for data{shown.slow_data}"
