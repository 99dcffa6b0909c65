"""Plain-text tables: never wrapped, even if wider than a terminal, so that they can be searched and compared."""

from collections.abc import Sequence

UNITS = (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")
TIMES = (1, "s"), (1e-3, "ms"), (1e-6, "µs")


def table(rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Rows in aligned columns; `right` has a letter per column: r for right-aligned, any other for left-aligned."""
    sides = [str.rjust if side == "r" else str.ljust for side in right.ljust(len(rows[0]))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(set_to(cell, width) for set_to, cell, width in zip(sides, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def amount(size: float, digits: int = 2) -> str:
    """Bytes as text, in the largest unit of which they are at least a tenth: 0.75 GiB."""
    return _in_one_of(UNITS, size, digits)


def duration(seconds: float) -> str:
    """Seconds as text, in a unit chosen as in `amount`: 46.52 s, 0.36 ms."""
    return _in_one_of(TIMES, seconds, digits=2)


def _in_one_of(units, size: float, digits: int) -> str:
    unit, name = next((unit for unit in units if size >= unit[0] / 10), units[-1])
    return f"{size / unit:,.{digits}f} {name}"


def verdict(needed: int, topology) -> str:
    """A line on whether `needed` bytes fit into a device's memory, or how many are too much."""
    room = topology.chip.memory - needed
    takes = amount(needed, 1).removesuffix(" GiB")
    share = f"{takes} of {topology.chip.memory / 2**30:,.1f} GiB a device of {topology.name}"
    return f"fits: {share}" if room >= 0 else f"does not fit: {share}, {amount(-room, 1)} too much"
