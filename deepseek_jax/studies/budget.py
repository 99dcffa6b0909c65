"""How many training steps a budget allows, so that all variants of a study spend the same.

The tokens of a step are the positions of its rows, padding included.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from deepseek_jax.config import AnyExperiment
from deepseek_jax.errors import UserError
from deepseek_jax.files import read_json, write_json
from deepseek_jax.studies import reasons
from deepseek_jax.train.optim import schedules

TRIAL_STEPS = 30  # of the trial that measures a variant's speed if seconds are held equal


class Unmeasured(UserError):
    """The budget is in seconds, and the variant's speed has not been measured yet."""


class TrialFailed(UserError):
    """The budget is in seconds, and the trial that should measure the variant's speed failed."""


def steps(experiment: AnyExperiment, equal: str, budget: float, speed: Path | None) -> int:
    """The largest number of steps within the budget; UserError if it is less than one.

    flops: of the model's forward and backward pass (train/flops.py).  seconds: at the speed that a short trial measures
    once and stores in the file `speed`, so that a resumed study has the same number of steps.
    """
    if equal == "records" and experiment.family == "language_model":
        raise UserError("equal='records' is for labelled sets; a language model's budget is in tokens.")
    allowed = budget  # in tokens, of a labelled set records
    if equal == "flops":
        allowed /= _flops_a_token(experiment)
    elif equal == "seconds":
        allowed *= _units_a_second(speed)
    count = int(budget) if equal == "steps" else _most_steps(experiment, allowed)
    if not count:
        raise UserError(
            f"a budget of {budget:g} {equal} is less than one step of train.batch_size sequences; raise it."
        )
    return count


def units(experiment: AnyExperiment) -> list[int]:
    """Tokens (records, if not a language model) spent in total after each step."""
    train = experiment.train
    sizes = (schedules.batch_size(train, step) * _row(experiment) for step in range(train.steps))
    return list(itertools.accumulate(sizes))


def _row(experiment: AnyExperiment) -> int:
    return experiment.data.sequence_length if experiment.family == "language_model" else 1


def _most_steps(experiment: AnyExperiment, budget: float) -> int:
    """By bisection: a batch-size ramp grows longer with the steps, so the total is not proportional to them."""

    def fits(count):
        return _row(experiment) * schedules.sequences(dataclasses.replace(experiment.train, steps=count)) <= budget

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _flops_a_token(experiment: AnyExperiment) -> float:
    """Training FLOPs per token, mean over the positions of a row that is a single document."""
    if experiment.family != "language_model":
        raise UserError("equal='flops' is for language models only; use records, steps or seconds.")
    from deepseek_jax.models.flops import attention_a_token
    from deepseek_jax.train.flops import training_flops

    seen = np.arange(1, experiment.data.sequence_length + 1)  # no JAX: planning must not take a device from workers
    attention = float(attention_a_token(experiment.model, seen).mean())
    return training_flops(experiment.model, 1.0, attention)


def _units_a_second(speed: Path) -> float:
    if not speed.exists():
        raise Unmeasured(f"its speed has not been measured yet: there is no file {speed}.")
    if reason := reasons.read(speed):
        raise TrialFailed(f"the trial that measures its speed failed: {reason}")
    return read_json(speed)["per_second"]


def measure_speed(experiment: AnyExperiment, speed: Path):
    """Trains the experiment for TRIAL_STEPS and writes its median throughput to the file `speed`.

    Without the batch-size ramp: each of its stages would compile another training step.
    """
    from rich.console import Console

    from deepseek_jax.train.loop import train

    schedule = dataclasses.replace(experiment.optimizer.schedule, name="constant", warmup_steps=0)
    trial = dataclasses.replace(
        experiment,
        optimizer=dataclasses.replace(experiment.optimizer, schedule=schedule),
        train=dataclasses.replace(experiment.train, steps=TRIAL_STEPS, ramp_start=0),
        start=dataclasses.replace(experiment.start, full_state=False),  # which may be beyond those steps
        log=dataclasses.replace(experiment.log, every=5, tensorboard=False),
        eval=dataclasses.replace(experiment.eval, batches=1, final_batches=1, samples=0),
    )
    scores = train(trial, speed.with_suffix(""), Console(quiet=True))
    found = [value for key, value in scores.items() if key.endswith("_per_second")]
    if not found:
        raise KeyboardInterrupt  # SIGTERM arrived before any speed was measured: end this process
    write_json(speed, {"per_second": found[0]})
