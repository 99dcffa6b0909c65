"""What flows into each matrix, on average over training batches: from one backward pass of the loss.

Products that watch (compress/arithmetic.py) hand the sums over tokens back in the place of their weight's gradient, so
they come for every layer of a stack and every expert, wherever these lie, and add up over batches and devices.

N matrices  I inputs
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from deepseek_jax.compress.arithmetic import watching
from deepseek_jax.compress.matrices import LINEAR, matrices
from deepseek_jax.compress.measure import Measure
from deepseek_jax.compress.source import Source
from deepseek_jax.errors import UserError
from deepseek_jax.train.evaluate import bytes_a_target
from deepseek_jax.train.program import Program, language_model_program
from deepseek_jax.train.supervised_program import supervised_program

LARGEST = 8  # the power whose mean stands for the largest: (sum |x|^8)^(1/8) is at least that, and little more


def input_sums(measure: Measure, given: Source, batches: int, power: int = 2) -> dict[str, Float[Array, "N I"]]:
    """By path, the sum of |x|^power over the tokens (of experts: those routed there) of `batches` training batches.

    Of an expert's down projection, x has been multiplied with the routing weight.  Raises UserError of EfficientNet,
    whose products do not watch.
    """
    _check_watched(given)
    program = _watching_program(measure, power)
    sums = jax.jit(jax.grad(lambda params, batch: _loss(program, params, given.buffers, batch)))
    total = None
    for batch in measure.training_batches(batches):
        found = sums(given.params, batch)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    flat = flatten_dict(total, sep="/")
    linear = {path: matrix for path, matrix in matrices(flat).items() if matrix.kind == LINEAR}
    return {path: matrix.fold(flat[path])[:, :, 0] for path, matrix in linear.items()}


def _check_watched(given: Source):
    if given.experiment.family == "supervised" and (kind := given.model.convolution.kind) != "blocks":
        raise UserError(
            f"what flows into the kernels of {kind} cannot be watched; prune with --method magnitude, and quantise "
            "without --activations."
        )


def largest_inputs(measure: Measure, given: Source, batches: int) -> dict[str, float]:
    """By path, a bound on the largest number that flows into any layer of the stack; paths with none are left out."""
    sums = input_sums(measure, given, batches, LARGEST)
    found = {path: float(np.asarray(each).max()) ** (1 / LARGEST) for path, each in sums.items()}
    return {path: largest for path, largest in found.items() if largest > 0}


def _watching_program(measure: Measure, power: int) -> Program:
    task = measure.setup.task
    if task.experiment.family == "supervised":
        return supervised_program(task.experiment, task.model, watching(power))
    return language_model_program(task.experiment, bytes_a_target(task.corpus), watching(power))


def _loss(program: Program, params, buffers, batch) -> Array:
    """Of the first microbatch, as at the end of the run."""
    scheduled = program.scheduled(jnp.int32(2**30)) | {"microbatch": 0}
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    return program.loss(params, buffers, first, program.totals(batch), scheduled)[0]
