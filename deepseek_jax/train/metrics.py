"""Rows of metrics.jsonl from what a step returned, and the clock that times the steps.

E experts  L layers of a stack
"""

import math
import resource
import sys
from typing import NamedTuple

import jax
import numpy as np

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.schedule import layers_of
from deepseek_jax.tasks.language_model import OWN
from deepseek_jax.train.flops import peak_flops, training_flops

SPAN = 0.1  # seconds over which the timings of a row are averaged, at least
COPIED = ("attention/", "indexer/", "rollout/", "router/")  # prefixes of a language model's metrics
STEP_SCALARS = ("grad_norm", "param_norm", "learning_rate")


def train_row(step: int, measured: dict, timing: dict) -> dict:
    """The part of a training step's row that every family shares.

    `measured`: what the step returned, on the host; `timing`: a Clock's lap.  Losses are of this one step; timings are
    means over the steps since the last row, or over SPAN seconds if that is longer.
    """
    row = {"step": step}
    row |= {name: float(value) for name, value in measured.items() if name.startswith("loss/")}
    row |= {name: float(measured[name]) for name in STEP_SCALARS}
    return row | {"skipped": int(measured["skipped"])} | timing | {"memory_bytes": memory_bytes()}


def language_model_row(measured: dict, timing: dict, model: ModelConfig) -> dict:
    """A language model's part of a row: bits per byte, FLOP/s and utilisation, indexers, expert balance.

    Scalars that the step reported under COPIED are copied, and values under OWN by layer.
    """
    told = {name: value for name, value in measured.items() if name.startswith(COPIED)}
    row = {name: float(value) for name, value in told.items() if not isinstance(value, dict)}
    for name in (name for name in told if name.startswith(OWN)):
        row[name] = {layer: float(value) for layer, value in by_layer(told[name]).items()}
    if measured["bytes"]:  # estimated from held-out text: 0 if there is none
        nats = float(measured["loss/next"]) * float(measured["targets"])
        row["bits_per_byte"] = bits_per_byte(nats, float(measured["bytes"]))
    if timing:
        flops = training_flops(model, float(measured["tokens"]), float(measured["attention"])) / timing["step_seconds"]
        row["flops_per_second"] = flops
        devices = jax.devices()
        if peak := peak_flops(devices[0]):
            row["utilisation"] = flops / (peak * len(devices))
    return row | router_health(measured["router/load"], measured["router/entropy"])


def bits_per_byte(nats: float, count: float) -> float:
    return nats / math.log(2) / max(count, 1)


def router_health(load: dict, entropy: dict) -> dict:
    """How evenly each layer's experts are used, each value a dict from layer to number; {} without MoE layers.

    max_violation: load of the busiest expert over the mean, minus 1 (arXiv:2408.15664, equation 4)
    dead_experts: experts that got no token;  load_entropy: entropy of the loads over ln E, 1 if perfectly even
    entropy: that of a token's normalised router scores, in nats, mean over tokens
    """
    loads, entropies = by_layer(load), by_layer(entropy)
    if not loads:
        return {}
    health = {name: {} for name in ("max_violation", "dead_experts", "load_entropy", "entropy")}
    for layer, load_E in loads.items():
        share_E = load_E / max(load_E.sum(), 1)
        used = share_E[share_E > 0]
        health["max_violation"][layer] = float(share_E.max() * len(share_E) - 1)
        health["dead_experts"][layer] = int((load_E == 0).sum())
        health["load_entropy"][layer] = float(-(used * np.log(used)).sum() / math.log(max(len(share_E), 2)))
        health["entropy"][layer] = float(entropies[layer])
    return {f"router/{name}": values for name, values in health.items()}


def by_layer(by_block: dict) -> dict[str, np.ndarray]:
    """From block to layer: {"layers/1-3": [L, ...], "mtp/0/block": [...]} has the keys "1", "2", "3" and "mtp 0"."""
    layers, modules = {}, {}
    for block, values in by_block.items():
        part, name, *_ = block.split("/")
        if part == "mtp":
            modules[f"mtp {name}"] = np.asarray(values)
        else:
            layers |= {number: np.asarray(value) for number, value in zip(layers_of(name), values, strict=True)}
    return {str(number): layers[number] for number in sorted(layers)} | modules


def memory_bytes() -> int:
    """Peak memory of the fullest local device; where devices do not report it, as on CPUs, that of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts kilobytes everywhere but on macOS
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class FinishedStep(NamedTuple):
    """A finished step: when it ended, its `units` (tokens or records), and seconds spent on each kind of work."""

    ended: float  # by time.perf_counter()
    units: int
    data_wait: float
    dispatch: float
    overhead: float


class Clock:
    """Where the time of training steps goes: means per step since the last lap, without evaluations and other pauses.

    dispatch_seconds and overhead_seconds are CPU time of the loop's thread.  The former is spent handing the step to
    XLA, and grows with the number of its input and output arrays; the latter is all the rest, the cost of Python.  Wall
    time would also include waiting for a core that XLA's threads occupy.

    A lap shorter than SPAN is extended by steps of the laps before: while Python's lock is held, the end of a step is
    noticed some milliseconds late, and the next step would look too fast.  A first lap that short has no timings.
    """

    def __init__(self, unit: str):
        self._unit, self._since = unit, 0.0
        self._steps: list[FinishedStep] = []
        self._new = 0

    def start(self, now: float):
        """The next step starts waiting for its data at `now`; the time since the last step ended is not counted."""
        away = now - (self._steps[-1].ended if self._steps else self._since)
        self._since += away
        self._steps = [step._replace(ended=step.ended + away) for step in self._steps]

    def step(self, taken: FinishedStep):
        self._steps.append(taken)
        self._new += 1

    def lap(self) -> dict:
        """Means per step since the last lap, {} if there were no steps or a first lap is too short; starts the next."""
        if not self._new:
            return {}
        first = self._new == len(self._steps)
        while len(self._steps) > self._new and self._steps[-1].ended - self._steps[0].ended >= SPAN:
            self._since = self._steps.pop(0).ended
        self._new, count, seconds = 0, len(self._steps), self._steps[-1].ended - self._since
        if first and seconds < SPAN:
            return {}
        return {
            "step_seconds": seconds / count,
            "data_wait_seconds": sum(step.data_wait for step in self._steps) / count,
            "dispatch_seconds": sum(step.dispatch for step in self._steps) / count,
            "overhead_seconds": sum(step.overhead for step in self._steps) / count,
            f"{self._unit}_per_second": sum(step.units for step in self._steps) / seconds,
        }
