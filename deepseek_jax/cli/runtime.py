"""The process-wide setup that a verb does before jax is imported, and warnings."""

import logging
import os
import re
import sys

from deepseek_jax import disk_cache, full_disk, host_memory
from deepseek_jax.errors import LOG, UserError


def prepare(compile_cache: bool = True, keep_memory: bool = True):
    """Call before jax is imported: keeps compiled programs between runs, memory between steps, and libraries quiet.

    Environment variables that are already set stay as they are; only `compile_cache` False disables the cache anyway.
    """
    if compile_cache:
        disk_cache.keep_programs()
    else:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    if host_devices := re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")):
        os.environ.setdefault("PJRT_NPROC", threads_of(int(host_devices[1])))
    if keep_memory:
        host_memory.keep()
    full_disk.say_once()
    if not LOG.handlers:
        LOG.addHandler(_Said())
    LOG.propagate = False  # libraries add handlers to the root logger, which would print it again


def console(**settings):
    """A rich Console that leaves text as it is: [brackets] in file names stay, and no line is broken."""
    from rich.console import Console

    return Console(markup=False, highlight=False, soft_wrap=True, **settings)


def table(title: str, *columns: str):
    """A rich Table, its first column left-aligned, the others right-aligned; no header if all `columns` are empty."""
    from rich.table import Column, Table

    aligned = (Column(name, justify="right" if number else "left") for number, name in enumerate(columns))
    return Table(*aligned, title=title, title_justify="left", show_header=any(columns))


def warn(sentence: str):
    """Prints a warning to standard error."""
    print(f"deepseek-jax: {sentence}", file=sys.stderr)


def script(main):
    """Runs a script's `main()`; a UserError becomes one sentence and exit status 2."""
    try:
        main()
    except UserError as error:
        warn(str(error))
        sys.exit(2)


def experiment_of(config, overrides):
    """The experiment of a config file with `overrides`; warns of those that have no effect."""
    from deepseek_jax.experiment_file import resolve

    experiment = resolve(config, overrides)
    warn_of_unused(experiment, overrides)
    return experiment


def warn_of_unused(experiment, overrides):
    """Warns of each override that has no effect on the experiment."""
    from deepseek_jax import unused

    for sentence in unused.sentences(experiment, overrides):
        warn(sentence)


class _Said(logging.Handler):
    """Prints warnings logged by the package in the same form as the command line's own messages."""

    def emit(self, record: logging.LogRecord):
        warn(record.getMessage())


def threads_of(host_devices: int) -> str:
    """The number of threads in XLA's pool for this many simulated host devices, as a value of PJRT_NPROC.

    Devices block a thread of the pool while they wait for others in a collective, possibly in several at once.  With
    XLA's one thread per device all may be blocked, so that no device can arrive, and XLA aborts after 40 s.
    """
    return str(4 * host_devices)
