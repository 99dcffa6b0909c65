"""The summary of a run that a study keeps, computed from its rows."""

import dataclasses
import signal
import types

import pytest

from deepseek_jax.config import DataConfig, Experiment, TrainConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models.counts import census
from deepseek_jax.studies import running
from deepseek_jax.studies.outcome import summarise
from deepseek_jax.train import loop, preemption
from deepseek_jax.train.checkpoints import checkpoint
from tests.train import tiny
from tests.user_files import write_jsonl


def test_scores_are_the_last_ones_and_noisy_metrics_means_of_the_last_fifth(tmp_path):
    model = dataclasses.replace(tiny.MOE, num_nextn_predict_layers=1)
    experiment = Experiment(model=model, data=DataConfig(sequence_length=64), train=TrainConfig(steps=10, batch_size=4))
    rows = [
        {"step": step, "loss/next": 5 - step / 10, "memory_bytes": 100 * (step == 3), "tokens_per_second": 10.0 * step}
        | {
            "router/max_violation": {"1": step, "2": step + 1},
            "router/share": {"1": [step]},
            "indexer/recall": step / 10,
        }
        for step in range(1, 11)
    ]
    evaluations = [{"step": 5, "val/loss": 4.5}, {"step": 10, "val/loss": 4.0, "final/loss": 3.9}]
    write_jsonl(tmp_path / "metrics.jsonl", rows + evaluations)
    found = summarise(tmp_path, experiment, seconds=1.0)
    assert found["scores"] == pytest.approx(
        {"val/loss": 4.0, "final/loss": 3.9, "tokens_per_second": 55, "memory_bytes": 100, "max_violation": 10}
        | {"indexer_recall": 0.95}
    )
    assert found["shares"] == {"1": [10]}
    main = census(tiny.MOE).main
    assert found["parameters"] == {"total": main.total, "active": main.activated} and main.activated < main.total
    assert found["curve"][0] == [256, 4.9] and found["curve"][-1] == [2560, 4.0]


def test_scores_are_those_of_the_parameters_that_early_stopping_kept(tmp_path):
    experiment = Experiment(model=tiny.DENSE, train=TrainConfig(steps=10))
    rows = [{"step": 10, "loss/next": 4.0, "memory_bytes": 1, "stopping/kept_step": 5}]
    write_jsonl(
        tmp_path / "metrics.jsonl", [{"step": s, "val/loss": v} for s, v in ((3, 4.2), (5, 4.0), (10, 4.5))] + rows
    )
    assert summarise(tmp_path, experiment, seconds=1.0)["scores"]["val/loss"] == 4.0


def test_a_run_stopped_by_a_signal_before_scoring_has_not_failed(tmp_path, monkeypatch):
    """Its steps are all saved.  Without a signal, missing scores mean that nothing is held out, which is an error."""
    signals = [signal.SIGTERM]

    def train(*_, **__):
        with preemption.watch():
            for number in signals:
                signal.raise_signal(number)
        return {}

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(checkpoint, "newest_intact", lambda directory: Experiment().train.steps)
    run = types.SimpleNamespace(directory=tmp_path, experiment=Experiment())
    assert not running._train(run, None)
    signals.clear()
    with pytest.raises(UserError, match="nothing is held out"):
        running._train(run, None)
