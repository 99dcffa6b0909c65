"""Adapters of the hybrid network on the command line: saved, merged into the base run, and unmerged again."""

import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax import record
from deepseek_jax.cli import adapters
from deepseek_jax.config import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    StartConfig,
    SupervisedExperiment,
    TrainConfig,
)
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.models import tree
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.train.checkpoints.restore import restore_model
from deepseek_jax.train.loop import train
from deepseek_jax.tune.config import LoraConfig, TuneConfig
from tests.paths import GOLDENS

QUIET = Console(quiet=True)
MODEL = HybridConfig(
    convolution=ConvolutionConfig(filters=(8,), norm="layer"),
    recurrent=RecurrentConfig(kind="gru", hidden_size=16),
    attention=AttentionConfig(num_heads=2, key_dim=8),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(run directory of a fully trained network, run directory of adapters trained on top of it)."""
    base, adapted = (tmp_path_factory.mktemp("hybrid") / name for name in ("base", "adapted"))
    experiment = SupervisedExperiment(
        model=MODEL,
        dataset=DatasetConfig(name="digits"),
        train=TrainConfig(steps=4, batch_size=64, microbatch_size=64),
        eval=EvalConfig(batch_size=128),
        checkpoint=CheckpointConfig(),
        log=LogConfig(tensorboard=False),
    )
    train(experiment, base, QUIET)
    tune = TuneConfig(lora=LoraConfig(rank=2))
    train(dataclasses.replace(experiment, tune=tune, start=StartConfig(checkpoint=str(base))), adapted, QUIET)
    return base, adapted


def parameters(directory) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tree.by_path(restore_model(directory).params).items()}


def test_adapters_are_saved_merged_and_unmerged(runs, run_command, tmp_path):
    base, adapted = runs
    saved, merged, back = (str(tmp_path / name) for name in ("saved", "merged", "back"))
    status, told, _ = run_command("adapters", "save", str(adapted), saved)
    assert status == 0 and "not included" not in told
    assert run_command("adapters", "merge", str(base), saved, merged)[0] == 0
    jax.tree.map(np.testing.assert_array_equal, parameters(merged), parameters(adapted))
    assert run_command("adapters", "unmerge", merged, saved, back)[0] == 0
    before, there, after = map(parameters, (base, merged, back))
    moved = [path for path in before if (before[path] != there[path]).any()]
    assert any(path.startswith("convolution/") for path in moved) and "attention/q" in moved
    for path in before:
        bound = 2.0**-24 * (np.abs(before[path]) + np.abs(there[path]) + 1e-30) * 1.0001
        assert (np.abs(after[path] - before[path]) <= bound).all(), path
    status, told, _ = run_command("eval", "--workdir", merged)
    assert status == 0 and "accuracy" in told


def test_save_says_what_adapters_cannot_include(runs, run_command, tmp_path):
    """The averages of batch norms change in training too; `save` says that adapters do not include them."""
    base, _ = runs
    model = dataclasses.replace(MODEL, convolution=ConvolutionConfig(filters=(8,), norm="batch"))
    experiment = record.read(base)
    tune = TuneConfig(train="^head", lora=LoraConfig(rank=2))
    steps = dataclasses.replace(experiment.train, steps=1)
    train(dataclasses.replace(experiment, model=model, tune=tune, train=steps), tmp_path / "run", QUIET)
    status, told, _ = run_command("adapters", "save", str(tmp_path / "run"), str(tmp_path / "saved"))
    assert status == 0 and "batch norms" in told and "tune.train='^head' trained in full" in told
    status, _, error = run_command("adapters", "merge", str(base), str(tmp_path / "saved"), str(tmp_path / "merged"))
    assert status == 0, error


def test_batch_norms_are_named_wherever_there_are_any():
    """EfficientNet-Lite0 has them whatever model.convolution.norm is; a network without a convolution has none."""
    for convolution, there in (
        (ConvolutionConfig(kind="efficientnet_lite0"), True),
        (ConvolutionConfig(filters=(), norm="batch"), False),
    ):
        model = HybridConfig(convolution=convolution)
        said = adapters._moved_beside(SupervisedExperiment(model=model, tune=TuneConfig(lora=LoraConfig(rank=2))))
        assert any("batch norms" in line for line in said) == there


def test_adapters_of_another_network_are_refused(runs, run_command, tmp_path):
    out = str(tmp_path / "out")
    status, _, error = run_command("adapters", "merge", str(runs[0]), str(GOLDENS / "peft/v3_lora"), out)
    assert status == 2 and "which this model does not have" in error
