"""Products of rows sorted by group with a matrix for each group: the heart of the experts on accelerators.

Z rows  D features in  F features out  E groups
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox
from jaxtyping import Array, Float, Int

from deepseek_jax.models import gpu
from deepseek_jax.models.arithmetic import PLAIN, Arithmetic

ROWS, MOST_FEATURES = 512, 1024  # of a tile; larger ones overflow a TPU's vector memory
# Of a TPU.  Widths are whole multiples, for the backward pass lays tiles across them the other way.
LANES = 128


def grouped_matmul(
    x_ZD: Float[Array, "Z D"], kernel_EDF: Float[Array, "E D F"], counts_E: Int[Array, "E"], how: Arithmetic = PLAIN
) -> Float[Array, "Z F"]:
    """The first counts[0] rows times kernel[0], the next counts[1] times kernel[1] ...

    What rows past the last group give, and their gradients, is undefined.

    On TPUs by megablox, on GPUs by tokamax where it serves: jax.lax.ragged_dot, or its gradient, is a product of all
    rows with all groups there.
    """
    if how is not PLAIN:
        return _under(x_ZD, kernel_EDF, counts_E, how)
    # megablox refuses float16, and is traced wherever it runs: each platform's branch is.
    platforms = {} if x_ZD.dtype == jnp.float16 else {"tpu": on_tpu}
    if tokamax := gpu.library(x_ZD.dtype):
        platforms["cuda"] = tokamax.ragged_dot
    return jax.lax.platform_dependent(x_ZD, kernel_EDF, counts_E, **platforms, default=jax.lax.ragged_dot)


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
    """As `grouped_matmul`; `interpret` runs the kernel anywhere, slowly."""
    rows, out = x_ZD.shape[0], kernel_EDF.shape[2]
    x_ZD, kernel_EDF = _filled(x_ZD, ROWS, LANES), _filled(kernel_EDF, 1, LANES, LANES)
    tiling = ROWS, *(min(size, MOST_FEATURES) for size in kernel_EDF.shape[1:])
    product = functools.partial(megablox.gmm, preferred_element_type=x_ZD.dtype, tiling=tiling, interpret=interpret)
    return product(x_ZD, kernel_EDF, counts_E)[:rows, :out]


def _filled(x, *multiples):
    """x with zeros behind, up to a multiple of these numbers in each dimension."""
    return jnp.pad(x, [(0, -size % multiple) for size, multiple in zip(x.shape, multiples, strict=True)])
