"""A brief run of a program that is changed: it trains a number beside the model's parameters."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from rich.console import Console

from deepseek_jax.config import EvalConfig, MeshConfig
from deepseek_jax.train.loop import train
from deepseek_jax.train.reporting.sinks import read_rows
from tests.train import tiny

QUIET = Console(quiet=True)


def brief(directory, **mesh):
    found = tiny.experiment(directory, steps=6)
    brief = EvalConfig(batches=1, final_batches=1, samples=0)
    return dataclasses.replace(found, eval=brief, mesh=MeshConfig(**mesh))


def with_a_parameter(weight):
    """A change by which one number, of weight `weight` in the loss, is trained beside the model's parameters."""

    def changed(program):
        def model(params):
            return {name: leaf for name, leaf in params.items() if name != "pull"}

        def make_parameters():
            params, buffers = program.make_parameters()
            return params | {"pull": jnp.ones(2)}, buffers

        def loss(params, *rest):
            value, aux = program.loss(model(params), *rest)
            pull = weight * jnp.square(params["pull"]).sum()
            return value + pull, aux | {"loss/pull": pull}

        return dataclasses.replace(
            program,
            axes=program.axes | {"pull": (None,)},
            make_parameters=make_parameters,
            loss=loss,
            update_buffers=lambda params, *rest: program.update_buffers(model(params), *rest),
            score=lambda params, *rest: program.score(model(params), *rest),
            to_model=lambda params, buffers: program.to_model(model(params), buffers),
        )

    return changed


def pulls(workdir) -> list[float]:
    return [row["loss/pull"] for row in read_rows(workdir / "metrics.jsonl") if "loss/pull" in row]


def on_two_devices(directory: str) -> list[float]:
    """The number's losses in three steps."""
    directory = Path(directory)
    train(brief(directory, fsdp=2), directory / "two", QUIET, until=3, change=with_a_parameter(0.5))
    return pulls(directory / "two")
