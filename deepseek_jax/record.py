"""config.json of a run directory: the resolved experiment, its hash, and the software it ran on."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from deepseek_jax import fields, files, plugins
from deepseek_jax.config import AnyExperiment, Experiment, plain
from deepseek_jax.errors import LOG, UserError
from deepseek_jax.files import read_json, write_json

CONFIG_FILE, CHECKPOINTS, LOCK = "config.json", "checkpoints", ".lock"
PLUGINS_HASH = "plugins"  # in config.json: a hash of their source, None without any
ARRAYS = "model"  # beside config.json in the output of `convert --to orbax`
PACKAGES = ("deepseek-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")

# Prefixes of settings that change where a run computes and what it shows, but not what it learns.  A mesh does change
# the result a little (order of sums, what router.capacity_factor drops); it is free all the same, so that a run can be
# resumed on whatever devices there are.
NOT_LEARNED = ("mesh.", "checkpoint.", "log.", "data.directory", "dataset.directory", "data.workers", "data.prefetch")
# How a step is computed, equal up to rounding: other devices may need other values.  Studies do tell these apart, as
# they may compare their speed.
COMPUTED = "train.pipeline_microbatches", "train.pipeline_rounds", "train.remat"
FREE = (*NOT_LEARNED, *COMPUTED, "eval.")  # a run may be resumed with other values of these
DROPPING = "train.on_nonfinite"  # may be changed to "skip": all steps until then were finite
JUDGING = ("eval.every", "eval.batch_size", "eval.batches")  # not free if evaluations may end the run


def experiment_hash(experiment: AnyExperiment) -> str:
    """16 hex digits that are equal if and only if all settings are, on every machine and Python version."""
    text = json.dumps(plain(experiment), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_place(workdir: str | os.PathLike):
    """Raises UserError if no run directory can be made, before the work that precedes `claim`; leaves nothing there."""
    if Path(workdir).exists() and not Path(workdir).is_dir():
        raise UserError(f"{workdir} is not a directory; give another --workdir.")
    files.check_directory(Path(workdir), "made a run directory")


def claim(
    workdir: str | os.PathLike, experiment: AnyExperiment, change: str | None = None, *, write: bool = True
) -> float:
    """Makes `workdir` the run directory of `experiment`: writes config.json, or updates settings that may change.

    `change`: the name of the function that changes the experiment's program, if one does.

    Returns when the run began, in seconds since 1970.  Without `write` it only checks, as in all processes of a run but
    one.  Raises UserError if the directory holds a run that differs in settings that may not change, or in `change`.
    """
    path, began = Path(workdir) / CONFIG_FILE, time.time()
    check_place(workdir)
    if isinstance(experiment, Experiment) and path.parent.resolve() == Path(experiment.data.source).resolve():
        raise UserError(f"{workdir} is the directory of data.source, whose files are texts; give another --workdir.")
    if not path.exists() and any((path.parent / CHECKPOINTS).glob("[0-9]*")):
        raise UserError(
            f"{workdir} has checkpoints but no {CONFIG_FILE} that describes them; restore it or give another --workdir."
        )
    if path.exists():
        other = read(workdir)
        if other.family != experiment.family:
            raise UserError(f"{workdir} holds a run of the family {other.family}; give another --workdir.")
        entries = read_json(path)
        began = entries.get("began", began)
        here = fields.flatten(plain(experiment))
        there = dict.fromkeys(here, "absent") | fields.flatten(plain(other))
        judging = JUDGING if experiment.stopping.patience else ()
        bound = [key for key in here if key in judging or not key.startswith(FREE)]
        if experiment.train.on_nonfinite == "skip":
            bound.remove(DROPPING)
        changed = [key for key in bound if here[key] != there[key]]
        if changed:
            differences = ", ".join(
                f"{key} is {fields.shown(there[key])} there and {fields.shown(here[key])} here" for key in changed[:3]
            )
            more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
            raise UserError(
                f"{workdir} holds another experiment: {differences}{more}; give another --workdir (to go on from this "
                f"run there: start.checkpoint={workdir} start.full_state=true)."
            )
        if entries.get("change") != change:
            raise UserError(
                f"{workdir} holds a run with change={entries.get('change')}, and here it is {change}; call train from "
                "Python with the same `change` (docs/runs.md), or give another --workdir."
            )
    if write:
        write_json(path, describe(experiment) | {"began": began, "change": change})
    return began


@contextlib.contextmanager
def held(workdir: str | os.PathLike) -> Iterator[None]:
    """A context in which only this process trains in `workdir`, which it creates; UserError if another one does.

    The lock is released when its holder dies, however it ends.  On a file system without locks nothing is checked.  A
    directory that was created here and stayed empty is removed again.
    """
    path = Path(workdir) / LOCK
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        if files.is_taken(lock):
            lock.seek(0)
            raise UserError(
                f"another process is training in {workdir} ({lock.read()}); wait for it or give another --workdir."
            )
        files.sign(lock, f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield
        finally:
            if made and [each.name for each in path.parent.glob("*")] == [LOCK]:
                path.unlink()
                path.parent.rmdir()


def read(workdir: str | os.PathLike) -> AnyExperiment:
    """The experiment of a run directory; settings added since it was written take their defaults."""
    path = Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise UserError(f"{workdir} is not a run directory: it has no {CONFIG_FILE}; `deepseek-jax train` makes one.")
    found = read_json(path)
    if "experiment" in found:
        return fields.build(found["experiment"], origin=str(path))
    if "model_type" in found:
        raise UserError(
            f"{workdir} is a checkpoint, not a run directory; `deepseek-jax quantize` makes one of it, and so does "
            "`deepseek-jax train` with start.checkpoint."
        )
    raise UserError(f"{path} is damaged: it has no entry 'experiment'.")


def kind(directory: str | os.PathLike) -> Literal["run", "orbax", "release"] | None:
    """What a directory holds, judged by its config.json: a run, with checkpoints or none yet, or a model without its
    training, as `convert --to orbax` writes it or in released files.  None if it is none of these.
    """
    try:
        found = set(read_json(Path(directory) / CONFIG_FILE))
    except UserError:
        return None
    if "experiment" in found:
        return "run" if "hash" in found else None
    if "model_type" not in found:
        return None
    return "orbax" if (Path(directory) / ARRAYS).is_dir() else "release"


def family(directory: str | os.PathLike) -> str:
    """The family of the model in a run directory or a checkpoint; UserError if it is neither."""
    if kind(directory) in ("orbax", "release"):
        return Experiment.family
    if not (Path(directory) / CONFIG_FILE).exists():
        raise UserError(
            f"{directory} is neither a run directory nor a checkpoint: it has no {CONFIG_FILE}; give the directory of "
            "a training, or of a released model."
        )
    return read(directory).family


def describe(experiment: AnyExperiment) -> dict:
    """The content of config.json, as a JSON-able dict."""
    return {
        "experiment": plain(experiment),
        "hash": experiment_hash(experiment),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _checkout(),
        "code": code_hash(experiment.plugins),
        PLUGINS_HASH: _hash_of(_named_sources(experiment.plugins)) if experiment.plugins else None,
    }


@functools.cache
def code_hash(modules: tuple[str, ...] = ()) -> str:
    """16 hex digits of a hash of this package's source at the first call, whether it is committed or not.

    `modules`: plugins, whose source counts too.
    """
    package = Path(__file__).resolve().parent
    own = [(path.relative_to(package).as_posix(), path) for path in sorted(package.rglob("*.py"))]
    return _hash_of([*own, *_named_sources(modules)])


def _named_sources(modules: tuple[str, ...]) -> list[tuple[str, Path]]:
    return [(path.name, path) for path in plugins.sources(modules)]


def _hash_of(named: list[tuple[str, Path]]) -> str:
    seen = hashlib.sha256()
    for name, path in named:
        content = path.read_bytes()
        seen.update(f"{name} {len(content)}\n".encode() + content)
    return seen.hexdigest()[:16]


def warn_of_changed_plugins(workdir: str | os.PathLike, experiment: AnyExperiment):
    """Logs a warning if the source of the run's plugins is not what it was when the run was last begun or resumed."""
    known = read_json(Path(workdir) / CONFIG_FILE).get(PLUGINS_HASH)
    if known not in (None, _hash_of(_named_sources(experiment.plugins))):
        LOG.warning(
            f"{', '.join(experiment.plugins)} changed after {workdir} was trained; what is computed now may differ "
            "from what it has learned."
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # deepseek-jax itself, run from a checkout that was never installed


def _checkout() -> dict | None:
    """Commit of the checkout this package is read from and whether tracked files differ from it; None outside one."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return None  # installed below somebody else's repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None
