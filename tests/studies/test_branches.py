"""A study whose variants branch from one run, which is trained once: decays (WSD) of different lengths."""

import dataclasses
import json

import pytest
from rich.console import Console

from deepseek_jax.config import CheckpointConfig, EvalConfig, OptimizerConfig, ScheduleConfig
from deepseek_jax.train.loop import train
from tests.progress import rows
from tests.train import tiny
from tests.user_files import write_config

STUDY = '''"""How long a decay is long enough?"""

from experiments import Study, Variant


def decay(steps):
    share = {{"optimizer.schedule.name": "wsd", "optimizer.schedule.decay_fraction": steps / 10}}
    return {{"start.checkpoint": "{stable}", "start.full_state": True, "start.step": 10 - steps}} | share


study = Study(
    base="{base}",
    equal="steps",
    budget=10,
    seeds=2,
    metric="final/loss",
    margin=0.1,
    variants=[Variant("2 steps", decay(2)), Variant("6 steps", decay(6))],
    claim="6 steps <= 2 steps",
)
'''


@pytest.mark.slow
def test_decays_of_different_lengths_from_one_stable_run(tmp_path, run_command):
    stable = tiny.experiment(tmp_path, steps=10)
    stable = dataclasses.replace(
        stable,
        optimizer=OptimizerConfig(peak_lr=3e-3, schedule=ScheduleConfig(name="constant")),
        eval=EvalConfig(batches=1, final_batches=2, samples=0),
        checkpoint=CheckpointConfig(every=2, keep=9),
    )
    train(stable, tmp_path / "stable", Console(quiet=True))
    (tmp_path / "decay.py").write_text(
        STUDY.format(stable=tmp_path / "stable", base=write_config(tmp_path / "base.py", stable))
    )
    words = str(tmp_path / "decay.py"), "--root", str(tmp_path / "runs")
    status, _, err = run_command("study", "run", *words, "--here")
    assert status == 0, err
    firsts = {path.name.rsplit("-", 1)[0]: rows(path)[0]["step"] for path in (tmp_path / "runs/decay").glob("*steps*")}
    assert firsts == {"2_steps-0": 9, "2_steps-1": 9, "6_steps-0": 5, "6_steps-1": 5}
    assert run_command("study", "report", *words, "--output", str(tmp_path / "report"))[0] == 0
    found = json.loads((tmp_path / "report/results.json").read_text())
    assert len(found["runs"]) == 4 and not found["failed"]
    assert {run["curve"][-1][0] for run in found["runs"]} == {10 * 4 * 64}  # tokens, with those before the branch
