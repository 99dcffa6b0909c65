"""From what the step returned to a row of metrics.jsonl, and the clock beside it.

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

SPAN = 0.1  # seconds that the times of a row are means over, at least
STEP_SCALARS = ("grad_norm", "param_norm", "learning_rate")


def train_row(step: int, measured: dict, timing: dict) -> dict:
    """What every family's row of a training step holds.

    `measured` is what the step returned, fetched; `timing` is a Clock's lap.  Losses are of this one step; times are
    means over the steps since the last row, or over SPAN seconds where these are longer.
    """
    row = {"step": step}
    row |= {name: float(value) for name, value in measured.items() if name.startswith("loss/")}
    row |= {name: float(measured[name]) for name in STEP_SCALARS}
    return row | {"skipped": int(measured["skipped"])} | timing | {"memory_bytes": memory_bytes()}


def language_model_row(measured: dict, timing: dict, model: ModelConfig) -> dict:
    """A language model's part: bits a byte of text, FLOPs and their utilisation, indexers, balance of experts.

    Of what the loss measured under indexer/ and router/ every number comes through, and router/own/ by layer.
    """
    told = {name: value for name, value in measured.items() if name.startswith(("indexer/", "router/"))}
    row = {name: float(value) for name, value in told.items() if not isinstance(value, dict)}
    for name in (name for name in told if name.startswith(OWN)):
        row[name] = {layer: float(value) for layer, value in by_layer(told[name]).items()}
    if measured["bytes"]:  # as counted on held-out text: without any, what a token stands for is not known
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
    """How evenly each layer's experts are used, each a dict from layer to number; empty without MoE layers.

    max_violation: load of the busiest expert over the mean, minus 1 (arXiv:2408.15664, equation 4)
    dead_experts: experts that got no token;  load_entropy: of the loads, as a share of ln E: 1 is perfectly even
    entropy: of a token's normalised scores, in nats, mean over tokens
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


def by_layer(nested: dict) -> dict[str, np.ndarray]:
    """What routers reported, by the name of the layer: {"layers": {"1-3": [L, ...]}, "mtp": {"0": {"block": [...]}}}
    gives "1", "2", "3" and "mtp 0"."""
    layers = {}
    for stack, values in nested.get("layers", {}).items():
        layers |= {str(number): np.asarray(value) for number, value in zip(layers_of(stack), values, strict=True)}
    layers = dict(sorted(layers.items(), key=lambda layer: int(layer[0])))
    return layers | {f"mtp {name}": np.asarray(value["block"]) for name, value in nested.get("mtp", {}).items()}


def memory_bytes() -> int:
    """Peak memory of the fullest local device, where it tells; else of this process, which on a CPU is both."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts kilobytes everywhere but on macOS
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Taken(NamedTuple):
    """A step that is done: its `units` (tokens, records), when it ended, and the seconds that it took of each."""

    ended: float  # on time.perf_counter()
    units: int
    data_wait: float
    dispatch: float
    overhead: float


class Clock:
    """Where the time of the training steps goes: means a step since the last lap, evaluation and such left out.

    dispatch_seconds and overhead_seconds are processor time of the loop's thread: handing XLA the compiled step, which
    grows with the arrays in and out of it, and all the rest, which is what Python costs.  On a clock on the wall they
    would also hold the times when XLA's threads kept the core.

    A lap shorter than SPAN takes steps of the last one along: an end is seen late where Python's lock is held, by some
    milliseconds, and what follows would look the faster for it.  Where it has none to take along, it has no times.
    """

    def __init__(self, unit: str):
        self._unit, self._since = unit, 0.0
        self._steps: list[Taken] = []
        self._new = 0

    def start(self, now: float):
        """The next step begins to wait for its data; what was done since the end of the last one counts for none."""
        away = now - (self._steps[-1].ended if self._steps else self._since)
        self._since += away
        self._steps = [step._replace(ended=step.ended + away) for step in self._steps]

    def step(self, taken: Taken):
        self._steps.append(taken)
        self._new += 1

    def lap(self) -> dict:
        """Means a step since the last lap, {} if there was none or too little of the first; starts the next."""
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
