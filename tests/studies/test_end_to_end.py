"""A real study that is killed with SIGKILL and started again gives the report of one that was never stopped."""

import fcntl
import json
import signal
import time

import pytest

from deepseek_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    Experiment,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)
from tests.processes import Group, to_end
from tests.train import tiny
from tests.user_files import TOPICS, write_config, write_texts

STUDY = '''"""Is a shared expert worth having?"""

from deepseek_jax.studies.measures import cache_bytes, shared_for_routed, specialisation
from experiments import Study, Variant

study = Study(
    base="{folder}/base.py",
    budget=40 * 128,
    seeds=2,
    metric="final/loss",
    margin=0.01,
    variants=[
        Variant("shared"),
        Variant("none", {{"model.n_shared_experts": 0}}),
        Variant("diverges", {{"optimizer.name": "sgd", "optimizer.peak_lr": 1e30, "optimizer.clip_norm": 0.0}}),
        Variant("taken out", edit=shared_for_routed),
    ],
    claim="shared < taken out",
    measures=[cache_bytes, specialisation],
)
'''
DIVERGED = 2  # exit status of a study with a variant that diverges
CLOCKS = ("per_second", "memory_bytes", "goodput")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    source = write_texts(folder / "text.jsonl", TOPICS[:20])
    base = Experiment(
        model=tiny.FOUR_EXPERTS,
        data=DataConfig(source=source, directory=str(folder / "data"), sequence_length=64, held_out=0.1),
        optimizer=OptimizerConfig(peak_lr=3e-3),
        train=TrainConfig(batch_size=2),
        eval=EvalConfig(final_batches=2, batches=1, samples=0),
        checkpoint=CheckpointConfig(every=4),
        log=LogConfig(every=1, tensorboard=False),
    )
    write_config(folder / "base.py", base)
    (folder / "studies").mkdir()
    (folder / "studies" / "shared.py").write_text(STUDY.format(folder=folder))
    return folder


def start(folder, root, verb="run", *options) -> Group:
    command = "-m", "deepseek_jax", "study", verb, f"{folder}/studies/shared.py", "--root", str(root)
    return Group(folder, *command, *options)


def numbers(folder, root):
    """The results.json of a report, without times, memory and the path of the runs."""
    to_end(start(folder, root, "report", "--output", str(root / "report")))
    found = json.loads((root / "report" / "results.json").read_text())
    assert found.pop("root") == str(root)
    for run in found["runs"]:
        run["scores"] = {name: score for name, score in run["scores"].items() if not name.endswith(CLOCKS)}
        del run["seconds"]
    return found


@pytest.mark.slow
def test_a_study_killed_twice_and_resumed_has_the_unbroken_report(folder):
    error_summary = to_end(start(folder, folder / "unbroken"), DIVERGED)
    assert error_summary.count("final/loss") == 6 and error_summary.count("failed: step") == 2
    unbroken = numbers(folder, folder / "unbroken")
    assert len(unbroken["runs"]) == 6 and {each["variant"] for each in unbroken["failed"]} == {"diverges"}

    broken = folder / "broken"

    def begun():
        return sum(len(path.read_text().splitlines()) for path in broken.glob("*/*/metrics.jsonl"))

    for rows in (6, 30):  # within the first run, within the second
        with start(folder, broken) as study:
            study.wait_until(lambda rows=rows: begun() >= rows)
            study.send(0, signal.SIGKILL)
        wait_for_worker(broken)
    to_end(start(folder, broken), DIVERGED)
    assert numbers(folder, broken) == unbroken
    again = to_end(start(folder, broken), DIVERGED)
    assert "2 runs failed, and none are left to do" in again and "final/loss" not in again, "nothing is trained again"


def wait_for_worker(root):
    """Waits until the worker of a killed parent has saved and ended, which it does by itself."""
    deadline = time.monotonic() + 120
    while any(map(held, (root / ".locks").glob("*"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def held(lock):
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
