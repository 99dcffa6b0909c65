"""python -m tests.tune.on_mesh DIRECTORY CHECKPOINT: checks that a run starts with the checkpoint's model on four
devices, sharded over them."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from deepseek_jax.config import MeshConfig, StartConfig
from deepseek_jax.train.restore import restore_model
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import first_state
from tests.train import tiny

directory, checkpoint = map(Path, sys.argv[1:])
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
