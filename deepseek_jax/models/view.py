"""A view: how what is trained becomes the weights that the model computes with."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class View:
    """Functions between a model's own arrays and those that are trained and kept.

    split(params, buffers) -> (params, buffers): from the model's own, what is trained and {"model": its buffers, ...}
        with whatever else the view keeps that no optimizer sees.
    weights(params, buffers, update) -> (params, buffers): the inverse, traced into the loss, so gradients flow through
        it; `update` is the number of the update, None outside of training.  What a stack's layers shall make for
        themselves may be left to them (models/made.py).
    axes(params, buffers) -> (params, buffers): `split` for the trees of logical axes.
    update(params, buffers, update) -> buffers: after each update of the optimizer; as they were by default.
    """

    split: Callable
    weights: Callable
    axes: Callable
    update: Callable = lambda params, buffers, update: buffers
