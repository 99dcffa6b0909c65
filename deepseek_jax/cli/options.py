"""Options and texts that several verbs share."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from deepseek_jax.data.plain_text import is_utf8

RUN_OR_RELEASE = "run directory written by `train`, a released checkpoint, or the output of `convert`"

OVERRIDES_HELP = """\
Any key of the config can be overridden by its dotted name:
  --config.optimizer.peak_lr=3e-4  --config.train.steps 200  --config.optimizer.schedule.milestones=0.5,0.8
All keys and their defaults are in deepseek_jax/config.py and the files that it imports sections from; those of parts
that plugins add are --config.parts.NAME.KEY (docs/architecture.md)."""


def add_verb(
    verbs, name: str, run: Callable | None, summary: str, more: str, *, takes_overrides: bool = False
) -> argparse.ArgumentParser:
    """Adds a verb's parser: `summary` is its line in the list of verbs, `more` ends its own --help."""
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=more)
    parser.set_defaults(run=run, takes_overrides=takes_overrides, compile_cache=True, keep_memory=True)
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
    add_checkpoint(parser, "give --workdir it")


def add_source(parser: argparse.ArgumentParser):
    """Adds the arguments for the model that a verb reads, and the directory that it writes."""
    parser.add_argument("source", type=named, metavar="IN", help="a run directory or a checkpoint")
    parser.add_argument("target", type=named, metavar="OUT", help="the directory to create")
    add_checkpoint(parser, "give it as IN")


def read_source(args: argparse.Namespace, console):
    """Reads the model named by `add_source`'s arguments, a Trained (train/checkpoints/restore.py)."""
    from deepseek_jax.train.checkpoints import any_checkpoint

    with console.status("reading the model"):
        return any_checkpoint.read(args.source, args.checkpoint)


def add_checkpoint(parser: argparse.ArgumentParser, instead: str):
    """Adds the option for a step; `instead`: the advice in the error for a directory, which is meant as the model."""

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
