"""Parses compiled HLO text just far enough to tell which instructions run, how often, and how large their results are.

XLA's own cost analysis counts the body of a loop once; here it counts once per iteration.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import deepseek_jax

PACKAGE = Path(deepseek_jax.__file__).parent
# Files of helpers that move arrays on behalf of others; the line of interest is their caller's.
HELPERS = tuple(f"deepseek_jax/{path}" for path in ("parallel/rules.py", "models/tree.py", "models/layers.py"))
BITS = {"pred": 8, "token": 0, "opaque": 0}  # sizes of the types whose name does not contain it
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_SCOPES = re.compile(r'op_name="([^"]*)"')
_NAMED = re.compile(r'source_file="([^"]+)" source_line=(\d+)')  # in the metadata of XLA versions without stack frames
_FRAME = re.compile(r"stack_frame_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shape: str  # as written: bf16[8,128]{1,0:T(8,128)}, or several in parentheses
    operands: tuple[str, ...]
    attributes: str  # the text after the operands; a constant's value
    root: bool

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs; the scalar function of a reduction or sort does not count."""
        if self.opcode in ("all-reduce", "reduce-scatter", "reduce", "sort", "scatter", "all-reduce-start"):
            return []
        branches = re.findall(r"[\w.\-]+", found[1]) if (found := _BRANCHES.search(self.attributes)) else []
        return _CALLED.findall(self.attributes) + branches


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of Python's call stack when an instruction was traced.  `caller`: the caller's number, 0 if none."""

    file: str
    line: int
    caller: int


def scopes(metadata: str) -> str:
    """The named scopes (op_name) in an instruction's metadata, as JAX writes them; "" if there are none."""
    return found[1] if (found := _SCOPES.search(metadata)) else ""


def place(metadata: str, frames: dict[int, Frame]) -> str:
    """file:line of the innermost call within this package, from an instruction's metadata; "" if unknown."""
    if named := _NAMED.search(metadata):
        return f"{named[1]}:{named[2]}"
    number = int(found[1]) if (found := _FRAME.search(metadata)) else 0
    while frame := frames.get(number):
        path = Path(frame.file)
        if path.is_relative_to(PACKAGE) and (name := str(path.relative_to(PACKAGE.parent))) not in HELPERS:
            return f"{name}:{frame.line}"
        number = frame.caller
    return ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A parsed module.  `computations`: by name, each a dict of its instructions by name."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    frames: dict[int, Frame]  # by stack_frame_id

    def executed(self) -> Iterator[tuple[Instruction, dict[str, Instruction], int, bool]]:
        """(instruction, its computation, how often it runs, whether it is inside a fusion) of every reachable one.

        All branches of a conditional count.  A loop of unknown length counts as one iteration (`unknown_loops`).
        """
        yield from self._run(self.entry, 1, False)

    def _run(self, name, times, fused):
        computation = self.computations[name]
        for each in computation.values():
            yield each, computation, times, fused
            inner = times * (self.trips(each) or 1) if each.opcode == "while" else times
            for called in each.called:
                yield from self._run(called, inner, fused or each.opcode == "fusion")

    def trips(self, loop: Instruction) -> int | None:
        """A while loop's iterations: as annotated by XLA, or the only constant in its condition; None if unknown."""
        if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
            return int(known[1])
        condition = list(self.computations[re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]].values())
        fused = [self.computations[name] for each in condition for name in each.called]  # on GPUs
        inside = [*condition, *(each for computation in fused for each in computation.values())]
        limits = [each for each in inside if each.opcode == "constant" and each.shape.startswith("s32[]")]
        return int(limits[0].attributes) if len(limits) == 1 and limits[0].attributes.isdigit() else None

    @functools.cached_property
    def unknown_loops(self) -> int:
        return sum(each.opcode == "while" and self.trips(each) is None for each, *_ in self.executed())


def parse(text: str) -> Program:
    """The Program in the text that `jax.stages.Compiled.as_text()` returns."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if found := _INSTRUCTION.match(line):
            instruction = _instruction(found)
            current[instruction.name] = instruction
        elif line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)[1]
            current = computations[name] = {}
            entry = name if line.startswith("ENTRY") else entry
    return Program(computations, entry, _frames(text))


def _frames(text: str) -> dict[int, Frame]:
    """Stack frames by number, from the tables before the first computation; {} if there are none."""
    tables = {name: _table(text, name) for name in ("FileNames", "FileLocations", "StackFrames")}
    locations = {number: _numbers(row) for number, row in tables["FileLocations"].items()}
    frames = {number: _numbers(row) for number, row in tables["StackFrames"].items()}
    # The first frame has no caller, but XLA writes parent_frame_id=1 there: all callers' numbers are one too high.
    none = next(iter(frames.values()), {}).get("parent_frame_id", 0)
    return {
        number: Frame(
            tables["FileNames"][locations[frame["file_location_id"]]["file_name_id"]].strip('"'),
            locations[frame["file_location_id"]]["line"],
            frame.get("parent_frame_id", none) - none,
        )
        for number, frame in frames.items()
    }


def _table(text: str, name: str) -> dict[int, str]:
    """Rows by number, such as `12 {line=7 column=4}`, that follow the line with the table's name."""
    found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.M)
    rows = (row.split(" ", 1) for row in found[1].splitlines()) if found else ()
    return {int(number): row for number, row in rows}


def _numbers(row: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", row)}


def _instruction(found: re.Match) -> Instruction:
    root, name, rest = found[1], found[2], found[3]
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside, attributes = rest[opening + 1 : closing], rest[closing + 1 :].lstrip(", ")
    if rest[:opening] == "constant":
        attributes = inside
    return Instruction(name, rest[:opening], shape, tuple(re.findall(r"%([\w.\-]+)", inside)), attributes, bool(root))


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at index `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"a parenthesis is not closed: {text[opening : opening + 80]}")


def size(shape: str, memory: int | None = None) -> int:
    """Bytes of a shape, or of all parts of a tuple; with `memory`, only of the parts in that memory space.

    A layout that ends with S(n) puts the array into memory space n instead of main memory, which is 0.
    """
    total = 0
    for kind, dims, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", shape):
        space = re.search(r"S\((\d+)\)", layout)
        if memory is None or memory == (int(space[1]) if space else 0):
            bits = BITS.get(kind) if kind in BITS else int(re.search(r"\d+", kind)[0])
            total += bits * math.prod(int(dim) for dim in dims.split(",") if dim) // 8
    return total
