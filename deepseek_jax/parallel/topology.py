"""Parses the name of a cluster, as given by `--topology`: "v5p:8x8x16" or "h100:128x8"."""

import dataclasses
import math
import re

from deepseek_jax.errors import UserError
from deepseek_jax.parallel.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind and their grid: the sides of a TPU torus, or (hosts, GPUs per host)."""

    chip: Chip
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.grid))}"

    @property
    def num_devices(self) -> int:
        """The number of devices as JAX counts them."""
        return math.prod(self.grid) * self.chip.devices_per_chip


def parse(text: str) -> Topology:
    """Parses a topology's name; raises UserError for an unknown chip or a grid with the wrong number of dimensions."""
    name, _, grid = text.lower().partition(":")
    if name not in CHIPS:
        raise UserError(f"there is no chip {name!r} in --topology {text}; choose one of {', '.join(CHIPS)}.")
    dims, what, example = _grid_of(CHIPS[name])
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{dims - 1}}}", grid):
        raise UserError(f"--topology {text} must give the {what}, for example {name}:{example}.")
    chip, sides = CHIPS[name], tuple(map(int, grid.split("x")))
    if chip.platform == "cuda":
        chip = dataclasses.replace(chip, island=sides[1])
    return Topology(chip, sides)


def _grid_of(chip: Chip) -> tuple[int, str, str]:
    if chip.platform == "cuda":
        return 2, "hosts and the GPUs of a host", f"16x{chip.island}"
    dims = chip.links // 2
    return dims, f"{dims} sides of its torus", "x".join(["8"] * dims)
