"""Tiny models trained with gradual pruning, or with adapters over 4-bit weights, on any mesh of eight host devices."""

import dataclasses

import jax
import numpy as np

from deepseek_jax.compress.config import PruneConfig, QuantizeConfig
from deepseek_jax.config import Experiment, MeshConfig
from deepseek_jax.models.tree import flatten
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import batch_sharding
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.state import abstract_state, make_state
from deepseek_jax.train.step import compile_step, make_step
from deepseek_jax.train.views import as_trained
from deepseek_jax.tune.config import LoraConfig, TuneConfig
from tests.parallel import curves

STEPS = 6
MODEL = dataclasses.replace(curves.V3, num_hidden_layers=2, num_attention_heads=4)
GRADUAL = PruneConfig(method="magnitude", sparsity=0.5, end=0.7, every=2)
FOUR_BITS, ADAPTERS = QuantizeConfig(weights="int4", group=8), TuneConfig(lora=LoraConfig(rank=2))


def experiment(**sections) -> Experiment:
    """An experiment with these `sections` replaced; `prune` is GRADUAL unless it is among them."""
    whole = curves.experiment(MODEL)
    train = dataclasses.replace(whole.train, steps=STEPS)
    return dataclasses.replace(whole, train=train, **{"prune": GRADUAL} | sections)


def start(experiment: Experiment, mesh: dict[str, int]):
    """(state, compiled step, abstract state, mesh); `mesh` {} is one device."""
    mesh = make_mesh(MeshConfig(**{"data": 1} | mesh), jax.devices() if mesh else jax.devices()[:1])
    program = as_trained(language_model_program(experiment, np.array([4.0])), experiment)
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps)
    abstract = abstract_state(program, optimizer, mesh, ema=False)
    step = compile_step(make_step(program, optimizer, experiment), abstract)
    return make_state(program, optimizer, abstract), step, abstract, mesh


def batch(number: int, mesh) -> dict:
    rows = curves.packed(number)
    return jax.device_put({name: each[None] for name, each in rows.items()}, batch_sharding(mesh, leading=1))


def run(experiment: Experiment, mesh: dict[str, int]) -> tuple[list[float], dict]:
    """(losses, buffers after the last step)."""
    state, step, _, mesh = start(experiment, mesh)
    losses = []
    for number in range(STEPS):
        state, measured = step(state, batch(number, mesh))
        losses.append(float(measured["loss/total"]))
    return losses, jax.device_get(state["buffers"])


def both(mesh: dict[str, int]) -> dict:
    pruned, buffers = run(experiment(), mesh)
    masks = flatten(buffers["masks"])
    rounded, _ = run(experiment(prune=PruneConfig(), quantize=FOUR_BITS, tune=ADAPTERS), mesh)
    hexadecimal = {path: np.packbits(mask).tobytes().hex() for path, mask in masks.items()}
    return {"pruned": pruned, "rounded": rounded, "masks": hexadecimal}


def on_meshes(*meshes: str) -> dict:
    """{mesh: losses of both, and the masks}"""
    return {mesh: both(curves.read(mesh)) for mesh in meshes}
