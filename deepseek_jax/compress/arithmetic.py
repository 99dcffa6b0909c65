"""Products of few bits, simulated: FP8 as DeepSeek-V3 trains with it, int8 activations; and one that only watches.

R rows  I inputs  O outputs
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax.compress.config import ArithmeticConfig
from deepseek_jax.compress.matrices import is_product, matrix_of
from deepseek_jax.compress.rounding import FP8_MOST, Format, rounded, to_e4m3
from deepseek_jax.convert.quantised import FP8_BLOCK
from deepseek_jax.models.arithmetic import PLAIN, Arithmetic

HIGH_PRECISION = re.compile(r"^head/|indexer/weights$")  # beside what is no product here: see docs/compression.md


@dataclasses.dataclass(frozen=True)
class Fp8(Arithmetic):
    """Every product of e4m3 numbers, summed in float32 (V3, section 3.3).

    Activations and gradients have a scale a tile of 128 along what is summed over, weights one a block of 128 x 128.
    The weight's gradient sums over tokens: there the activations of the forward pass, already rounded, are rounded
    again in tiles of 128 tokens (section 3.5.2).
    """

    def rows(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        return in_tiles(x, axis=-1)

    def weight(self, w: Float[Array, "... I O"]) -> Float[Array, "... I O"]:
        return rounded(w.reshape(-1, *w.shape[-2:]), Format("fp8")).reshape(w.shape)

    def gradients(self, dy: Float[Array, "... R O"]) -> Float[Array, "... R O"]:
        return in_tiles(dy, axis=-1)

    def inputs(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        return in_tiles(self.rows(x), axis=-2)

    def outputs(self, dy: Float[Array, "... R O"]) -> Float[Array, "... R O"]:
        return in_tiles(dy, axis=-2)


def in_tiles(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """x as e4m3 numbers with a scale, its largest over 448, a tile of 128 along `axis`; float32."""
    x = jnp.moveaxis(x.astype(jnp.float32), axis, -1)
    size = x.shape[-1]
    tiles = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -size % FP8_BLOCK)])
    tiles = tiles.reshape(*x.shape[:-1], -1, FP8_BLOCK)
    largest = jnp.abs(tiles).max(axis=-1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1) / FP8_MOST
    back = (to_e4m3(tiles / scale).astype(jnp.float32) * scale).reshape(*x.shape[:-1], -1)[..., :size]
    return jnp.moveaxis(back, -1, axis)


@dataclasses.dataclass(frozen=True)
class Int8(Arithmetic):
    """Activations in 255 steps between -range and range, or, where `range` is 0, those of each row's largest number.

    Weights are as they come: quantize.weights rounds them.  Their gradients are of the numbers that they met, those of
    activations pass straight through (arXiv:1308.3432).
    """

    range: float = 0.0
    axes: tuple[str, ...] = ()  # of the mesh, along which each device has a part of a row

    def split_over(self, axes: tuple[str, ...]) -> Arithmetic:
        return dataclasses.replace(self, axes=axes)

    def rows(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        x32 = x.astype(jnp.float32)
        largest = self.range or self._largest(x32)
        step = jnp.where(largest > 0, largest, 1) / 127
        return (jnp.clip(jnp.round(x32 / step), -127, 127) * step).astype(x.dtype)

    def inputs(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        return self.rows(x)

    def _largest(self, x: Float[Array, "... R I"]) -> Float[Array, "... R 1"]:
        found = jnp.abs(x).max(axis=-1, keepdims=True)
        return jax.lax.pmax(found, self.axes) if self.axes else found


@dataclasses.dataclass(frozen=True)
class Watching(Arithmetic):
    """Plain products, but what comes as a weight's gradient is the sum of |x / unit|^power over rows, for every output.

    Rows without a gradient, which decide nothing, do not count: padding and empty slots of experts.
    """

    power: int = 2
    unit: float = 1.0

    def inputs(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        return jnp.abs(x.astype(jnp.float32) / self.unit) ** self.power

    def outputs(self, dy: Float[Array, "... R O"]) -> Float[Array, "... R O"]:
        return jnp.broadcast_to((dy != 0).any(axis=-1, keepdims=True), dy.shape).astype(jnp.float32)


def chooser(config: ArithmeticConfig) -> Callable[[str, int], Arithmetic]:
    """Which arithmetic the parameter of a path and number of dimensions carries."""
    if config.kind == "plain":
        return lambda path, rank: PLAIN
    ranges = dict(each.rsplit("=", 1) for each in config.ranges)

    def choose(path: str, rank: int) -> Arithmetic:
        matrix = matrix_of(path, rank)
        if not matrix or not is_product(path, matrix):
            return PLAIN
        if not (re.search(config.paths, path) if config.paths else not HIGH_PRECISION.search(path)):
            return PLAIN
        return Fp8() if config.kind == "fp8" else Int8(float(ranges.get(path, 0)))

    return choose


def watching(power: int, units: Mapping[str, float]) -> Callable[[str, int], Arithmetic]:
    """Every product watches its input, in units by its weight's path, of 1 where they have none."""

    def choose(path: str, rank: int) -> Arithmetic:
        matrix = matrix_of(path, rank)
        return Watching(power, units.get(path, 1.0)) if matrix and is_product(path, matrix) else PLAIN

    return choose
