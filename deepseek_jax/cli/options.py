"""Options and texts that several verbs share."""

import argparse
import contextlib
import functools
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from deepseek_jax import files
from deepseek_jax.data.plain_text import is_utf8
from deepseek_jax.errors import UserError

RUN_OR_RELEASE = "run directory written by `train`, a released checkpoint, or the output of `convert`"

OVERRIDES_HELP = """\
Any key of the config can be overridden by its dotted name:
  --config.optimizer.peak_lr=3e-4  --config.train.steps 200  --config.optimizer.schedule.milestones=0.5,0.8
All keys and their defaults are in deepseek_jax/config.py and the files that it imports sections from."""


def add_verb(
    verbs, name: str, run: Callable | None, summary: str, more: str, *, takes_overrides: bool = False
) -> argparse.ArgumentParser:
    """Adds a verb's parser: `summary` is its line in the list of verbs, `more` ends its own --help."""
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=more)
    parser.set_defaults(run=run, takes_overrides=takes_overrides, compile_cache=True)
    return parser


def add_config(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--config",
        type=named,
        required=True,
        metavar="FILE",
        help="the experiment: a Python file with get_config(), such as configs/v3_tiny.py",
    )


def add_run(parser: argparse.ArgumentParser, what: str = "run directory written by `train`"):
    """Adds the options that name a trained model; `what` is the help of --workdir."""
    parser.add_argument("--workdir", type=named, required=True, metavar="DIR", help=what)
    _add_checkpoint(parser, "give --workdir it")


def add_source(parser: argparse.ArgumentParser):
    """Adds the arguments for the model that a verb reads, and the directory that it writes."""
    parser.add_argument("source", type=named, metavar="IN", help="a run directory or a checkpoint")
    parser.add_argument("target", type=named, metavar="OUT", help="the directory to create")
    _add_checkpoint(parser, "give it as IN")


def read_source(args: argparse.Namespace, console):
    """Reads the model named by `add_source`'s arguments, a compress.source.Source."""
    from deepseek_jax.compress import source

    with console.status("reading the model"):
        return source.read(args.source, args.checkpoint)


def _add_checkpoint(parser: argparse.ArgumentParser, instead: str):
    """`instead`: the advice in the error for a directory, which is meant as the model."""

    def step(text: str) -> int:
        if Path(text).is_dir() and not text.isdecimal():
            raise argparse.ArgumentTypeError(f"{text} is a directory, not the number of a step; {instead}")
        return number(int, 0)(text)

    parser.add_argument("--checkpoint", type=step, metavar="STEP", help="step of a run's checkpoint; default: newest")


def add_batches(parser: argparse.ArgumentParser, what: str, default: int = 4):
    """Adds the option for how many batches a verb uses; `what` is its help."""
    parser.add_argument(
        "--batches", type=number(int, 1), default=default, metavar="N", help=f"{what}; default: {default}"
    )


def into_free_directory(run: Callable) -> Callable:
    """Decorates the `run` of a verb that creates the directory `args.target`, which must be empty or absent.

    If the work fails or is interrupted or terminated, everything in it is removed, so that the command can be repeated.
    """

    @functools.wraps(run)
    def run_whole(args):
        target = Path(args.target)
        _check_free(target)
        was_there = target.exists()
        try:
            with _ended_by_sigterm():
                run(args)
        except BaseException:
            _clear(target, was_there)
            raise

    return run_whole


@contextlib.contextmanager
def _ended_by_sigterm():
    """Turns SIGTERM into SystemExit, so that cleanup runs; by default it would end the process at once."""

    def end(signum, frame):
        raise SystemExit(128 + signum)  # the status that shells report

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_free(directory: Path):
    if directory.is_file():
        raise UserError(f"{directory} is a file; give a directory that does not exist yet.")
    files.check_directory(directory)
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty; give a directory that does not exist yet.")


def _clear(directory: Path, keep: bool):
    with contextlib.suppress(OSError):  # the error to report is the one that made the work fail
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not keep:
            directory.rmdir()


def named(text: str) -> str:
    """An argparse type: a non-empty name of a file, directory or source; pathlib would read "" as "."."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; give one")
    return text


def text(given: str) -> str:
    """An argparse type: text that UTF-8 can hold."""
    if not is_utf8(given):
        raise argparse.ArgumentTypeError("the text is not UTF-8")
    return given


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number of `kind` (int or float) from `low` to `high`."""
    what = "a whole number" if kind is int else "a number"
    span = f"of at least {low}" if high == math.inf else f"between {low} and {high}"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {span}")
        return value

    return parse
