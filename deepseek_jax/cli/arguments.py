"""Parses the command line into the arguments of one verb."""

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
    """An ArgumentParser that raises UserError, and does not accept abbreviated option names."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str):
        raise UserError(f"{message}; see `{self.prog} --help`.")

    def parse_known_args(self, args=None, namespace=None):
        """Refuses unknown words in the verb's own parser, so that the error names the verb, not in the outer one.

        Unknown options are refused first: if a required option seems missing, it is often misspelt.
        """
        if args is not None and (option := self._unknown_option(args)):
            self.error(f"unknown option {option}{self._nearest(option)}")
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def _unknown_option(self, words: Sequence[str]) -> str:
        """The first option that is not known here; "" if there is none, or help is asked for."""
        known, before = self._option_string_actions, None
        if self._subparsers:  # options after the verb are its own parser's
            words = list(itertools.takewhile(lambda word: word.startswith("-"), words))
        if {"-h", "--help"} & set(words):
            return ""
        for word in words:
            name, takes_value = word.partition("=")[0], before in known and known[before].nargs is None
            if word == "--":
                return ""
            # As in argparse, a word with a space is no option.  After an option that takes a value, argparse itself
            # complains that the value is missing.
            if word.startswith("--") and " " not in word and name not in known and not takes_value:
                return name
            before = word
        return ""

    def _nearest(self, option: str) -> str:
        """A hint, `(did you mean ...?)`, with the most similar known option, or ""; a dot suggests --config.KEY."""
        name, dot, key = option.partition(".")
        known = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        near = difflib.get_close_matches(name.removeprefix("--"), ["config"] if dot else known, n=1)
        meant = near and (not dot or self.get_default("takes_overrides"))
        return f" (did you mean --{near[0]}{dot}{key}?)" if meant else ""


def read(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the verb in `argv`, with its function as `run`, and `overrides`, texts by dotted config key."""
    parser = Parser(
        prog="deepseek-jax",
        description="Train, evaluate, compress and convert DeepSeek's language models in JAX, and a hybrid network of\n"
        "convolution, LSTM/GRU and attention for images, texts, tables and series.",
        epilog="example: deepseek-jax train --config configs/v3_tiny.py --workdir runs/v3_tiny",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for module in VERBS:
        module.add_to(verbs)
    words, overrides = split_overrides(argv)
    args = parser.parse_args(words)
    if overrides and not args.takes_overrides:
        parser.error(f"{OVERRIDE}{next(iter(overrides))} cannot be set for this verb, which uses no config file")
    args.overrides = overrides
    return args


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """`argv` without its `--config.key=value` or `--config.key value`, and these as a dict; the last of a key wins.

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
