"""Compiled programs are shared by runs that differ only in their seed."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax.config import EvalConfig
from deepseek_jax.experiment_file import of_set
from deepseek_jax.models.moe import blocks, experts, router
from deepseek_jax.tasks import objectives
from deepseek_jax.train import program_cache
from deepseek_jax.train.loop import train
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.state import make_state
from tests.models.noisy import NoisyRouter
from tests.train import tiny
from tests.user_files import write_csv, write_texts


def seeded(experiment, seed):
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=seed))


def test_seeds_share_their_programs(tmp_path):
    experiment = tiny.experiment(tmp_path)
    faster = dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, peak_lr=0.1))
    setups = [prepare(each, Console(quiet=True)) for each in (experiment, seeded(experiment, 7), faster)]
    first, second, other = (program_cache.cached(setup) for setup in setups)
    assert first is second and other[0] is not first[0]


def first_step(experiment) -> dict:
    """The measurements of an experiment's first step, computed with the cached program."""
    setup = prepare(experiment, Console(quiet=True))
    batches = setup.train_batches()
    microbatches = [next(batches), next(batches)]
    state = make_state(setup.program, setup.optimizer, setup.abstract)
    return jax.device_get(program_cache.cached(setup)[0](state, setup.place(microbatches))[1])


@pytest.mark.slow
def test_a_cached_program_draws_noise_from_the_current_runs_seed(tmp_path, monkeypatch):
    monkeypatch.setitem(router.ROUTERS, "moe", NoisyRouter)
    monkeypatch.setattr(program_cache, "_cache", collections.OrderedDict())
    experiment = tiny.experiment(tmp_path, tiny.ROUTED)
    first_step(experiment)
    after = first_step(seeded(experiment, 7))
    program_cache._cache.clear()
    alone = first_step(seeded(experiment, 7))
    jax.tree.map(np.testing.assert_array_equal, after, alone)


def test_only_the_latest_programs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(program_cache, "MOST", 1)
    experiment = tiny.experiment(tmp_path)
    longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=99))
    one, two = (prepare(each, Console(quiet=True)) for each in (experiment, longer))
    first = program_cache.cached(one)
    assert program_cache.cached(one) is first
    program_cache.cached(two)
    assert program_cache.cached(one) is not first


def test_the_programs_of_ten_variants_are_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(program_cache, "_cache", collections.OrderedDict())
    experiment = tiny.experiment(tmp_path)
    setup = prepare(experiment, Console(quiet=True))
    rates = [dataclasses.replace(experiment.optimizer, peak_lr=rate) for rate in np.linspace(0.01, 0.1, 10).tolist()]
    variants = [
        dataclasses.replace(setup, experiment=dataclasses.replace(experiment, optimizer=rate)) for rate in rates
    ]
    first = [program_cache.cached(variant) for variant in variants]
    again = [program_cache.cached(variant) for variant in variants]
    assert all(one is other for one, other in zip(first, again, strict=True))


@pytest.mark.slow
def test_a_run_uses_code_that_was_changed_since_the_run_before(tmp_path, monkeypatch):
    """As in a notebook, where a function is replaced and the experiment's settings do not show it."""
    experiment = tiny.experiment(tmp_path, tiny.ROUTED, steps=8)
    experiment = dataclasses.replace(experiment, eval=EvalConfig(batches=1, final_batches=1, samples=0))
    first = train(experiment, tmp_path / "first", Console(quiet=True))
    assert train(experiment, tmp_path / "again", Console(quiet=True))["final/loss"] == first["final/loss"]
    monkeypatch.setattr(experts, "silu_product", lambda gate, up, limit: gate * up)
    monkeypatch.setattr(blocks, "silu_product", lambda gate, up, limit: gate * up)
    assert train(experiment, tmp_path / "changed", Console(quiet=True))["final/loss"] != first["final/loss"]


class Other(router.TopKRouter):
    """Another router, registered under the same name in ROUTERS."""


def test_another_router_under_the_same_name_is_another_program(tmp_path, monkeypatch):
    experiment = tiny.experiment(tmp_path, tiny.ROUTED)
    before = program_cache.cached(prepare(experiment, Console(quiet=True)))
    monkeypatch.setitem(router.ROUTERS, "moe", Other)
    assert program_cache.cached(prepare(experiment, Console(quiet=True)))[0] is not before[0]


def test_other_text_at_the_same_place_is_another_program(tmp_path):
    """The mean bytes per token are compiled into the program."""
    experiment = tiny.experiment(tmp_path)
    before = program_cache.cached(prepare(experiment, Console(quiet=True)))
    write_texts(tmp_path / "topics.jsonl", (f"{n} " + "ab" * 500 for n in range(9)))
    assert program_cache.cached(prepare(experiment, Console(quiet=True)))[0] is not before[0]


def test_another_objective_or_other_classes_are_another_program(tmp_path, monkeypatch):
    def programs(seed=0):
        write_csv(path, "x,kind", (f"{n},{n % classes}" for n in range(60)))
        columns = {"dataset.columns.features": ("x",), "dataset.columns.label": "kind"}
        experiment = of_set(str(path), columns | {"train.seed": seed, "train.batch_size": 8})
        return program_cache.cached(prepare(experiment, Console(quiet=True)))

    path, classes = tmp_path / "own.csv", 2
    before = programs()
    assert programs(seed=7) is before
    with monkeypatch.context() as patched:
        patched.setitem(objectives.OBJECTIVES, "cross_entropy", lambda *given: objectives.focal(*given))
        assert programs()[0] is not before[0]
    classes = 3
    assert programs()[0] is not before[0]
