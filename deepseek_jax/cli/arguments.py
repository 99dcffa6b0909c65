"""From the words of a command line to the arguments of one verb."""

import argparse
import difflib
import itertools
from collections.abc import Sequence

from deepseek_jax.cli import (
    adapters,
    compile,
    convert,
    data,
    esft,
    evaluate,
    find_lr,
    generate,
    inspect,
    plan,
    predict,
    prune,
    quantize,
    study,
    train,
    tune_batch,
)
from deepseek_jax.errors import UserError

VERBS = (
    *(train, evaluate, generate, predict, study, data, convert, adapters, esft, prune, quantize),
    *(inspect, plan, compile, find_lr, tune_batch),
)
OVERRIDE = "--config."


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors, and whose option names must be written out."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str):
        raise UserError(f"{message}; see `{self.prog} --help`.")

    def parse_known_args(self, args=None, namespace=None):
        """Complains of what is unknown here: in the verb's own parser, not in the one that called it.

        Of options before anything else: one that is missing is often one that is misspelt.
        """
        if args is not None and (option := self._unknown_option(args)):
            self.error(f"unknown option {option}{self._nearest(option)}")
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def _unknown_option(self, words: Sequence[str]) -> str:
        """The first option that is not known here; "" where all are, or help is asked for."""
        known, before = self._option_string_actions, None
        if self._subparsers:  # what follows the verb is its own
            words = list(itertools.takewhile(lambda word: word.startswith("-"), words))
        if {"-h", "--help"} & set(words):
            return ""
        for word in words:
            name, takes_value = word.partition("=")[0], before in known and known[before].nargs is None
            if word == "--":
                return ""
            # As argparse sees it: what has a space is no option, and what an option lacks is told of that one.
            if word.startswith("--") and " " not in word and name not in known and not takes_value:
                return name
            before = word
        return ""

    def _nearest(self, option: str) -> str:
        """What `option` may have been meant for; dots and what follows them are of --config.KEY."""
        name, dot, key = option.partition(".")
        known = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        near = difflib.get_close_matches(name.removeprefix("--"), ["config"] if dot else known, n=1)
        meant = near and (not dot or self.get_default("takes_overrides"))
        return f" (did you mean --{near[0]}{dot}{key}?)" if meant else ""


def read(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the verb in `argv`, its function `run`, and `overrides`: dotted key to text."""
    parser = Parser(
        prog="deepseek-jax",
        description="Train, take apart and rebuild DeepSeek's language models in JAX.",
        epilog="example: deepseek-jax train --config configs/v3_tiny.py --workdir runs/v3_tiny",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for module in VERBS:
        module.add_to(verbs)
    words, overrides = split_overrides(argv)
    args = parser.parse_args(words)
    if overrides and not args.takes_overrides:
        parser.error(f"{OVERRIDE}{next(iter(overrides))} has no use here, where the run directory says the experiment")
    args.overrides = overrides
    return args


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """`argv` without its `--config.key=value` and `--config.key value`, and these as a dict; the last of a key wins.

    >>> split_overrides(["train", "--config.mesh.data", "-1", "--config.train.steps=3"])
    (['train'], {'mesh.data': '-1', 'train.steps': '3'})
    """
    words, overrides = [], {}
    rest = iter(argv)
    for word in rest:
        if not word.startswith(OVERRIDE):
            words.append(word)
            continue
        key, equals, value = word.removeprefix(OVERRIDE).partition("=")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise UserError(f"{word} needs a value: {word}=VALUE.")
        overrides[key] = value
    return words, overrides
