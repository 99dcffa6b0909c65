"""Views: the model may compute with weights derived from those that are trained: adapted, masked or rounded ones.

A view wraps a program; the step, the loop and checkpoints see only what is trained and what the view keeps beside it.
"""

import dataclasses

from deepseek_jax.config import AnyExperiment
from deepseek_jax.models.lazy import materialised
from deepseek_jax.train.program import Program
from deepseek_jax.views.frozen import frozen_view
from deepseek_jax.views.lora import adapters_view
from deepseek_jax.views.pruned import pruned_view
from deepseek_jax.views.quantized import quantized_view
from deepseek_jax.views.view import View

SECTIONS = ("tune", "prune", "quantize")  # sections of an experiment that ask for views


def views_of(experiment: AnyExperiment) -> list[View]:
    """The views that the experiment asks for, innermost first; [] if the model itself is trained.

    Adapters come first, as the weights beside them may be rounded or masked; frozen comes last, as it chooses among all
    parameters that the others make.
    """
    tune, prune, quantize = experiment.tune, experiment.prune, experiment.quantize
    asked = [
        (tune.lora.rank, adapters_view(tune.lora, experiment.train.seed)),
        (prune.method != "none", pruned_view(prune, experiment.train.steps)),
        (quantize.weights != "none", quantized_view(quantize)),
        (tune.is_on, frozen_view(tune)),
    ]
    return [view for yes, view in asked if yes]


def as_trained(program: Program, experiment: AnyExperiment) -> Program:
    """The model's program, wrapped in the experiment's views."""
    for view in views_of(experiment):
        program = viewed(program, view)
    return program


def split(experiment: AnyExperiment, params: dict, buffers: dict) -> tuple[dict, dict]:
    """(params, buffers) of a model, turned into those that the experiment trains and keeps."""
    for view in views_of(experiment):
        params, buffers = view.split(params, buffers)
    return params, buffers


def own_buffers(experiment: AnyExperiment, buffers: dict) -> dict:
    """The model's own buffers, nested as they are among those that views keep."""
    for _ in views_of(experiment):
        buffers = buffers["model"]
    for _ in views_of(experiment):
        buffers = {"model": buffers}
    return buffers


def axes(experiment: AnyExperiment, params: dict, buffers: dict) -> tuple[dict, dict]:
    """`split` for the trees of the model's logical axes."""
    for view in views_of(experiment):
        params, buffers = view.axes(params, buffers)
    return params, buffers


def weights(experiment: AnyExperiment, params: dict, buffers: dict) -> tuple[dict, dict]:
    """(params, buffers) of the model, computed from those that the experiment trained and kept."""
    for view in reversed(views_of(experiment)):
        params, buffers = view.weights(params, buffers, None)
    return materialised(params), buffers


def without_views(experiment: AnyExperiment) -> AnyExperiment:
    """The experiment without its views, for code that takes the weights of the model itself.

    It has no groups of parameters either, as these may name adapters, which are merged into the weights.
    """
    off = {field.name: field.default for field in dataclasses.fields(experiment) if field.name in SECTIONS}
    return dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, groups=()), **off)


def viewed(program: Program, view: View) -> Program:
    """The program whose parameters are those that the view trains.  Views nest: the last one added is the outermost."""
    axes, buffer_axes = view.axes(program.axes, program.buffer_axes)

    def loss(params, buffers, batch, totals, scheduled):
        return program.loss(*view.weights(params, buffers, scheduled["update"]), batch, totals, scheduled)

    def update_buffers(params, buffers, aux, update):
        inner = program.update_buffers(*view.weights(params, buffers, update), aux, update)
        return view.update(params, buffers | {"model": inner}, update)

    return dataclasses.replace(
        program,
        axes=axes,
        buffer_axes=buffer_axes,
        model=program.model or program,
        make_parameters=lambda: view.split(*program.make_parameters()),
        from_model=lambda params, buffers: view.split(*program.from_model(params, buffers)),
        to_model=lambda params, buffers: program.to_model(*view.weights(params, buffers, None)),
        own_buffers=lambda buffers: {"model": program.own_buffers(buffers["model"])},
        scheduled=lambda update: program.scheduled(update) | {"update": update},
        loss=loss,
        update_buffers=update_buffers,
        score=lambda params, buffers, batch: program.score(*view.weights(params, buffers, None), batch),
    )
