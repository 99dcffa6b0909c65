"""Which evaluation was the best, and whether a run has waited long enough for a better one."""

import dataclasses
import math

from deepseek_jax.config import StoppingConfig
from deepseek_jax.errors import UserError
from deepseek_jax.tasks.scores import HIGHER, LOWER
from deepseek_jax.train.checkpoints.checkpoint import RunPosition


def check(config: StoppingConfig, measured: tuple[str, ...]):
    """UserError if the settings do not fit the scores that evaluations produce, whose names are `measured`."""
    if measured and config.metric not in measured:
        known = ", ".join(measured)
        raise UserError(f"stopping.metric is {config.metric!r}, which no evaluation measures; choose one of {known}.")
    name = config.metric.removeprefix("val/").partition("/")[0]
    if name in (LOWER if config.highest else HIGHER):
        better, answer = ("less", "false") if config.highest else ("more", "true")
        raise UserError(
            f"stopping.metric is {config.metric!r}, of which {better} is better; set stopping.highest={answer}."
        )
    if config.patience and not measured:
        raise UserError(
            f"stopping.patience is {config.patience}, but nothing is held out to stop by: data.held_out or dataset.val "
            "comes to no record; raise it, or make the patience 0."
        )


def judge(config: StoppingConfig, done: RunPosition, scores: dict[str, float], step: int) -> RunPosition:
    """The progress after the evaluation of `step`: the best so far, how many have passed since, whether to stop.

    `scores` may lack the metric: nothing was held out, or the first batches held nothing of its domain.
    """
    if config.metric not in scores:
        return done
    cost = -scores[config.metric] if config.highest else scores[config.metric]
    if cost < done.best_score - config.min_delta or (math.isfinite(cost) and math.isinf(done.best_score)):
        return dataclasses.replace(done, best_score=cost, best_step=step, waited=0)
    waited = done.waited + 1
    return dataclasses.replace(done, waited=waited, stopped=0 < config.patience <= waited)
