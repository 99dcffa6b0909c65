"""Options and texts that several verbs share."""

import argparse
import contextlib
import functools
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from deepseek_jax import writable
from deepseek_jax.data.plain_text import is_utf8
from deepseek_jax.errors import UserError

RUN_OR_RELEASE = "run directory of a training, or a checkpoint: released files, or what `convert` wrote"

OVERRIDES_HELP = """\
Any key of the config can be set on top of it, by its dotted name:
  --config.optimizer.peak_lr=3e-4  --config.train.steps 200  --config.optimizer.schedule.milestones=0.5,0.8
deepseek_jax/config.py lists the keys with their defaults."""


def add_verb(
    verbs, name: str, run: Callable | None, summary: str, more: str, *, takes_overrides: bool = False
) -> argparse.ArgumentParser:
    """A verb's parser: `summary` is its line in the list of verbs, `more` follows the options in its own --help."""
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=more)
    parser.set_defaults(run=run, takes_overrides=takes_overrides)
    return parser


def add_config(parser: argparse.ArgumentParser):
    parser.add_argument("--config", type=named, required=True, metavar="FILE", help="a Python file with get_config()")


def add_run(parser: argparse.ArgumentParser, what: str = "run directory of a training"):
    """The options that name a trained model; `what` directories --workdir takes."""
    parser.add_argument("--workdir", type=named, required=True, metavar="DIR", help=what)
    _add_checkpoint(parser, "give --workdir it")


def add_source(parser: argparse.ArgumentParser):
    """The model that a verb takes, and the directory that it makes of it."""
    parser.add_argument("source", type=named, metavar="IN", help="a run directory or a checkpoint")
    parser.add_argument("target", type=named, metavar="OUT", help="the directory to make")
    _add_checkpoint(parser, "give it as IN")


def read_source(args: argparse.Namespace):
    """What `add_source` names, as a compress.source.Source; reading a large one takes a while, which is shown."""
    from deepseek_jax.compress import source
    from deepseek_jax.train import bars

    with bars.converting(f"reading {args.source}") as show:
        given = source.read(args.source, args.checkpoint)
        show(1, 1)
    return given


def _add_checkpoint(parser: argparse.ArgumentParser, instead: str):
    """`instead`: what to do with a directory, which is the model that was meant."""

    def step(text: str) -> int:
        if Path(text).is_dir() and not text.isdecimal():
            raise argparse.ArgumentTypeError(f"{text} is a directory, and this is the number of a step; {instead}")
        return number(int, 0)(text)

    parser.add_argument("--checkpoint", type=step, metavar="STEP", help="of a run; default: the newest checkpoint")


def add_batches(parser: argparse.ArgumentParser, what: str, default: int = 4):
    """How many batches a verb looks at; `what` they are."""
    parser.add_argument(
        "--batches", type=number(int, 1), default=default, metavar="N", help=f"{what}; default: {default}"
    )


def into_free_directory(run: Callable) -> Callable:
    """Of a verb that makes the directory `args.target`, which must hold nothing yet.

    Where the work fails, is interrupted or terminated nothing of it stays there, so that the same command can be given
    again.
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
    """Raises SystemExit where the signal comes, which by itself would end the process with all that it has begun."""

    def end(signum, frame):
        raise SystemExit(128 + signum)  # the status that shells give

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_free(directory: Path):
    if directory.is_file():
        raise UserError(f"{directory} is a file; give a directory that is not there yet.")
    writable.check_directory(directory)
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty; give a directory that is not there yet.")


def _clear(directory: Path, keep: bool):
    with contextlib.suppress(OSError):  # why the work failed is what has to be told
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not keep:
            directory.rmdir()


def named(text: str) -> str:
    """An argparse type: the name of a file, a directory or a source, as which pathlib would take "" for "."."""
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
