"""Several processes that train as one: found and connected by jax.distributed, ended together.

Nothing here starts processes.  SLURM, Kubernetes, Open MPI and Cloud TPU do, and jax finds out from them who is who; on
machines without any of these, three variables say it: JAX_COORDINATOR_ADDRESS (host:port of process 0),
JAX_NUM_PROCESSES and JAX_PROCESS_ID.  JAX_NUM_PROCESSES=1 keeps a process alone whatever started it.
"""

import contextlib
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from deepseek_jax import full_disk
from deepseek_jax.errors import UserError

HEARTBEAT_SECONDS = 30  # without a sign of life from one process after which jax ends the others
PREPARING_SECONDS = 3600  # by which one process may have its data ready later than another
LAST_PORT = 2**16 - 1
AGAIN = os.EX_TEMPFAIL  # exit status of a process whose work another one's end, or a signal, cut short: start it again

# What jax says where there is nothing to connect: no launcher was found, or jax already runs in this process.
ALONE = ("coordinator_address should be defined", "must be called before any JAX calls")
# Words of the errors that the end of another process causes, in gloo, gRPC, NCCL and jax's coordination service.
LOST_PEER = ("gloo", "connection", "unavailable", "nccl", "coordination", "heartbeat", "socket closed", "barrier")

_BARRIERS = itertools.count()  # no barrier may have the name of one before


def connect():
    """Joins the other processes of this run, if it has any.  Call before anything asks jax for devices."""
    if jax.distributed.is_initialized():
        return
    number, count = (_variable(name) for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"))
    if count == 1:
        return
    _check_address()
    try:
        jax.distributed.initialize(num_processes=count, process_id=number, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        asked_for = number is not None or count is not None
        if not asked_for and any(reason in str(error) for reason in ALONE):
            return
        raise UserError(
            f"the processes of this run cannot be connected ({_first_line(error)}); set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID in each, or JAX_NUM_PROCESSES=1 to run this one alone."
        ) from None
    if jax.default_backend() == "cpu":
        # Only process 0 keeps programs, and on CPUs no other can read them: it would start a step while they compile.
        jax.config.update("jax_enable_compilation_cache", False)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Connects, runs the block, and ends this process with the others.

    When the block fails in a run of several, the process says why and ends at once: leaving in good order would wait
    for processes that are gone, or that wait for this one.
    """
    connect()
    if not jax.distributed.is_initialized():
        yield
        return
    try:
        yield
    except BaseException as error:
        status = _report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    jax.distributed.shutdown()


def is_leader() -> bool:
    """Whether this process writes what a run has one of: metrics, reports, samples, what a person sees."""
    return jax.process_index() == 0


def barrier():
    """Waits for all the others, for as long as preparing data may take one of them longer.

    Asks the coordinator, no device: of a computation that all take part in, gloo gives up after 30 seconds on those
    that come late.
    """
    if jax.process_count() > 1:
        arrive = ocp.multihost.get_barrier_sync_fn()
        arrive(key=f"sync {next(_BARRIERS)}", timeout_ms=PREPARING_SECONDS * 1000)


def compiled_by_all(jitted: Callable) -> Callable:
    """A jitted function that no process runs before all have compiled it, for arguments of each shape.

    They compile apart, and on a busy machine one takes longer than the 30 seconds that gloo waits for those that come
    late.
    """
    if jax.process_count() == 1:
        return jitted
    compiled = {}

    def call(*arguments):
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
        if shapes not in compiled:
            compiled[shapes] = jitted.lower(*arguments).compile()
            barrier()
        return compiled[shapes](*arguments)

    return call


def broadcast_from_leader(number: int) -> int:
    """The number that the leading process gives, in all of them, however late it comes; each has to ask."""
    barrier()
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def minimum_over_processes(number: int) -> int:
    """The least of the numbers that the processes give, in all of them, however late one comes; each has to ask."""
    barrier()
    return int(np.min(multihost_utils.process_allgather(np.int32(number))))


def check_shared(path: Path):
    """Raises UserError in a process that does not see a file which the leading one has written."""
    barrier()
    if not path.exists():
        raise UserError(f"{path} is not seen from here; all processes need the run directory, on a shared file system.")


def is_lost_peer(error: BaseException | None) -> bool:
    """Whether an error comes from another process that is no longer there."""
    if jax.process_count() == 1:
        return False
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return any(word in str(error).lower() for word in LOST_PEER)
        error = error.__cause__ or error.__context__
    return False


def _report(error: BaseException) -> int:
    """Says on stderr what ended this process; gives its exit status."""
    who = f"deepseek-jax: process {jax.process_index()} of {jax.process_count()}:"
    if is_lost_peer(error):
        print(
            f"{who} another process ended or lost its connection ({_first_line(error)}); see what that one said, then "
            "start all of them again: they go on from the last checkpoint.",
            file=sys.stderr,
        )
        return AGAIN
    if isinstance(error, UserError) or full_disk.is_said_by(error):
        print(f"{who} {error if isinstance(error, UserError) else full_disk.SENTENCE}", file=sys.stderr)
        return 2
    traceback.print_exception(error)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _variable(name: str) -> int | None:
    text = os.environ.get(name)
    try:
        return int(text) if text else None
    except ValueError:
        raise UserError(f"{name} is {text!r}; it must be a whole number.") from None


def _check_address():
    """A port that cannot be would be waited for."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    found = re.fullmatch(r".+:([0-9]{1,5})", address or "")
    if address and not (found and 1 <= int(found[1]) <= LAST_PORT):
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be host:port of process 0, as in node0:7777, the port "
            f"from 1 to {LAST_PORT}."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
