"""A run that goes on from a checkpoint of another one, with settings and a directory of its own (start.full_state)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from deepseek_jax import record
from deepseek_jax.config import plain
from deepseek_jax.data.batches import TrainBatches
from deepseek_jax.errors import UserError
from deepseek_jax.fields import flatten
from deepseek_jax.models import tree
from deepseek_jax.train import start
from deepseek_jax.train.checkpoints import checkpoint
from deepseek_jax.train.checkpoints.checkpoint import RunPosition
from deepseek_jax.train.checkpoints.restore import sizes
from deepseek_jax.train.setup import Setup
from deepseek_jax.train.state import State, initial_averages, shardings_of

# Settings on which it depends whether scores of the two runs can be compared.
JUDGED_BY = ("stopping.metric", "stopping.highest", "eval.batch_size", "eval.batches")
# Prefixes of settings on which the model's arrays depend.
SHAPING = ("model.", "parts.", "tune.", "prune.", "quantize.")


def begin(setup: Setup, batches: TrainBatches, say: Callable[[str], None]) -> tuple[State, RunPosition]:
    """(state, position) of the checkpoint that `start` names; `batches` go on from there if they are of the same data.

    `say` is given notes on what differs.  The best score is kept only if it is that of this checkpoint: early stopping
    could not restore another.  UserError if the checkpoint lacks state that this experiment's steps need, or is not
    before its last step.
    """
    asked, directory = setup.experiment.start, Path(setup.experiment.start.checkpoint)
    if record.kind(directory) != "run":
        raise UserError(
            f"start.full_state is set, but {directory} is not a run directory; name one, or leave start.full_state out."
        )
    other = record.read(directory)
    start.check_family(setup, other)
    start.check_tokenizer(setup)
    step = checkpoint.find(directory, checkpoint.best_step(directory) if asked.best else asked.step or None)
    done, steps = checkpoint.read_position(directory, step), setup.experiment.train.steps
    if done.model_only:
        raise UserError(f"{directory} holds a model without optimizer state; leave start.full_state out.")
    if step >= steps:
        raise UserError(
            f"train.steps is {steps}, which includes the {step} steps that {directory} took up to this checkpoint; "
            "raise it, or name an earlier checkpoint by start.step."
        )

    here = flatten(plain(dataclasses.replace(setup.experiment, model=setup.task.model)))
    there = flatten(plain(dataclasses.replace(other, model=sizes(other, directory))))
    state = _read(setup, step, here, there)
    learned = {key: value for key, value in here.items() if not key.startswith((*record.FREE, "start."))}
    where = ", ".join(filter(None, (start.differences(learned, there), *start.of_other_data(setup))))
    say(f"branching from step {step} of {directory}" + f", where {where}" * bool(where))
    if not batches.reads_same(done.data):
        say("the data are read from their beginning: these, their order or the size of a microbatch differ there")
        return state, RunPosition(step, batches.state())
    batches.restore(done.data)
    if done.best_step == step and all(here[key] == there[key] for key in JUDGED_BY):
        return state, RunPosition(step, done.data, done.best_score, step)
    return state, RunPosition(step, done.data)


def _read(setup: Setup, step: int, here: dict, there: dict) -> State:
    """The state of the other run's checkpoint, on this run's devices; moving averages begin here if it has none.

    UserError if it does not fit, with the reason from the settings of both runs, `here` and `there`.
    """
    directory, program, abstract = Path(setup.experiment.start.checkpoint), setup.program, setup.abstract
    ours = {path: leaf.shape for path, leaf in tree.by_path(abstract).items()}
    theirs = checkpoint.read_shapes(directory, step)
    for path in sorted(ours | theirs, key=lambda path: path.startswith("opt_state/")):  # moments are not at fault first
        if ours.get(path) != theirs.get(path) and not path.startswith("ema/"):
            prefixes = (*SHAPING, "optimizer.") if path.startswith("opt_state/") else SHAPING
            because = start.differences({key: here[key] for key in here if key.startswith(prefixes)}, there)
            because = because or "the state has other parts"
            start.check_shape(setup, path, ours.get(path), theirs.get(path), because, "leave start.full_state out")
    averaged = any(path.startswith("ema/") for path in theirs)
    wanted = abstract if averaged else {key: part for key, part in abstract.items() if key != "ema"}
    state = checkpoint.read_state(directory, step, wanted)
    taken, skipped = int(state["step"]), int(state["skipped"])
    if taken != step:
        raise UserError(
            f"checkpoint {step} of {directory} is that of step {taken}, which early stopping has restored; set "
            f"start.step={taken}."
        )
    if skipped and setup.experiment.train.on_nonfinite == "stop":  # which would drop every step after the first dropped
        raise UserError(f"{directory} has dropped {skipped} steps that were not finite; set train.on_nonfinite=skip.")
    if wanted.keys() != abstract.keys():
        averages = jax.jit(
            lambda *model: initial_averages(program, *model), out_shardings=shardings_of(abstract["ema"])
        )
        state["ema"] = averages(state["params"], state["buffers"])
    return state
