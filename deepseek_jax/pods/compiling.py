"""Compiles the training step for a mesh of devices that this machine does not have."""

import dataclasses
import time

import jax
from jax.sharding import Mesh

from deepseek_jax.parallel.rules import batch_sharding
from deepseek_jax.pods.remarks import captured_remarks
from deepseek_jax.train.abstract import Abstract
from deepseek_jax.train.state import abstract_state
from deepseek_jax.train.step import compile_step, make_step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`executable` is None if the step does not fit into memory; `refusal` is then the compiler's message."""

    executable: jax.stages.Compiled | None
    refusal: str
    seconds: float
    remarks: list[str]  # the compiler's, on arrays that it could reshard only by replicating them on every device


def compile_for(abstract: Abstract, mesh: Mesh) -> Outcome:
    """Compiles the step.  A lack of memory is part of the Outcome; any other error of the compiler is raised."""
    experiment = abstract.experiment
    ema = experiment.train.ema_decay > 0
    state = abstract_state(abstract.program, abstract.optimizer, mesh, ema)
    at = batch_sharding(mesh, leading=1)
    batch = {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at) for key, leaf in abstract.batch.items()}
    step = compile_step(make_step(abstract.program, abstract.optimizer, experiment), state)
    started, executable, refusal = time.perf_counter(), None, ""
    with captured_remarks() as remarks:
        try:
            executable = step.lower(state, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
                raise
            refusal = str(error).removeprefix("RESOURCE_EXHAUSTED: ")
    return Outcome(executable, refusal, time.perf_counter() - started, remarks)
