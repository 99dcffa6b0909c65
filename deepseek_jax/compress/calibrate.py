"""Statistics of each matrix's inputs over training batches, collected by backward passes of the loss.

`InputStatistics` products (views/arithmetic.py) return sums over tokens in place of the weight's gradient.  Autodiff
thus collects them for every layer of a stack and every expert, on any mesh, and adds them up over devices.

N matrices  I inputs
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deepseek_jax.compress.measure import Measure
from deepseek_jax.models.arithmetic import Arithmetic
from deepseek_jax.models.tree import flatten
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.train.evaluate import bytes_a_target
from deepseek_jax.train.program import Program, language_model_program
from deepseek_jax.train.supervised.program import supervised_program
from deepseek_jax.views.arithmetic import watching
from deepseek_jax.views.matrices import is_product, matrices

# A high p-norm approximates the maximum: over R rows it is at least that, and at most R^(1/p) times.  Each is taken in
# units of the one before, so that none overflows for inputs up to 1e9, nor vanishes: the largest input is at least
# R^(-1/28) of the 28-norm, whose 112th power is R^-4.
NORMS = 4, 28, 112


def input_sums(
    measure: Measure, given: Trained, batches: int, power: int = 2, units: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Float[Array, "N I"]]:
    """By path of a matrix, the sum of |x / unit|^power of its inputs x over the tokens of `batches` training batches.

    For experts only the tokens routed to them count; inputs of their down projections include the routing weight.
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


def largest_inputs(measure: Measure, given: Trained, batches: int) -> dict[str, float]:
    """By path, the largest |input| over all layers of the stack, or up to 5% more; only paths that have inputs."""
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
        # The gradient of a weight penalty would be added to the sums, and dropout would scale the inputs.
        plain = dataclasses.replace(task.experiment.objective, l1=0.0, l2=0.0)
        still = dataclasses.replace(task.model, dropout=0.0, drop_path=0.0)
        return supervised_program(dataclasses.replace(task.experiment, objective=plain), still, choose)
    return language_model_program(task.experiment, bytes_a_target(task.corpus), choose)


def _loss(program: Program, params, buffers, batch) -> Array:
    """The loss of the batch's first microbatch, with all schedules at their final values."""
    scheduled = program.scheduled(jnp.int32(2**30)) | {"microbatch": 0}
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    return program.loss(params, buffers, first, program.totals(batch), scheduled)[0]
