"""This project's own training step, compiled for a mesh of devices that are not here."""

import contextlib
import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from deepseek_jax.parallel.rules import batch_sharding
from deepseek_jax.train.abstract import Abstract
from deepseek_jax.train.state import abstract_state
from deepseek_jax.train.step import compile_step, make_step

REMATERIALISED = re.compile(r"nvoluntary full rematerialization")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`executable` is None where memory does not suffice; `refusal` is then what the compiler says."""

    executable: jax.stages.Compiled | None
    refusal: str
    seconds: float
    remarks: list[str]  # of the compiler, on arrays that it could not move but by bringing them whole to every device


def compile_for(abstract: Abstract, mesh: Mesh) -> Outcome:
    """Raises what is neither success nor a lack of memory."""
    experiment = abstract.experiment
    ema = experiment.train.ema_decay > 0
    state = abstract_state(abstract.program, abstract.optimizer, mesh, ema)
    at = batch_sharding(mesh, leading=1)
    batch = {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at) for key, leaf in abstract.batch.items()}
    step = compile_step(make_step(abstract.program, abstract.optimizer, experiment), state)
    started, executable, refusal = time.perf_counter(), None, ""
    with captured_log() as log:
        try:
            executable = step.lower(state, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
                raise
            refusal = str(error).removeprefix("RESOURCE_EXHAUSTED: ")
    remarks = [line for line in log if REMATERIALISED.search(line)]
    return Outcome(executable, refusal, time.perf_counter() - started, remarks)


@contextlib.contextmanager
def captured_log() -> Iterator[list[str]]:
    """The lines that XLA writes past Python to standard error, in a list that is filled at the end."""
    lines = []
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += file.read().splitlines()


def place_of(remark: str) -> str:
    """Where in our code the array comes from: file and line if the compiler names them, else the scope."""
    if found := re.search(r'source_file="([^"]+)" source_line=(\d+)', remark):
        return f"{found[1]}:{found[2]}"
    found = re.search(r'op_name="([^"]+)"', remark)
    return found[1] if found else "a place that the compiler does not name"
