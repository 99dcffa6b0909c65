"""Simulated low-precision matrix products: FP8 as in DeepSeek-V3's training, int8 activations; and one that observes.

R rows  I inputs  O outputs
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax.compress.config import ArithmeticConfig
from deepseek_jax.convert.quantised import FP8_BLOCK
from deepseek_jax.models.arithmetic import PLAIN, Arithmetic
from deepseek_jax.views.matrices import is_product, matrix_of
from deepseek_jax.views.rounding import FP8_MOST, INTEGERS, Format, rounded, scale, to_e4m3

# Matrix products kept in high precision.  Embeddings, norms etc. are no products in this sense: docs/compression.md.
HIGH_PRECISION = re.compile(r"^head/|indexer/weights$")


@dataclasses.dataclass(frozen=True)
class Fp8(Arithmetic):
    """All three products of a linear layer take e4m3 operands and accumulate in float32 (V3, section 3.3).

    Activations and gradients have one scale per tile of 128 along the dimension that is summed over, weights one per
    block of 128 x 128.  The weight's gradient sums over tokens, so for it the activations, already rounded in the
    forward pass, are rounded again in tiles of 128 tokens (section 3.5.2).
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
    """x rounded to e4m3, as float32.  Each tile of 128 along `axis` has its own scale: its largest magnitude / 448."""
    x = jnp.moveaxis(x.astype(jnp.float32), axis, -1)
    size = x.shape[-1]
    tiles = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -size % FP8_BLOCK)])
    tiles = tiles.reshape(*x.shape[:-1], -1, FP8_BLOCK)
    scales = scale(jnp.abs(tiles).max(axis=-1, keepdims=True), FP8_MOST)
    back = (to_e4m3(tiles / scales).astype(jnp.float32) * scales).reshape(*x.shape[:-1], -1)[..., :size]
    return jnp.moveaxis(back, -1, axis)


@dataclasses.dataclass(frozen=True)
class Int8(Arithmetic):
    """Activations rounded to 255 levels between -range and range; if `range` is 0, each row's largest magnitude is it.

    Weights are not changed here (quantize.weights rounds them).  Their gradients are computed from the rounded
    activations; gradients of activations pass straight through the rounding (arXiv:1308.3432).
    """

    range: float = 0.0
    axes: tuple[str, ...] = ()  # mesh axes over which each row is split

    def split_over(self, axes: tuple[str, ...]) -> Arithmetic:
        return dataclasses.replace(self, axes=axes)

    def rows(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        x32 = x.astype(jnp.float32)
        step = scale(self.range or self._largest(x32), INTEGERS["int8"])
        return (jnp.clip(jnp.round(x32 / step), -127, 127) * step).astype(x.dtype)

    def inputs(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        return self.rows(x)

    def _largest(self, x: Float[Array, "... R I"]) -> Float[Array, "... R 1"]:
        found = jnp.abs(x).max(axis=-1, keepdims=True)
        return jax.lax.pmax(found, self.axes) if self.axes else found


@dataclasses.dataclass(frozen=True)
class InputStatistics(Arithmetic):
    """Plain products, but a weight's "gradient" is the sum of |x / unit|^power over rows, repeated for every output.

    Rows whose output gradient is zero (padding, empty expert slots) have no effect on the loss and are not counted.
    """

    power: int = 2
    unit: float = 1.0

    def inputs(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        return jnp.abs(x.astype(jnp.float32) / self.unit) ** self.power

    def outputs(self, dy: Float[Array, "... R O"]) -> Float[Array, "... R O"]:
        return jnp.broadcast_to((dy != 0).any(axis=-1, keepdims=True), dy.shape).astype(jnp.float32)


def chooser(config: ArithmeticConfig) -> Callable[[str, int], Arithmetic]:
    """A function (path, number of dimensions) -> the Arithmetic that this parameter's products use."""
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
    """A function like `chooser`'s: every product gets `InputStatistics`; `units` by weight path, 1 where missing."""

    def choose(path: str, rank: int) -> Arithmetic:
        matrix = matrix_of(path, rank)
        return InputStatistics(power, units.get(path, 1.0)) if matrix and is_product(path, matrix) else PLAIN

    return choose
