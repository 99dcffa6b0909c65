"""Hugging Face stores all experts of a layer in two arrays: gate stacked on up [E, 2I, D], and down [E, D, I].

The matrices of one expert follow those of another, each contiguous, so splitting and joining only take offsets.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator

from deepseek_jax.convert.entry import Entry
from deepseek_jax.convert.safetensors_file import Output

PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")
APART = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def apart(entries: Iterable[tuple[str, Entry]]) -> Iterator[tuple[str, Entry]]:
    """The file's entries (name, where it is), with each fused array replaced by one entry per expert and matrix."""
    for name, entry in entries:
        match = FUSED.fullmatch(name)
        parts = PARTS[match[2]] if match else ()
        if match is None or entry.strides or len(entry.shape) != 3 or entry.shape[1] % len(parts):
            yield name, entry
            continue
        prefix, (experts, rows, columns) = match[1], entry.shape
        shape = (rows // len(parts), columns)
        for number, (expert, part) in enumerate(itertools.product(range(experts), parts)):
            one = dataclasses.replace(entry, shape=shape)
            one = dataclasses.replace(one, start=entry.start + number * one.nbytes)
            yield f"{prefix}.{expert}.{part}.weight", one


def together(outputs: list[Output]) -> list[Output]:
    """The tensors to write, with the matrices of a layer's experts joined into two arrays."""
    others, fused = [], {}
    for output in outputs:
        match = APART.fullmatch(output.name)
        if match is None:
            others.append(output)
            continue
        prefix, expert, part = match.groups()
        array = f"{prefix}.{'down' if part == 'down' else 'gate_up'}_proj"
        fused.setdefault(array, {})[int(expert), part] = output
    return others + [_join(name, [of[key] for key in sorted(of)]) for name, of in fused.items()]


def _join(name, outputs):
    rows, columns = outputs[0].shape
    parts = len(PARTS[name.rpartition(".")[2]])
    pieces = tuple(piece for output in outputs for piece in output.pieces)
    return Output(name, outputs[0].dtype, (len(outputs) // parts, parts * rows, columns), pieces)
