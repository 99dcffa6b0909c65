"""Programs are shared by runs that differ in their seed, and by no others."""

import dataclasses

from rich.console import Console

from deepseek_jax.train import kept
from deepseek_jax.train.setup import prepare
from tests.train import tiny


def test_seeds_share_their_programs(tmp_path):
    experiment = tiny.experiment(tmp_path)
    seeded = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=7))
    faster = dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, peak_lr=0.1))
    setups = [prepare(each, Console(quiet=True)) for each in (experiment, seeded, faster)]
    first, second, other = (kept.programs(setup) for setup in setups)
    assert first is second and other[0] is not first[0]


def test_only_the_latest_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 1)
    experiment = tiny.experiment(tmp_path)
    longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=99))
    one, two = (prepare(each, Console(quiet=True)) for each in (experiment, longer))
    first = kept.programs(one)
    assert kept.programs(one) is first
    kept.programs(two)
    assert kept.programs(one) is not first
