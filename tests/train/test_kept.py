"""Programs are shared by runs that differ in their seed, and by no others."""

import collections
import dataclasses

import jax
import numpy as np
from rich.console import Console

from deepseek_jax.models.moe import router
from deepseek_jax.train import kept
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.state import make_state
from tests.train import tiny
from tests.train.noisy import NoisyRouter


def seeded(experiment, seed):
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=seed))


def test_seeds_share_their_programs(tmp_path):
    experiment = tiny.experiment(tmp_path)
    faster = dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, peak_lr=0.1))
    setups = [prepare(each, Console(quiet=True)) for each in (experiment, seeded(experiment, 7), faster)]
    first, second, other = (kept.programs(setup) for setup in setups)
    assert first is second and other[0] is not first[0]


def first_step(experiment) -> dict:
    """What is measured in it, by the programs that are kept."""
    setup = prepare(experiment, Console(quiet=True))
    batches = setup.train_batches()
    microbatches = [next(batches), next(batches)]
    state = make_state(setup.program, setup.optimizer, setup.abstract)
    return jax.device_get(kept.programs(setup)[0](state, setup.place(microbatches))[1])


def test_a_router_that_draws_does_so_from_its_own_seed(tmp_path, monkeypatch):
    monkeypatch.setitem(router.ROUTERS, "moe", NoisyRouter)
    monkeypatch.setattr(kept, "_kept", collections.OrderedDict())
    model = dataclasses.replace(tiny.MOE, num_hidden_layers=1, first_k_dense_replace=0)
    experiment = tiny.experiment(tmp_path, model)
    first_step(experiment)
    after = first_step(seeded(experiment, 7))
    kept._kept.clear()
    alone = first_step(seeded(experiment, 7))
    jax.tree.map(np.testing.assert_array_equal, after, alone)


def test_only_the_latest_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 1)
    experiment = tiny.experiment(tmp_path)
    longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=99))
    one, two = (prepare(each, Console(quiet=True)) for each in (experiment, longer))
    first = kept.programs(one)
    assert kept.programs(one) is first
    kept.programs(two)
    assert kept.programs(one) is not first
