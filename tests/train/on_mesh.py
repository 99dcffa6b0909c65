"""A run on four devices that starts with the model of a checkpoint, sharded over them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from deepseek_jax.config import MeshConfig, StartConfig
from deepseek_jax.train.checkpoints.restore import restore_model
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import first_state
from tests.train import tiny


def check(directory: str, checkpoint: str):
    """Begins the run of tests/train/tiny.py in `directory` from this checkpoint of it."""
    directory = Path(directory)
    experiment = tiny.experiment(directory)
    experiment = dataclasses.replace(
        experiment,
        start=StartConfig(checkpoint=str(checkpoint)),
        data=dataclasses.replace(experiment.data, tokenizer=str(directory / "base/tokenizer.json")),
        mesh=MeshConfig(fsdp=2, tensor=2),
    )
    setup = prepare(experiment, Console(quiet=True))
    state = first_state(setup, print)
    jax.tree.map(np.testing.assert_array_equal, state["params"], restore_model(directory / "base").params)
    head = state["params"]["head"]
    assert head.addressable_shards[0].data.shape == (head.shape[0] // 2, head.shape[1] // 2), head.sharding
