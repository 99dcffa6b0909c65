"""A view: how the trained arrays (e.g. adapters) become the weights that the model computes with."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class View:
    """Functions that map between a model's own arrays and those that are trained and checkpointed.

    split(params, buffers) -> (params, buffers): from the model's own arrays to the trained parameters and the buffers
        {"model": the model's, ...}, which also hold whatever else the view keeps from the optimizer.
    weights(params, buffers, update) -> (params, buffers): the inverse.  It is traced into the loss, so gradients flow
        through it.  `update` is the update's number, None outside training.  Weights of stacked layers may be lazy, to
        be computed in each layer (models/lazy.py).
    axes(params, buffers) -> (params, buffers): like `split`, for the trees of logical axes.
    update(params, buffers, update) -> buffers: called after each optimizer update; by default returns them unchanged.
    """

    split: Callable
    weights: Callable
    axes: Callable
    update: Callable = lambda params, buffers, update: buffers
