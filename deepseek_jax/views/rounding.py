"""Quantising matrices: int8 and int4 with a scale per output or group of inputs, FP8 and FP4 with one per block.

Functions work on arrays [N, I, O] (views/matrices.py).  Values are stored in the small type; the model computes with
the float32 numbers that `unpacked` returns.  Groups and blocks at an edge may be smaller.

N matrices  I inputs  O outputs  G groups of inputs  B blocks of outputs
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax.convert.quantised import FP4_BLOCK, FP4_VALUES, FP8_BLOCK
from deepseek_jax.views.matrices import Matrix

INTEGERS = {"int8": 127.0, "int4": 7.0}  # largest magnitudes; symmetric, so -128 and -8 are not used
FP8_MOST, FP4_MOST = 448.0, 6.0  # the largest numbers of e4m3 and e2m1
MANTISSA = 23  # bits of float32 below the exponent
LEAST = 2.0**-100  # smaller magnitudes than this are rounded as if the largest were this
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)  # shares of the largest weight at which int4 may saturate


@dataclasses.dataclass(frozen=True)
class Format:
    """`kind`: int8, int4, fp8 or fp4; `group`: how many inputs share a scale (0: all), only for int8 and int4.

    `powers`: whether fp8's scales are powers of two, as in V4's release; those of fp4 always are.
    """

    kind: str
    group: int = 0
    powers: bool = False

    @property
    def four_bits(self) -> bool:
        return self.kind in ("int4", "fp4")

    def inputs_a_scale(self, inputs: int) -> int:
        return {"fp8": FP8_BLOCK, "fp4": FP4_BLOCK}.get(self.kind) or self.group or inputs


@functools.partial(jax.jit, static_argnums=(1, 2))
def pack(weight: Float[Array, "..."], matrix: Matrix, form: Format) -> dict[str, Array]:
    """{"values": in the weight's own dimensions, "scales": [*leading dimensions, G, B (fp8) or *output dimensions]}.

    If the weight's last input dimension is even, 4-bit numbers are packed along it two per byte, the even input in the
    low bits; otherwise each takes a byte.  Scales are float32, except those of fp4: exponents of 2 as bytes (e8m0).
    """
    values, scales = packed(matrix.fold(weight), form)
    leading, inputs, outputs = matrix.split(weight.shape)
    if form.four_bits and inputs[-1] % 2 == 0:
        N, I, O = values.shape
        pairs = values.reshape(N, I // 2, 2, O)
        values, inputs = pairs[:, :, 0] | (pairs[:, :, 1] << 4), (*inputs[:-1], inputs[-1] // 2)
    elif form.four_bits:
        values = values.astype(jnp.int8)
    blocks = (scales.shape[2],) if form.kind == "fp8" else outputs
    return {
        "values": values.reshape(*leading, *inputs, *outputs),
        "scales": scales.reshape(*leading, scales.shape[1], *blocks),
    }


def unpack(found: dict[str, Array], matrix: Matrix, form: Format) -> Float[Array, "..."]:
    """The rounded weight, in float32, from what `pack` returned."""
    values, (leading, inputs, outputs) = found["values"], matrix.split(found["values"].shape)
    scales = found["scales"].reshape(math.prod(leading), found["scales"].shape[len(leading)], -1)
    folded = matrix.fold(values)
    if values.dtype == jnp.uint8 and form.four_bits:
        folded = jnp.stack([folded & 15, folded >> 4], axis=2).reshape(folded.shape[0], -1, folded.shape[2])
        inputs = (*inputs[:-1], 2 * inputs[-1])
    return unpacked(folded, scales, form).reshape(*leading, *inputs, *outputs)


def packed(weight_NIO: Float[Array, "N I O"], form: Format) -> tuple[Array, Array]:
    """(values [N, I, O], scales [N, G, O], for fp8 [N, G, B]); 4-bit values are uint8 codes, not yet two per byte."""
    weight_NIO = weight_NIO.astype(jnp.float32)
    if form.kind == "fp8":
        scales = fp8_scales(weight_NIO)
        scales = power_at_least(scales) if form.powers else scales
        return to_e4m3(weight_NIO / _over_blocks(scales, weight_NIO.shape)), scales
    scales = fp4_scales(weight_NIO) if form.kind == "fp4" else _integer_scales(weight_NIO, form)
    numbers = weight_NIO / _over_groups(scales, weight_NIO.shape[1], form)
    if form.kind == "fp4":
        return _fp4_code(numbers), _exponents(scales)
    most = INTEGERS[form.kind]
    numbers = jnp.clip(jnp.round(numbers), -most, most)
    return ((numbers + 8).astype(jnp.uint8) if form.kind == "int4" else numbers.astype(jnp.int8)), scales


def to_e4m3(quotients: Float[Array, "..."]) -> Float[Array, "..."]:
    """Quotients of weight and scale as float8_e4m3fn; clipped, as rounding may leave one above 448, which is NaN."""
    return jnp.clip(quotients, -FP8_MOST, FP8_MOST).astype(jnp.float8_e4m3fn)


def unpacked(values, scales, form: Format) -> Float[Array, "N I O"]:
    """The rounded matrices, in float32, from what `packed` returned."""
    if form.kind == "fp8":
        return values.astype(jnp.float32) * _over_blocks(scales, values.shape)
    if form.kind == "fp4":
        scales, numbers = _of_exponents(scales), jnp.asarray(FP4_VALUES)[values]
    else:
        numbers = values.astype(jnp.float32) - (8 if form.kind == "int4" else 0)
    return numbers * _over_groups(scales, values.shape[1], form)


def rounded(weight_NIO: Float[Array, "N I O"], form: Format) -> Float[Array, "N I O"]:
    """The matrices rounded to `form` and back to float32."""
    return unpacked(*packed(weight_NIO, form), form)


def scale(largest: Float[Array, "..."] | float, most: float) -> Float[Array, "..."]:
    """By what numbers up to the magnitude `largest` are divided to reach at most `most`.

    Never 0, nor so small that it is a denormal number, which XLA's CPU takes for 0: zeros over it would be NaN.
    """
    return jnp.maximum(largest, LEAST) / most


def _over_groups(scales_NGO, inputs: int, form: Format):
    return jnp.repeat(scales_NGO, form.inputs_a_scale(inputs), axis=1)[:, :inputs]


def _grouped(weight_NIO, size: int):
    """[N, G, size, O], the last group padded with zeros."""
    N, I, O = weight_NIO.shape
    return jnp.pad(weight_NIO, ((0, 0), (0, -I % size), (0, 0))).reshape(N, -1, size, O)


def _integer_scales(weight_NIO, form):
    grouped, most = _grouped(weight_NIO, form.inputs_a_scale(weight_NIO.shape[1])), INTEGERS[form.kind]
    scales = scale(jnp.abs(grouped).max(axis=2, keepdims=True), most)
    return (_best_clip(grouped, scales, most) if form.kind == "int4" else scales)[:, :, 0]


def _best_clip(grouped, scales, most):
    """Each group's scale times the share in CLIPS with the least squared error: with 4 bits, clipping outliers pays."""

    def error(share):
        tried = scales * share
        left = jnp.clip(jnp.round(grouped / tried), -most, most) * tried - grouped
        return jnp.square(left).sum(axis=2, keepdims=True)

    best = jnp.argmin(jnp.stack([error(share) for share in CLIPS]), axis=0)
    return scales * jnp.asarray(CLIPS, jnp.float32)[best]


def fp8_scales(weight_NIO: Float[Array, "N I O"]) -> Float[Array, "N G B"]:
    """The largest magnitude of each block of 128 x 128, divided by 448 (V3, section 3.3.2)."""
    N, I, O = weight_NIO.shape
    padded = jnp.pad(jnp.abs(weight_NIO), ((0, 0), (0, -I % FP8_BLOCK), (0, -O % FP8_BLOCK)))
    return scale(padded.reshape(N, -(-I // FP8_BLOCK), FP8_BLOCK, -1, FP8_BLOCK).max(axis=(2, 4)), FP8_MOST)


def _over_blocks(scales_NGB, shape):
    spread = jnp.repeat(jnp.repeat(scales_NGB, FP8_BLOCK, axis=1), FP8_BLOCK, axis=2)
    return spread[:, : shape[1], : shape[2]]


def fp4_scales(weight_NIO: Float[Array, "N I O"]) -> Float[Array, "N G O"]:
    """The smallest powers of two by which groups of 32 inputs, divided, do not exceed 6 (V4's experts)."""
    return power_at_least(scale(jnp.abs(_grouped(weight_NIO, FP4_BLOCK)).max(axis=2), FP4_MOST))


def power_at_least(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The smallest normal power of two that is not below x > 0.

    Computed on the bits, because XLA's CPU jnp.exp2 of most integers is not a power of two but a neighbouring float.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    exponent = (bits + (1 << MANTISSA) - 1) >> MANTISSA  # any bit of the mantissa carries into it
    return jax.lax.bitcast_convert_type(exponent << MANTISSA, jnp.float32)


def _exponents(scales) -> Array:
    """The e8m0 byte (biased exponent) of each power of two."""
    return (jax.lax.bitcast_convert_type(scales, jnp.int32) >> MANTISSA).astype(jnp.uint8)


def _of_exponents(found) -> Array:
    """The powers of two with these e8m0 bytes, in float32: the inverse of `_exponents`."""
    return jax.lax.bitcast_convert_type(found.astype(jnp.int32) << MANTISSA, jnp.float32)


def _fp4_code(numbers) -> Array:
    """The 4-bit e2m1 code of each number, rounded to nearest, ties to even.

    Comparisons replace a cast to jnp.float4_e2m1fn, which rounds twice in some kernels of XLA's CPU compiler.
    """
    sizes, codes = jnp.abs(numbers), 8 * jnp.signbit(numbers).astype(jnp.uint8)
    for code, halfway in enumerate((FP4_VALUES[:7] + FP4_VALUES[1:8]) / 2):
        codes += (sizes >= halfway if code % 2 else sizes > halfway).astype(jnp.uint8)
    return codes
