"""The options that `plan` and `compile` share: an experiment and the cluster that it would run on."""

import argparse
from typing import TYPE_CHECKING

from deepseek_jax.cli import options, runtime
from deepseek_jax.errors import UserError

if TYPE_CHECKING:  # jax is imported when a verb runs
    from deepseek_jax.config import AnyExperiment
    from deepseek_jax.parallel.topology import Topology


def add_options(parser: argparse.ArgumentParser):
    options.add_config(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="chip and grid of the cluster: a TPU torus such as v5p:8x8x16, or hosts x GPUs such as h100:128x8",
    )
    parser.add_argument(
        "--mesh", metavar="AXES", help="sizes of mesh axes, which override the config's: fsdp=64,expert=8"
    )


def topology(args: argparse.Namespace) -> "Topology":
    """The cluster."""
    from deepseek_jax.parallel import topology

    return topology.parse(args.topology)


def experiment(args: argparse.Namespace) -> "AnyExperiment":
    """The experiment, with the mesh that --mesh asks for."""
    overrides = args.overrides | {f"mesh.{axis}": size for axis, size in _axes(args.mesh).items()}
    return runtime.experiment_of(args.config, overrides)


def _axes(text: str | None) -> dict[str, str]:
    """ "fsdp=64,expert=8" as a dict; whether these axes exist is checked with the config."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    for name, equals, size in pairs:
        if not (name and equals and size):
            raise UserError(f"--mesh {text} is not a list of axes and sizes; write for example fsdp=64,expert=8.")
    sizes = {name.strip(): size for name, _, size in pairs}
    if len(sizes) < len(pairs):
        raise UserError(f"--mesh {text} names an axis twice; give each one size.")
    return sizes
