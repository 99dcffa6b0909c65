"""Finds which batch sizes fit in memory and which is fastest: each is compiled, measured and, if it fits, timed."""

import dataclasses
import math
import time
from collections.abc import Iterator

import jax
import numpy as np
import psutil

from deepseek_jax.config import AnyExperiment
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.pipeline import smallest_batch
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.state import make_state

STEPS = 5  # timed, after one warm-up step
MOST_DOUBLINGS = 16


@dataclasses.dataclass(frozen=True)
class Trial:
    """`bytes`: memory per device of the compiled step; `seconds`: median time of a step, None if it does not fit."""

    batch_size: int
    bytes: int
    seconds: float | None

    @property
    def speed(self) -> float:
        """Records or sequences a second."""
        return self.batch_size / self.seconds if self.seconds else 0.0


def trials(experiment: AnyExperiment, limit: float | None) -> Iterator[Trial]:
    """Tries batch sizes, each twice the one before, up to the first that does not fit in `limit` bytes per device.

    The first is the odd part of train.batch_size, raised to a multiple that the mesh allows.  `limit` None: the memory
    that the device reports, else this machine's free memory divided by its devices.
    """
    limit = limit or available_bytes()
    size = experiment.train.batch_size
    while size % 2 == 0:
        size //= 2
    size = math.lcm(size, smallest_batch(make_mesh(experiment.mesh), experiment.train.pipeline_microbatches))
    for _ in range(MOST_DOUBLINGS):
        trial = _try(_of_size(experiment, size), limit)
        yield trial
        if trial.seconds is None:
            return
        size *= 2


def available_bytes() -> int:
    """Memory that one local device can use."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or psutil.virtual_memory().available // jax.local_device_count()


def _of_size(experiment: AnyExperiment, size: int) -> AnyExperiment:
    train = dataclasses.replace(experiment.train, batch_size=size, microbatch_size=0, ramp_start=0)
    return dataclasses.replace(experiment, train=train)


def _try(experiment: AnyExperiment, limit: float) -> Trial:
    setup, size = prepare(experiment), experiment.train.batch_size
    batch = next(setup.inputs())
    compiled = setup.compiled_step().lower(setup.abstract, batch).compile()
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    needed -= memory.alias_size_in_bytes
    if needed > limit:
        return Trial(size, needed, None)
    return Trial(
        size, needed, _median_seconds(compiled, make_state(setup.program, setup.optimizer, setup.abstract), batch)
    )


def _median_seconds(compiled, state, batch) -> float:
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        state, measured = compiled(state, batch)
        jax.block_until_ready(measured)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))
