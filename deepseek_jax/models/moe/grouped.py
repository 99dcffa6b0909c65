"""Grouped matrix products (rows sorted by group, one matrix per group), which the experts use on accelerators.

Z rows  D features in  F features out  E groups
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox
from jaxtyping import Array, Float, Int

from deepseek_jax.models import gpu
from deepseek_jax.models.arithmetic import PLAIN, Arithmetic
from deepseek_jax.parallel.current import by_platform

ROWS, MOST_FEATURES = 512, 1024  # of a tile on TPUs; larger ones overflow the vector memory
# Of a TPU.  Widths are padded to multiples of it, as the backward pass tiles the matrices transposed.
LANES = 128


def grouped_matmul(
    x_ZD: Float[Array, "Z D"], kernel_EDF: Float[Array, "E D F"], counts_E: Int[Array, "E"], how: Arithmetic = PLAIN
) -> Float[Array, "Z F"]:
    """The first counts[0] rows times kernel[0], the next counts[1] rows times kernel[1], and so on.

    Results and gradients of rows past the last group are undefined.

    Uses megablox on TPUs and, if available, tokamax on GPUs: there jax.lax.ragged_dot, or its gradient, multiplies all
    rows with all groups' matrices.
    """
    if how is not PLAIN:
        return _under(x_ZD, kernel_EDF, counts_E, how)
    # megablox rejects float16, and its branch is traced on every platform.
    platforms = {} if x_ZD.dtype == jnp.float16 else {"tpu": on_tpu}
    if tokamax := gpu.library(x_ZD.dtype):
        platforms["cuda"] = tokamax.ragged_dot
    return by_platform(x_ZD, kernel_EDF, counts_E, **platforms, default=jax.lax.ragged_dot)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _under(x_ZD, kernel_EDF, counts_E, how):
    return grouped_matmul(how.rows(x_ZD), how.weight(kernel_EDF), counts_E).astype(x_ZD.dtype)


def _under_forward(x_ZD, kernel_EDF, counts_E, how):
    return _under(x_ZD, kernel_EDF, counts_E, how), (x_ZD, kernel_EDF, counts_E)


def _under_backward(how, saved, dy_ZF):
    x_ZD, kernel_EDF, counts_E = saved
    pull_x = jax.vjp(lambda x: grouped_matmul(x, how.weight(kernel_EDF), counts_E), how.rows(x_ZD))[1]
    pull_kernel = jax.vjp(lambda kernel: grouped_matmul(how.inputs(x_ZD), kernel, counts_E), how.weight(kernel_EDF))[1]
    (dx_ZD,), (dkernel_EDF,) = pull_x(how.gradients(dy_ZF)), pull_kernel(how.outputs(dy_ZF))
    return dx_ZD.astype(x_ZD.dtype), dkernel_EDF.astype(kernel_EDF.dtype), None


_under.defvjp(_under_forward, _under_backward)


def on_tpu(x_ZD, kernel_EDF, counts_E, interpret: bool = False):
    """`grouped_matmul` by megablox; `interpret` runs the kernel on any platform, slowly."""
    rows, out = x_ZD.shape[0], kernel_EDF.shape[2]
    x_ZD, kernel_EDF = _filled(x_ZD, ROWS, LANES), _filled(kernel_EDF, 1, LANES, LANES)
    tiling = ROWS, *(min(size, MOST_FEATURES) for size in kernel_EDF.shape[1:])
    product = functools.partial(megablox.gmm, preferred_element_type=x_ZD.dtype, tiling=tiling, interpret=interpret)
    return product(x_ZD, kernel_EDF, counts_E)[:rows, :out]


def _filled(x, *multiples):
    """x zero-padded at the end of each dimension to a multiple of the given number."""
    return jnp.pad(x, [(0, -size % multiple) for size, multiple in zip(x.shape, multiples, strict=True)])
