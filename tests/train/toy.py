"""A program that compiles in no time: weighted least squares, with a buffer that is updated like a router's bias."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.config import Experiment, OptimizerConfig, ScheduleConfig, TrainConfig
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.program import Program
from deepseek_jax.train.state import abstract_state, make_state
from deepseek_jax.train.step import compile_step, make_step

WIDTH = 4


def program() -> Program:
    def loss(params, buffers, batch, totals, weights):
        errors = (batch["x"] @ (params["kernel"] * params["norm"]["scale"]) - batch["y"]) ** 2
        value = (batch["weight"] * errors).sum() / totals["weight"]
        return value, {"loss/next": value, "load": batch["weight"].sum()}

    return Program(
        graphdef=None,
        axes={"kernel": ("embed",), "norm": {"scale": ("embed",)}},
        buffer_axes={"bias": ()},
        make_parameters=lambda: (
            {"kernel": jnp.arange(1.0, WIDTH + 1), "norm": {"scale": jnp.ones(WIDTH)}},
            {"bias": jnp.zeros(())},
        ),
        totals=lambda batch: {"weight": batch["weight"].sum()},
        scheduled=lambda update: {},
        loss=loss,
        update_buffers=lambda params, buffers, aux, update: {"bias": buffers["bias"] + 1e-3 * aux["load"]},
        score=None,
    )


def experiment(**train) -> Experiment:
    schedule = ScheduleConfig(name="constant")
    optimizer = OptimizerConfig(name="sgd", peak_lr=0.1, b1=0.0, weight_decay=0.0, clip_norm=0.0, schedule=schedule)
    return Experiment(optimizer=optimizer, train=TrainConfig(steps=10, **train))


def with_optimizer(config: Experiment, **settings) -> Experiment:
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **settings))


def start(config: Experiment, *, task: Program | None = None, devices=None):
    """(state, compiled step)."""
    task, optimizer = task or program(), make_optimizer(config.optimizer, config.train.steps)
    mesh = make_mesh(config.mesh, devices)
    abstract = abstract_state(task, optimizer, mesh, ema=config.train.ema_decay > 0)
    state = make_state(task, optimizer, abstract)
    return state, compile_step(make_step(task, optimizer, config), abstract)


def batch(microbatches: int, size: int, seed: int = 0) -> dict:
    """A batch [K microbatches, M rows, ...]; as token counts would, the weights differ from row to row."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(microbatches * size, WIDTH)).astype(np.float32)
    y = rng.normal(size=microbatches * size).astype(np.float32)
    weight = rng.integers(0, 5, microbatches * size).astype(np.float32)
    return jax.tree.map(
        lambda leaf: leaf.reshape(microbatches, size, *leaf.shape[1:]), {"x": x, "y": y, "weight": weight}
    )
