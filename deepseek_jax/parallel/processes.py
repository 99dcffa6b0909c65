"""Multi-process runs: processes are connected by jax.distributed and ended together.

Nothing here starts processes.  SLURM, Kubernetes, Open MPI or Cloud TPU does, and JAX gets the processes' addresses and
numbers from it.  Without any of these, set three variables: JAX_COORDINATOR_ADDRESS (host:port of process 0),
JAX_NUM_PROCESSES and JAX_PROCESS_ID.  JAX_NUM_PROCESSES=1 makes a process run alone, whatever started it.
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

HEARTBEAT_SECONDS = 30  # JAX ends all processes if one has sent no heartbeat for this long
PREPARING_SECONDS = 3600  # timeout of barriers: processes may take this much longer than others to prepare their data
LAST_PORT = 2**16 - 1
AGAIN = os.EX_TEMPFAIL  # exit status of a process interrupted by a signal or by another one's end: start it again

# JAX's error messages if there is nothing to connect: no launcher was found, or JAX is already in use in this process.
ALONE = ("coordinator_address should be defined", "must be called before any JAX calls")
# Words in the errors of gloo, gRPC, NCCL and JAX's coordination service after another process has ended.
LOST_PEER = ("gloo", "connection", "unavailable", "nccl", "coordination", "heartbeat", "socket closed", "barrier")

_BARRIERS = itertools.count()  # barrier names must not be reused


def connect():
    """Connects to the other processes of this run, if any.  Call it before anything asks JAX for devices.

    Raises UserError if the processes cannot be connected.
    """
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
        # Only process 0 writes to the compilation cache, and on CPUs the others cannot read its programs: with the
        # cache, process 0 would start a step while the others still compile.
        jax.config.update("jax_enable_compilation_cache", False)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Connects the processes, runs the block, and shuts down together with the others.

    If the block fails in a multi-process run, the process prints the error and exits immediately: an orderly shutdown
    would wait for processes that are gone, or that wait for this one.
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
    """Whether this is the process that writes metrics, reports and samples, and prints, on behalf of the whole run."""
    return jax.process_index() == 0


def barrier():
    """Waits until all processes have called it, for up to PREPARING_SECONDS.

    It uses the coordinator instead of a collective, as gloo's collectives time out after 30 seconds.
    """
    if jax.process_count() > 1:
        arrive = ocp.multihost.get_barrier_sync_fn()
        arrive(key=f"sync {next(_BARRIERS)}", timeout_ms=PREPARING_SECONDS * 1000)


def compiled_by_all(jitted: Callable) -> Callable:
    """Wraps a jitted function: for each new set of argument shapes, no process runs it until all have compiled it.

    Processes compile independently, and on a busy machine one may finish later than the 30 seconds that gloo waits.
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
    """Returns the leader's `number` in all processes.  Collective: every process must call it; some may be late."""
    barrier()
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def minimum_over_processes(number: int) -> int:
    """Returns the minimum of the processes' numbers.  Collective: every process must call it; some may be late."""
    barrier()
    return int(np.min(multihost_utils.process_allgather(np.int32(number))))


def check_shared(path: Path):
    """Raises UserError in each process that does not see `path`, which the leader has written.  Collective."""
    barrier()
    if not path.exists():
        raise UserError(f"this process does not see {path}; all need the run directory, on a shared file system.")


def is_lost_peer(error: BaseException | None) -> bool:
    """Whether an error was caused by the end of another process, or by losing the connection to it."""
    if jax.process_count() == 1:
        return False
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return any(word in str(error).lower() for word in LOST_PEER)
        error = error.__cause__ or error.__context__
    return False


def _report(error: BaseException) -> int:
    """Prints to stderr why this process ends; returns its exit status."""
    who = f"deepseek-jax: process {jax.process_index()} of {jax.process_count()}:"
    if is_lost_peer(error):
        print(
            f"{who} another process ended or lost its connection ({_first_line(error)}); see its error, then start all "
            "of them again: they resume from the last checkpoint.",
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
    """Raises UserError for an invalid address: JAX would wait for a connection to an impossible port."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    found = re.fullmatch(r".+:([0-9]{1,5})", address or "")
    if address and not (found and 1 <= int(found[1]) <= LAST_PORT):
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be host:port of process 0, as in node0:7777, the port "
            f"from 1 to {LAST_PORT}."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
