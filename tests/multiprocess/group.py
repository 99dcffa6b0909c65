"""Processes that train one run of tests/multiprocess/experiment.py, and what they have written of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.paths import ROOT
from tests.processes import Group, to_end
from tests.progress import rows

TRAIN = ("-m", "deepseek_jax", "train", "--config", str(ROOT / "tests" / "multiprocess" / "experiment.py"))


def start_training(
    directory: Path,
    workdir: str,
    *overrides: str,
    options: Sequence[str] = (),
    count: int = 1,
    devices: int = 2,
    variables: Mapping[str, str] = {},
) -> Group:
    """Starts `deepseek-jax train` in `count` processes of `devices` devices each.  `options`: of the verb."""
    settings = [f"--config.{override}" for override in overrides]
    variables = {"TINY": str(directory)} | variables
    arguments = *TRAIN, "--workdir", workdir, *options, *settings
    return Group(directory, *arguments, count=count, devices=devices, variables=variables)


def train_to_end(directory: Path, workdir: str, *overrides: str, **size: int) -> str:
    """Trains to the end, which must succeed, and returns the output of the leader process."""
    return to_end(start_training(directory, workdir, *overrides, **size))


def steps(workdir: Path) -> list[dict]:
    """The rows of training steps alone."""
    return [row for row in rows(workdir) if "loss/next" in row]


def curve(workdir: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss/total"], row["grad_norm"]) for row in steps(workdir)]


def load_entropies(workdir: Path) -> list[dict]:
    """A metric of expert loads alone: as loads are counts, it is exactly equal unless some router chose differently."""
    return [row["router/load_entropy"] for row in steps(workdir)]
