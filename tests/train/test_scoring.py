"""Scoring on other devices than those of training: parameters are sharded over them, and batches fit them."""

import dataclasses

import jax
import pytest
from rich.console import Console

from deepseek_jax.config import EvalConfig, Experiment, MeshConfig, TrainConfig
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.parallel.mesh import inference_config
from deepseek_jax.train.loop import train
from deepseek_jax.train.scoring import scoring_experiment
from deepseek_jax.train.setup import prepare
from deepseek_jax.tune.config import LoraConfig, TuneConfig
from tests.train import tiny

SPREAD = """
import sys, jax
from deepseek_jax.train.checkpoints.restore import restore_model
params = restore_model(sys.argv[1]).params
whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(sum(part.data.nbytes for leaf in jax.tree.leaves(params) for part in leaf.addressable_shards) / whole)
"""


@pytest.mark.parametrize("devices, micro, size, evaluated", [(1, 6, 18, 5), (4, 8, 24, 8), (8, 8, 24, 8)])
def test_scoring_batches_are_rounded_up_to_a_multiple_of_the_devices(monkeypatch, devices, micro, size, evaluated):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    train = TrainConfig(batch_size=18, microbatch_size=6, ramp_start=6, ramp_fraction=0.5)
    found = scoring_experiment(Experiment(train=train, eval=EvalConfig(batch_size=5), mesh=MeshConfig(tensor=64)))
    assert (found.train.microbatch_size, found.train.batch_size, found.eval.batch_size) == (micro, size, evaluated)
    assert scoring_experiment(Experiment(), 3).eval.batch_size == -(-3 // devices) * devices
    assert found.mesh == MeshConfig(fsdp=devices)


@pytest.mark.parametrize(
    "model, devices, spread",
    [(tiny.MOE, 8, 8), (tiny.MOE, 3, 1), (tiny.MOE, 12, 4), (dataclasses.replace(tiny.MOE, kv_lora_rank=18), 8, 2)],
)
def test_parameters_are_sharded_over_as_many_devices_as_divide_them(monkeypatch, model, devices, spread):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert inference_config(model) == MeshConfig(fsdp=spread)
    assert inference_config(HybridConfig()) == MeshConfig(), "whole on each"


def test_groups_of_adapters_are_none_of_the_model_that_is_scored(tmp_path):
    given = tiny.experiment(tmp_path)
    groups = dataclasses.replace(given.optimizer, groups=("adapters/.*/b$ lr=16",))
    given = dataclasses.replace(given, tune=TuneConfig(lora=LoraConfig(rank=1)), optimizer=groups)
    prepare(given, Console(quiet=True))
    prepare(scoring_experiment(given), Console(quiet=True))


@pytest.mark.slow
def test_a_run_of_one_device_is_sharded_and_scored_alike_on_four(tmp_path, run_python):
    train(tiny.experiment(tmp_path, tiny.ROUTED, steps=6), tmp_path / "run", Console(quiet=True))
    spread = run_python("-c", SPREAD, str(tmp_path / "run"), devices=4)
    assert float(spread.stdout) < 2, spread.stderr  # replicated on each it would be 4
    rows = [
        run_python("-m", "deepseek_jax", "eval", "--workdir", str(tmp_path / "run"), devices=count)
        for count in (1, 3, 4)
    ]
    one, three, four = ([line for line in each.stdout.splitlines() if "total" in line] for each in rows)
    assert one == three == four and one, [each.stderr for each in rows]
    cut = run_python("-m", "deepseek_jax", "prune", str(tmp_path / "run"), "out", "--method", "wanda", devices=4)
    assert cut.returncode == 0, cut.stderr
