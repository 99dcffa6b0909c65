"""What flows into each matrix, on average over training batches: from one backward pass of the loss.

Products that watch (compress/arithmetic.py) hand the sums over tokens back in the place of their weight's gradient, so
they come for every layer of a stack and every expert, wherever these lie, and add up over batches and devices.

N matrices  I inputs
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deepseek_jax.compress.arithmetic import watching
from deepseek_jax.compress.matrices import is_product, matrices
from deepseek_jax.compress.measure import Measure
from deepseek_jax.compress.source import Source
from deepseek_jax.models.arithmetic import Arithmetic
from deepseek_jax.models.tree import flatten
from deepseek_jax.train.evaluate import bytes_a_target
from deepseek_jax.train.program import Program, language_model_program
from deepseek_jax.train.supervised_program import supervised_program

# Of the norms that lead to the largest number, the second in units of the first, so that neither overflows: up to 1e9
# and for 1e5 equal rows.  Over R rows the second is at least the largest number, and R^(1/28) of that if all are equal.
NORMS = 4, 28


def input_sums(
    measure: Measure, given: Source, batches: int, power: int = 2, units: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Float[Array, "N I"]]:
    """By path, the sum of |x / unit|^power over tokens (of experts: those routed there) of `batches` training batches.

    Of an expert's down projection, x has been multiplied with the routing weight.
    """
    program = _watching_program(measure, watching(power, units))
    sums = jax.jit(jax.grad(lambda params, batch: _loss(program, params, given.buffers, batch)))
    total = None
    for batch in measure.training_batches(batches):
        found = sums(given.params, batch)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    flat = flatten(total)
    watched = {path: matrix for path, matrix in matrices(flat).items() if is_product(path, matrix)}
    return {path: matrix.fold(flat[path])[:, :, 0] for path, matrix in watched.items()}


def largest_inputs(measure: Measure, given: Source, batches: int) -> dict[str, float]:
    """By path, the largest number that flows into any layer of the stack, or a little more; without those with none."""
    found: dict[str, float] = {}
    for power in NORMS:
        sums = input_sums(measure, given, batches, power, found)
        norms = {
            path: found.get(path, 1.0) * float(np.asarray(each).max()) ** (1 / power) for path, each in sums.items()
        }
        found = {path: norm for path, norm in norms.items() if norm > 0}
    return found


def _watching_program(measure: Measure, choose: Callable[[str, int], Arithmetic]) -> Program:
    task = measure.setup.task
    if task.experiment.family == "supervised":
        # The gradient of a penalty on the weights would lie on the sums.
        plain = dataclasses.replace(task.experiment.objective, l1=0.0, l2=0.0)
        return supervised_program(dataclasses.replace(task.experiment, objective=plain), task.model, choose)
    return language_model_program(task.experiment, bytes_a_target(task.corpus), choose)


def _loss(program: Program, params, buffers, batch) -> Array:
    """Of the first microbatch, as at the end of the run."""
    scheduled = program.scheduled(jnp.int32(2**30)) | {"microbatch": 0}
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    return program.loss(params, buffers, first, program.totals(batch), scheduled)[0]
