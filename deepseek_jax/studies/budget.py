"""How many steps a budget allows: what all variants of a study spend alike.

A step's tokens are places in rows, padding included.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np

from deepseek_jax.config import AnyExperiment
from deepseek_jax.errors import UserError
from deepseek_jax.train import schedules
from deepseek_jax.whole_files import write_json

TRIAL_STEPS = 30  # by which a variant's speed is measured where seconds are held equal

FAILED = "failed"  # the one entry of the file of a trial that failed


class Unmeasured(UserError):
    """A budget in seconds, of a variant whose speed is not known yet."""


class TrialFailed(UserError):
    """A budget in seconds, of a variant in the trial of whose speed something went wrong."""


def steps(experiment: AnyExperiment, equal: str, budget: float, speed: Path | None) -> int:
    """The most steps within the budget.

    flops: of the model forward and backward, as the architecture counts them (train/flops.py).  seconds: at the speed
    that a short trial measures once and keeps in the file `speed`, so that a resumed study has the same steps.
    """
    allowed = budget  # in tokens or records
    if equal == "flops":
        allowed /= _flops_a_token(experiment)
    elif equal == "seconds":
        allowed *= _units_a_second(speed)
    count = int(budget) if equal == "steps" else _most_steps(experiment, allowed)
    if not count:
        raise UserError(f"a budget of {budget:g} {equal} is less than one step of train.batch_size sequences.")
    return count


def units(experiment: AnyExperiment) -> list[int]:
    """Tokens (of other families, records) spent after each step."""
    train = experiment.train
    sizes = (schedules.batch_size(train, step) * _row(experiment) for step in range(train.steps))
    return list(itertools.accumulate(sizes))


def _row(experiment: AnyExperiment) -> int:
    return experiment.data.sequence_length if experiment.family == "language_model" else 1


def _most_steps(experiment: AnyExperiment, budget: float) -> int:
    """By bisection: a ramp of the batch stretches with the steps, so their total is no plain product."""

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
    """Mean over the places of a row, as if it were one document."""
    if experiment.family != "language_model":
        raise UserError("equal='flops' counts language models only; hold records, steps or seconds equal.")
    from deepseek_jax.models.flops import attention_a_token
    from deepseek_jax.train.flops import training_flops

    seen = np.arange(1, experiment.data.sequence_length + 1)  # a process that only plans takes no device from workers
    attention = float(attention_a_token(experiment.model, seen).mean())
    return training_flops(experiment.model, 1.0, attention)


def forget_failure(speed: Path):
    """Lets a trial that failed be tried again."""
    if speed.exists() and FAILED in json.loads(speed.read_text()):
        speed.unlink()


def _units_a_second(speed: Path) -> float:
    if not speed.exists():
        raise Unmeasured(f"its speed is not measured yet: {speed} is not there.")
    found = json.loads(speed.read_text())
    if FAILED in found:
        raise TrialFailed(f"the trial of its speed failed: {found[FAILED]}")
    return found["per_second"]


def measure_speed(experiment: AnyExperiment, speed: Path):
    """Trains the experiment for TRIAL_STEPS and writes the median of its speed into the file `speed`.

    Without its batch ramp, each stage of which would compile a step of its own.
    """
    from rich.console import Console

    from deepseek_jax.train.loop import train

    schedule = dataclasses.replace(experiment.optimizer.schedule, name="constant", warmup_steps=0)
    trial = dataclasses.replace(
        experiment,
        optimizer=dataclasses.replace(experiment.optimizer, schedule=schedule),
        train=dataclasses.replace(experiment.train, steps=TRIAL_STEPS, ramp_start=0),
        log=dataclasses.replace(experiment.log, every=5, tensorboard=False),
        eval=dataclasses.replace(experiment.eval, batches=1, final_batches=1, samples=0),
    )
    scores = train(trial, speed.with_suffix(""), Console(quiet=True))
    found = [value for key, value in scores.items() if key.endswith("_per_second")]
    if not found:
        raise KeyboardInterrupt  # SIGTERM came before there was any speed, and this process is to end
    write_json(speed, {"per_second": found[0]})
