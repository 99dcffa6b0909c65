"""Turns an experiment into one that only scores its model, on whatever devices are present."""

import dataclasses

import jax

from deepseek_jax.config import AnyExperiment
from deepseek_jax.parallel.mesh import inference_config
from deepseek_jax.train.optim.schedules import microbatch_size
from deepseek_jax.train.views import without_views


def scoring_experiment(experiment: AnyExperiment, batch_size: int = 0) -> AnyExperiment:
    """The experiment without views, on a mesh of all devices, with batch sizes rounded up to what these can share.

    `batch_size`: of held-out batches; 0: as the experiment says.
    """
    train, evaluation = experiment.train, experiment.eval
    micro = _divided(microbatch_size(train), jax.device_count())
    size = _divided(batch_size or evaluation.batch_size, jax.device_count())
    batches = {"microbatch_size": micro, "batch_size": _divided(train.batch_size, micro)}
    train = dataclasses.replace(train, **batches, ramp_start=0, ramp_fraction=0.0)
    evaluation = dataclasses.replace(evaluation, batch_size=size)
    mesh = inference_config(experiment.model)
    return dataclasses.replace(without_views(experiment), train=train, eval=evaluation, mesh=mesh)


def _divided(size: int, parts: int) -> int:
    """`size` rounded up to a multiple of `parts`; 0 stays 0."""
    return -(-size // parts) * parts
