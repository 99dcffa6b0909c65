"""The cost of training: tokens until a loss is reached, and the memory of a step."""

import dataclasses
import functools
import statistics
from collections.abc import Callable

from deepseek_jax.config import AnyExperiment
from deepseek_jax.studies import budget, curves
from deepseek_jax.train import setup
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.train.optim.schedules import microbatches
from deepseek_jax.train.reporting.shown import SHOWN
from deepseek_jax.train.reporting.sinks import METRICS_FILE, read_rows


def tokens_to(loss: float) -> Callable[[Trained], dict[str, float]]:
    """Makes a measure: tokens (or records) and seconds of training until the smoothed training loss reached `loss`.

    It returns {} for a run that never reached it.
    """

    def measure(trained: Trained) -> dict[str, float]:
        shown, spent = SHOWN[trained.experiment.family], budget.units(trained.experiment)
        rows = [row for row in read_rows(trained.directory / METRICS_FILE) if shown.loss in row]
        spent_at, mean, _ = curves.mean_curve([[[spent[row["step"] - 1], row[shown.loss]] for row in rows]])
        if not (mean <= loss).any():  # also if it is NaN
            return {}
        needed = curves.reached(spent_at, mean, loss)
        speed = statistics.median(row[shown.speed] for row in rows if shown.speed in row)
        return {f"tokens_to_{loss}": needed, f"seconds_to_{loss}": needed / speed}

    measure.__name__, measure.gives = f"tokens_to_{loss}", (f"tokens_to_{loss}", f"seconds_to_{loss}")
    return measure


def step_memory(trained: Trained) -> dict[str, float]:
    """Temporary bytes that the compiled training step needs besides state and batch; the same for every seed."""
    first = dataclasses.replace(trained.experiment.train, seed=0)
    return {"step_memory_bytes": _temporaries(dataclasses.replace(trained.experiment, train=first))}


@functools.cache  # a worker that measures several seeds of a variant compiles the step once
def _temporaries(experiment: AnyExperiment) -> int:
    ready = setup.prepare(experiment)
    batch = ready.place([next(ready.train_batches())] * microbatches(experiment.train))
    return ready.compiled_step().lower(ready.abstract, batch).compile().memory_analysis().temp_size_in_bytes


step_memory.gives = ("step_memory_bytes",)
