"""Training with quantised matrices: stored in low precision, or trained in float32 and rounded wherever they are used.

Stored ones are buffers: the optimizer does not see them, and checkpoints contain the small type itself.
"""

import functools

import jax

from deepseek_jax.compress.config import QuantizeConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models.lazy import lazy_weight
from deepseek_jax.models.tree import flatten, unflatten
from deepseek_jax.parallel.rules import RULES, STORED
from deepseek_jax.views.matrices import LINEAR, TABLE, Matrix, by_matrix, chosen, matrix_of, ranks
from deepseek_jax.views.rounding import Format, pack, rounded, unpack
from deepseek_jax.views.view import View

ROUNDED = "rounded"  # key of the packed matrices among the buffers


def quantized_view(config: QuantizeConfig) -> View:
    return _straight_through(config) if config.trained else _kept(config)


def rounded_matrices(config: QuantizeConfig, flat: dict) -> dict[str, Matrix]:
    """The matrices that `config` rounds; `flat` holds arrays, or stand-ins with the same dimensions, by path."""
    kinds = (LINEAR, TABLE) if config.weights in ("int8", "int4") else (LINEAR,)
    return chosen(flat, config.paths, "quantize.paths", kinds)


def check_group(config: QuantizeConfig, flat: dict):
    """Raises UserError if config.group divides the inputs of no matrix.  Others get a smaller last group."""
    inputs = {matrix.inputs_of(flat[path].shape) for path, matrix in rounded_matrices(config, flat).items()}
    if config.group and all(size % config.group for size in inputs):
        fitting = [str(size) for size in (256, 128, 64, 32, 16, 8) if any(of % size == 0 for of in inputs)]
        raise UserError(
            f"quantize.group is {config.group}, which divides the inputs of no matrix here "
            f"({', '.join(map(str, sorted(inputs)))}); {', '.join(fitting[:3]) or 'only 0'} would fit."
        )


def form_of(config: QuantizeConfig) -> Format:
    return Format(config.weights, config.group)


def _straight_through(config: QuantizeConfig) -> View:
    def split(params, buffers):
        check_group(config, flatten(params))
        return params, {"model": buffers}

    def weights(params, buffers, update):
        flat = flatten(params)
        for path, matrix in rounded_matrices(config, flat).items():
            flat[path] = lazy_weight(path, functools.partial(_rounded_weight, matrix, form_of(config)), flat[path])
        return unflatten(flat), buffers["model"]

    return View(split, weights, axes=lambda params, buffers: (params, {"model": buffers}))


def _rounded_weight(matrix, form, weight):
    new = rounded(matrix.fold(weight), form).reshape(weight.shape)
    return jax.lax.stop_gradient(new) + (weight - jax.lax.stop_gradient(weight))  # value 0, gradient 1


def _kept(config: QuantizeConfig) -> View:
    form = form_of(config)

    def split(params, buffers):
        flat = flatten(params)
        check_group(config, flat)
        found = {path: pack(flat.pop(path), matrix, form) for path, matrix in rounded_matrices(config, flat).items()}
        return unflatten(flat), {"model": buffers, ROUNDED: unflatten(found)}

    def weights(params, buffers, update):
        flat = flatten(params)
        for path, packed in by_matrix(buffers[ROUNDED]).items():
            matrix = matrix_of(path, packed["values"].ndim)
            flat[path] = lazy_weight(path, functools.partial(unpack, matrix=matrix, form=form), packed)
        return unflatten(flat), buffers["model"]

    def axes(params, buffers):
        flat = flatten(params)
        found = {path: flat.pop(path) for path in rounded_matrices(config, ranks(flat))}
        found = {
            path: {"values": _of_values(path, names, form), "scales": _of_scales(path, names, form)}
            for path, names in found.items()
        }
        return unflatten(flat), {"model": buffers, ROUNDED: unflatten(found)}

    return View(split, weights, axes)


def _of_values(path, names, form):
    """Logical axes of a matrix's packed values.

    In four bits two inputs share a byte.  The tuple (None, name) lets the pairs stay unsharded where the mesh divides
    the number of inputs but not that of pairs.
    """
    leading, inputs, outputs = matrix_of(path, len(names)).split(names)
    return (*leading, *inputs[:-1], (None, inputs[-1]), *outputs) if form.four_bits else names


def _of_scales(path, names, form):
    """Logical axes of a matrix's scales.

    Where the matrix is sharded along its inputs, its scales are sharded along the outputs instead: there are few
    groups of inputs, and their number is rarely divisible.
    """
    leading, inputs, outputs = matrix_of(path, len(names)).split(names)
    if form.kind == "fp8":
        return (*leading, None, None)
    found = [*leading, None, *outputs]
    if apart := [name for name in inputs if RULES.get(name) == RULES[STORED]]:
        wide = len(leading) + 1 if outputs else len(leading) - 1  # each row of a table is a matrix
        found[wide] = (found[wide], *apart)
    return tuple(found)
