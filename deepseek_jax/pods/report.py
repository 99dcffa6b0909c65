"""The report on a compiled step: its memory, estimated times and communication, as JSON and as a page of text."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from deepseek_jax.files import write_json, write_text
from deepseek_jax.models.flops import attention_a_token
from deepseek_jax.parallel.topology import Topology
from deepseek_jax.pods import hlo
from deepseek_jax.pods.collectives import collectives, totals
from deepseek_jax.pods.compiling import Outcome
from deepseek_jax.pods.roofline import roofline
from deepseek_jax.pods.text import amount, duration, table, verdict
from deepseek_jax.train.abstract import Abstract
from deepseek_jax.train.flops import training_flops

OF_TRACING = ("jit(step)", "while", "body", "closed_call", "checkpoint", "eval_jaxpr")  # scopes that JAX adds


@dataclasses.dataclass(frozen=True)
class Report:
    """Bytes and seconds are per device and step.  If it does not fit, the fields after `rematerialised` are unset."""

    topology: str
    mesh: dict[str, int]
    tokens: int
    flops: float  # of the model, summed over all devices (train/flops.py)
    compile_seconds: float
    fits: bool
    verdict: str
    refusal: str = ""
    rematerialised: tuple[str, ...] = ()
    arguments: int = 0  # parameters, optimizer, buffers, batch
    temporaries: int = 0
    results: int = 0  # without those that reuse an argument's buffer
    compute_seconds: float = 0.0
    memory_seconds: float = 0.0
    network_seconds: float = 0.0
    utilisation: tuple[float, float] = (0.0, 0.0)  # (if nothing overlaps, if everything does)
    collectives: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    largest: tuple[str, ...] = ()  # descriptions of the collectives that send most
    unknown_loops: int = 0


def report(abstract: Abstract, outcome: Outcome, topology: Topology, mesh) -> Report:
    experiment = abstract.experiment
    tokens = abstract.batch["tokens"].size
    length = abstract.batch["tokens"].shape[-1]
    attention = float(attention_a_token(experiment.model, jnp.arange(1, length + 1)).sum()) * tokens / length
    program = None if outcome.executable is None else hlo.parse(outcome.executable.as_text())
    frames = program.frames if program else {}
    common = {
        "topology": topology.name,
        "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
        "tokens": tokens,
        "flops": training_flops(experiment.model, tokens, attention),
        "compile_seconds": outcome.seconds,
        "rematerialised": tuple(
            sorted({source(hlo.scopes(remark), hlo.place(remark, frames)) for remark in outcome.remarks})
        ),
    }
    if program is None:
        first = outcome.refusal.strip().splitlines()[0]
        return Report(**common, fits=False, verdict=f"does not fit: {first}", refusal=outcome.refusal)
    return Report(**common, **_compiled(common["flops"], outcome.executable, program, experiment, topology, mesh))


def _compiled(flops: float, executable: jax.stages.Compiled, program: hlo.Program, experiment, topology, mesh) -> dict:
    memory = executable.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + results
    found = collectives(program, topology.num_devices)
    bound = roofline(program, found, flops, experiment.train.remat, topology.chip, list(mesh.devices.flat))
    largest = sorted(found, key=lambda each: -each.sent)[:10]
    return {
        "fits": needed <= topology.chip.memory,
        "verdict": verdict(needed, topology),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results": results,
        "compute_seconds": bound.compute,
        "memory_seconds": bound.memory,
        "network_seconds": bound.network,
        "utilisation": (bound.utilisation(bound.slowest), bound.utilisation(bound.fastest)),
        "collectives": totals(found),
        "largest": tuple(
            f"{amount(each.sent)} by {each.kind} of {each.operand / 2**20:,.1f} MiB among {len(each.group)}, "
            f"{each.times} x, {source(each.scopes, each.place)}"
            for each in largest
        ),
        "unknown_loops": program.unknown_loops,
    }


def source(scopes: str, place: str) -> str:
    """Where an instruction comes from: its scope in the model and, if known, file:line."""
    return ", ".join(filter(None, (scope(scopes), place)))


def scope(op_name: str) -> str:
    """jit(step)/transpose(jvp(layers_3-60))/while/body/moe/experts/dot as layers_3-60/moe/experts/dot, backward.

    For several operations that XLA has merged: the first one, and the number of others.
    """
    first, *others = op_name.lstrip("(").split(":")
    names = [name for name in first.split("/") if name not in OF_TRACING]
    plain = "/".join(filter(None, (re.sub(r"\w+\(|\)", "", name) for name in names)))
    backward = ", backward" if "transpose(" in first else ""
    more = f", and {len(others)} more" if others else ""
    return (plain or "a place without a name") + backward + more


def page(found: Report) -> str:
    """The report as plain text that is also valid Markdown."""
    lines = [found.verdict, ""]
    if found.refusal:
        lines += ["    " + line for line in found.refusal.splitlines()]
    else:
        lines += [_indented(table(_numbers(found), "lr")), ""]
        sums = [(kind, f"{times:,}", amount(sent)) for kind, (times, sent) in found.collectives.items()]
        rows = [("collective", "per step", "sent by a device"), *sums]
        lines += ["Communication:", "", _indented(table(rows, "lrr")), "", *(f"- {each}" for each in found.largest)]
    if found.unknown_loops:
        lines += ["", f"{found.unknown_loops} loops of unknown length are counted as if they ran once."]
    for place in found.rematerialised:
        lines += ["", f"warning: involuntary full rematerialization at {place}"]
    return "\n".join(lines) + "\n"


def _numbers(found: Report) -> list[tuple[str, str]]:
    fastest = max(found.compute_seconds, found.memory_seconds, found.network_seconds)
    slowest = found.compute_seconds + found.memory_seconds + found.network_seconds
    low, high = found.utilisation
    return [
        ("compiled in", f"{found.compile_seconds:,.0f} s"),
        ("arguments (parameters, optimizer, batch)", amount(found.arguments)),
        ("temporaries", amount(found.temporaries)),
        ("results besides updated arguments", amount(found.results)),
        ("tokens per step", f"{found.tokens:,}"),
        ("model FLOPs per step", f"{found.flops:.3g}"),
        ("estimate: compute, remat included", duration(found.compute_seconds)),
        ("estimate: memory traffic", duration(found.memory_seconds)),
        ("estimate: communication", duration(found.network_seconds)),
        ("step time at best, all overlapping", f"{duration(fastest)}, utilisation {high:.0%}"),
        ("step time if nothing overlaps", f"{duration(slowest)}, utilisation {low:.0%}"),
    ]


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def save(found: Report, executable: jax.stages.Compiled | None, directory: Path):
    """Writes report.json, report.md and, if there is an executable, step.hlo to `directory`."""
    write_json(directory / "report.json", dataclasses.asdict(found))
    write_text(directory / "report.md", page(found))
    if executable is not None:
        write_text(directory / "step.hlo", executable.as_text())
