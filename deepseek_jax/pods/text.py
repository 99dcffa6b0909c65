"""Tables as plain text: wider than a terminal where they must be, so that they can be searched and compared."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Aligned columns; `right` has an r for each column that is set flush right, and any other letter for the rest."""
    sides = [str.rjust if side == "r" else str.ljust for side in right.ljust(len(rows[0]))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(set_to(cell, width) for set_to, cell, width in zip(sides, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"


def verdict(needed: int, topology) -> str:
    """Whether so many bytes fit into a device's memory, and by how much."""
    room = topology.chip.memory - needed
    share = f"{needed / 2**30:,.1f} of {topology.chip.memory / 2**30:,.1f} GiB a device of {topology.name}"
    return f"fits: {share}" if room >= 0 else f"does not fit: {share}, {-room / 2**30:,.1f} GiB too much"
