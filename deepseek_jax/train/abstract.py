"""An experiment's training step and the shapes of its inputs, without data, arrays or devices.

K microbatches a step  M sequences a microbatch  S tokens a sequence
"""

import dataclasses

import jax
import numpy as np
import optax

from deepseek_jax import plugins
from deepseek_jax.checking import require_family
from deepseek_jax.config import AnyExperiment, Experiment
from deepseek_jax.train.optim import groups
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.optim.schedules import microbatch_size, microbatches
from deepseek_jax.train.program import Program, changed, language_model_program
from deepseek_jax.train.state import State, initial_state
from deepseek_jax.train.views import as_trained

FIELDS = ("tokens", "segment_ids", "positions", "domain_ids")  # keys of a batch, as data/packing.py builds it


@dataclasses.dataclass(frozen=True)
class Abstract:
    """`state` and `batch` [K, M, S] are shapes and dtypes, without shardings."""

    experiment: Experiment
    program: Program
    optimizer: optax.GradientTransformationExtraArgs
    state: State
    batch: dict[str, jax.ShapeDtypeStruct]


def describe(experiment: AnyExperiment) -> Abstract:
    """The abstract training step of a language model; UserError for other families."""
    require_family("language_model", experiment.family, "the config", "plan and compile know language models only")
    program = as_trained(language_model_program(experiment, np.ones(1)), experiment)
    program = changed(program, plugins.changes(experiment.plugins))
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, program.axes)
    ema = experiment.train.ema_decay > 0
    state = jax.eval_shape(lambda: initial_state(program, *program.make_parameters(), optimizer, ema))
    groups.check(experiment.optimizer.groups, state["params"])
    train = experiment.train
    shape = microbatches(train), microbatch_size(train), experiment.data.sequence_length
    fields = (*FIELDS, "answers") if experiment.data.chat else FIELDS
    batch = {field: jax.ShapeDtypeStruct(shape, np.int32) for field in fields}
    return Abstract(experiment, program, optimizer, state, batch)
