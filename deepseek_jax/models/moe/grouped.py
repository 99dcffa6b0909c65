"""Products of rows sorted by group with a matrix for each group: the heart of the experts on accelerators.

Z rows  D features in  F features out  E groups
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox
from jaxtyping import Array, Float, Int

ROWS, MOST_FEATURES = 512, 1024  # of a tile; larger ones overflow a TPU's vector memory


def grouped_matmul(
    x_ZD: Float[Array, "Z D"], kernel_EDF: Float[Array, "E D F"], counts_E: Int[Array, "E"]
) -> Float[Array, "Z F"]:
    """The first counts[0] rows times kernel[0], the next counts[1] times kernel[1] ...

    What rows past the last group give, and their gradients, is undefined.

    On TPUs by megablox: the gradient of jax.lax.ragged_dot is a product of all rows with all groups there.
    """
    return jax.lax.platform_dependent(x_ZD, kernel_EDF, counts_E, tpu=on_tpu, default=jax.lax.ragged_dot)


def on_tpu(x_ZD, kernel_EDF, counts_E, interpret: bool = False):
    """As `grouped_matmul`; `interpret` runs the kernel anywhere, slowly."""
    rows, features, out = x_ZD.shape[0], *kernel_EDF.shape[1:]
    x_ZD = jnp.pad(x_ZD, ((0, -rows % ROWS), (0, 0)))
    tiling = ROWS, min(features, MOST_FEATURES), min(out, MOST_FEATURES)
    product = functools.partial(megablox.gmm, preferred_element_type=x_ZD.dtype, tiling=tiling, interpret=interpret)
    return product(x_ZD, kernel_EDF, counts_E)[:rows]
