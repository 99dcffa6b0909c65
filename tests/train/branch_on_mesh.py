"""A run on four devices that goes on from a checkpoint that was trained on one."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from deepseek_jax.config import CheckpointConfig, EvalConfig, Experiment, MeshConfig, OptimizerConfig, StartConfig
from deepseek_jax.train import branch
from deepseek_jax.train.loop import train
from deepseek_jax.train.setup import prepare
from tests.progress import rows
from tests.train import tiny


def experiment(directory: Path) -> Experiment:
    """Six steps, saved at every second one and evaluated at every third, with moving averages."""
    given = tiny.experiment(directory, steps=6)
    return dataclasses.replace(
        given,
        optimizer=OptimizerConfig(peak_lr=3e-3),
        train=dataclasses.replace(given.train, ema_decay=0.5),
        eval=EvalConfig(every=3, batches=1, samples=0),
        checkpoint=CheckpointConfig(every=2, keep=9),
    )


def check(directory: str):
    """Branches from step 4 of the run `base` in `directory`, of the experiment above, and trains to the end."""
    directory = Path(directory)
    start = StartConfig(checkpoint=str(directory / "base"), step=4, full_state=True)
    changed = dataclasses.replace(experiment(directory), start=start, mesh=MeshConfig(fsdp=2, tensor=2))
    setup = prepare(changed, Console(quiet=True))
    state, position = branch.begin(setup, setup.train_batches(), print)
    assert position.step == 4
    jax.tree.map(lambda leaf, like: np.testing.assert_equal(leaf.sharding, like.sharding), state, setup.abstract)
    moment = next(leaf for leaf in jax.tree.leaves(state["opt_state"]) if leaf.shape == state["params"]["head"].shape)
    assert moment.addressable_shards[0].data.size == moment.size // 4
    train(changed, directory / "on_mesh", Console(quiet=True))
    ours, theirs = (
        [row["loss/total"] for row in rows(directory / name) if "loss/total" in row] for name in ("on_mesh", "base")
    )
    np.testing.assert_allclose(ours, theirs[4:], rtol=1e-5)
