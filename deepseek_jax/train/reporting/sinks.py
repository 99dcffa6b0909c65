"""Where metrics are written: metrics.jsonl, TensorBoard, Weights & Biases.  Each takes rows, dicts with a "step"."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deepseek_jax import fields
from deepseek_jax.config import AnyExperiment, LogConfig, plain
from deepseek_jax.errors import UserError
from deepseek_jax.files import write_text
from deepseek_jax.parallel import processes

METRICS_FILE = "metrics.jsonl"
UNFLUSHED = 10  # seconds between flushes for TensorBoard: each waits for the disk


def check_sinks(config: LogConfig):
    """UserError if a sink that the config asks for is not available, before there is work to lose."""
    if config.wandb_project and processes.is_leader():
        wandb = _wandb()
        with _said(wandb):
            wandb.login()


class Sinks:
    """All the sinks that an experiment asks for; none in processes other than the leader.

    Opening them removes rows after step `resumed_at`, left by a killed run, and that step's scores whose names begin
    with `again` ("val/" or "final/"), as they are about to be measured again.
    """

    def __init__(self, workdir: Path, experiment: AnyExperiment, resumed_at: int, again: str = ""):
        self._sinks, config = [], experiment.log
        if not processes.is_leader():
            return
        self._sinks.append(JsonLines(workdir / METRICS_FILE, resumed_at, again))
        if config.tensorboard:
            self._sinks.append(TensorBoard(workdir / "tensorboard", resumed_at))
        if config.wandb_project:
            self._sinks.append(WeightsAndBiases(workdir, experiment))

    def write(self, row: dict):
        for sink in self._sinks:
            sink.write(row)

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, *_):
        for sink in self._sinks:
            sink.close()


class JsonLines:
    """One JSON object per line, handed to the operating system at once, so that a killed process loses none."""

    def __init__(self, path: Path, resumed_at: int, again: str):
        if path.exists():
            rows = (row for row in read_rows(path) if row["step"] <= resumed_at)
            if again:
                rows = (row for row in rows if not (row["step"] == resumed_at and has_scores(row, again)))
            write_text(path, "".join(_line(row) for row in rows))
        self._file = path.open("a")

    def write(self, row: dict):
        self._file.write(_line(row))
        self._file.flush()

    def close(self):
        self._file.close()


def _line(row: dict) -> str:
    """A line of JSON, which has no NaN or infinity: both become null, which `read_rows` turns into NaN."""
    return json.dumps(_mapped(row, lambda value: None if _is_not_finite(value) else value)) + "\n"


def _is_not_finite(value) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _mapped(value, change: Callable):
    """A row, or part of one, with `change` applied to everything that is neither dict nor list."""
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    return [_mapped(inner, change) for inner in value] if isinstance(value, list) else change(value)


def has_scores(row: dict, beginning: str) -> bool:
    return any(key.startswith(beginning) for key in row)


def read_rows(path: str | Path) -> Iterator[dict]:
    """The rows of a metrics.jsonl, with NaN for non-finite values; stops at a line that was cut short."""
    with open(path) as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                return
            yield _mapped(row, lambda value: math.nan if value is None else value) if "null" in line else row


def flat(row: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of every number in a row, the names of nested ones joined by "/"."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key != "step":
            yield prefix + key, value


class TensorBoard:
    """Writes from the loop's thread: SummaryWriter's own thread dies on a full disk, and the loop would then hang."""

    def __init__(self, directory: Path, resumed_at: int):
        from tensorboardX.event_file_writer import EventsWriter  # slow to import
        from tensorboardX.proto.event_pb2 import SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        self._writer, self._flushed = EventsWriter(str(directory / "events")), -math.inf
        self._add(resumed_at + 1, session_log=SessionLog(status=SessionLog.START))  # hides older events of these steps

    def write(self, row: dict):
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in flat(row)]
        self._add(row["step"], summary=Summary(value=values))
        if time.monotonic() - self._flushed > UNFLUSHED:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self):
        self._writer.close()

    def _add(self, step: int, **what):
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(step=step, wall_time=time.time(), **what))


class WeightsAndBiases:
    """A run on Weights & Biases, with every setting under its dotted name, so that runs can be filtered by it."""

    def __init__(self, workdir: Path, experiment: AnyExperiment):
        wandb, project = _wandb(), experiment.log.wandb_project
        identity = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]  # names alone recur: seed0, seed1
        about = {"project": project, "name": workdir.name, "id": identity, "dir": str(workdir), "resume": "allow"}
        settings = fields.flatten(plain(experiment))
        with _said(wandb):
            # A resumed run may have changed some of its settings.
            self._run = wandb.init(**about, config=settings, allow_val_change=True)
        # Plot against our own step: wandb's own only ever increases, even when a run is resumed, and rows of earlier
        # steps would be ignored, such as final scores and steps that are taken again.
        self._run.define_metric("*", step_metric="step")

    def write(self, row: dict):
        self._run.log({"step": row["step"]} | dict(flat(row)))

    def close(self):
        self._run.finish()


def _wandb():
    try:
        import wandb
    except ImportError:
        raise UserError("log.wandb_project is set but wandb is not installed; run pip install wandb.") from None
    return wandb


@contextlib.contextmanager
def _said(wandb) -> Iterator[None]:
    """Turns errors of wandb into UserErrors."""
    try:
        yield
    except wandb.Error as error:
        raise UserError(
            f"log.wandb_project is set, and Weights & Biases says: {str(error).rstrip('.')}; set WANDB_MODE=offline to "
            "go without it, or leave log.wandb_project empty."
        ) from None
