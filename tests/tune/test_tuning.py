"""Fine-tuning in the training loop: only trained parameters change; `adapters` and `esft` on the command line."""

import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax.config import CheckpointConfig, EvalConfig, StartConfig
from deepseek_jax.convert import huggingface
from deepseek_jax.models import tree
from deepseek_jax.train.checkpoints.restore import restore_adapters, restore_model
from deepseek_jax.train.expert_use import expert_use
from deepseek_jax.train.loop import train
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.state import make_state
from deepseek_jax.tune import peft
from deepseek_jax.tune.config import LoraConfig, TuneConfig
from tests.train import tiny
from tests.user_files import write_config

QUIET = Console(quiet=True)
LORA = TuneConfig(lora=LoraConfig(rank=2, dora=True))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(directory, experiment of an MoE that starts from a trained one, run directory of the trained one)."""
    directory = tmp_path_factory.mktemp("tuning")
    experiment = tiny.experiment(directory, tiny.MOE, steps=8)
    experiment = dataclasses.replace(experiment, eval=EvalConfig(samples=0, batches=1), checkpoint=CheckpointConfig())
    train(experiment, directory / "base", QUIET)
    return directory, tuned_from(experiment, directory / "base"), directory / "base"


def tuned_from(experiment, workdir):
    data = dataclasses.replace(experiment.data, tokenizer=str(workdir / "tokenizer.json"))
    return dataclasses.replace(experiment, data=data, start=StartConfig(checkpoint=str(workdir)))


@pytest.fixture(scope="module")
def lora(base):
    directory, experiment, _ = base
    averaged = dataclasses.replace(experiment.train, ema_decay=0.5)
    experiment = dataclasses.replace(experiment, tune=LORA, train=averaged)
    train(experiment, directory / "lora", QUIET)
    return experiment, directory / "lora"


@pytest.mark.slow
def test_only_adapted_weights_change(base, lora):
    before, after = (tree.by_path(restore_model(workdir).params) for workdir in (base[2], lora[1]))
    still = {path for path in before if (np.asarray(before[path]) == np.asarray(after[path])).all()}
    assert {"embedding", "head", "layers/1-1/feed_forward/router/kernel"} <= still
    assert "layers/1-1/feed_forward/experts/gate" not in still and "layers/0-0/attention/out" not in still


def test_optimizer_state_is_kept_for_adapters_alone(tmp_path):
    setup = prepare(dataclasses.replace(tiny.experiment(tmp_path, tiny.MOE), tune=LORA), QUIET)
    trained = sum(leaf.size for leaf in jax.tree.leaves(setup.abstract["params"]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(setup.abstract["opt_state"]) if leaf.ndim)
    frozen = sum(leaf.size for leaf in jax.tree.leaves(setup.abstract["buffers"]["frozen"]))
    assert moments == 2 * trained and trained < frozen / 4
    assert list(setup.abstract["params"]) == ["adapters"]


@pytest.mark.slow
def test_adapters_are_saved_merged_and_not_unmerged_with_dora(base, lora, run_command, tmp_path):
    """The saved adapters merged into the base give the weights that the run itself computes with."""
    out, merged = tmp_path / "adapters", tmp_path / "merged"
    status, told, _ = run_command("adapters", "save", str(lora[1]), str(out))
    assert status == 0 and "peft silently drops adapters of dense and shared feed-forwards" in told  # tiny.MOE has both
    assert run_command("adapters", "merge", str(base[2]), str(out), str(merged))[0] == 0
    config = huggingface.read_config(merged)
    params, _ = huggingface.load(merged, config)
    expected = restore_model(lora[1]).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), params, expected)
    adapters, there = peft.load(out, config)
    assert (there.rank, there.alpha, there.dora) == (2, 16.0, True)
    assert adapters.keys() == restore_adapters(lora[1])[1].keys()
    status, _, error = run_command("adapters", "unmerge", str(merged), str(out), str(tmp_path / "back"))
    assert status == 2 and "DoRA cannot be subtracted again" in error
    status, _, error = run_command("adapters", "save", str(base[2]), str(tmp_path / "none"))
    assert status == 2 and "has no adapters" in error


@pytest.mark.slow
def test_esft_chooses_experts_and_only_these_are_trained(base, run_command, tmp_path):
    directory, experiment, workdir = base
    arguments = "--config", write_config(tmp_path / "experiment.py", experiment), "--threshold", "0.4", "--batches", "2"
    status, chosen, told = run_command("esft", *arguments)
    assert status == 0 and chosen.startswith("1: ") and "of 8 experts do" in told
    status, by_gate, _ = run_command("esft", *arguments, "--score", "gate")
    assert status == 0 and by_gate.startswith("1: ")
    train(dataclasses.replace(experiment, tune=TuneConfig(experts=chosen.strip())), directory / "esft", QUIET)
    before, after = (tree.by_path(restore_model(path).params) for path in (workdir, directory / "esft"))
    _only_these_experts_moved(before, after, [int(expert) for expert in chosen.split(":")[1].split()])


def test_two_steps_change_the_chosen_experts_alone(tmp_path):
    experiment = dataclasses.replace(tiny.experiment(tmp_path, tiny.ROUTED), tune=TuneConfig(experts="0: 1 4 6"))
    setup = prepare(experiment, QUIET)
    state, batches = make_state(setup.program, setup.optimizer, setup.abstract), setup.train_batches()

    def weights():
        params, _ = setup.program.to_model(state["params"], state["buffers"])
        return jax.tree.map(np.array, tree.by_path(params))

    before, step = weights(), setup.compiled_step()
    for _ in range(2):
        state, _ = step(state, setup.place([next(batches), next(batches)]))
    _only_these_experts_moved(before, weights(), [1, 4, 6])


def _only_these_experts_moved(before, after, experts):
    """Of parameters by path."""
    for path in before:
        moved = np.asarray(before[path]) != np.asarray(after[path])
        if "/experts/" in path:
            assert sorted(set(np.nonzero(moved)[1])) == experts, path
        else:
            assert not moved.any(), path


def test_token_scores_count_assignments_and_gate_scores_weight_them(tmp_path):
    """Both count the same experts, with different shares: large router weights make the gates far from even."""
    experiment = tiny.experiment(tmp_path, dataclasses.replace(tiny.MOE, initializer_range=0.3))
    found = expert_use(experiment, 1, Console(quiet=True))
    (token_E,), (gate_E,) = found["token"].values(), found["gate"].values()
    np.testing.assert_allclose([token_E.sum(), gate_E.sum()], 1, rtol=1e-5)
    np.testing.assert_array_equal(token_E > 0, gate_E > 0)
    assert np.abs(token_E - gate_E).max() > 1e-3
