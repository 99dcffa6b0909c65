"""Two processes with two devices each: the loss curve of one, SIGTERM, SIGKILL, resuming alone, who reads what."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from deepseek_jax.train.checkpoints import checkpoint
from tests import call
from tests.multiprocess import programs
from tests.multiprocess.group import curve, load_entropies, start_training, train_to_end
from tests.paths import GOLDENS
from tests.processes import Group
from tests.progress import last_step

STEPS = "train.steps=20"
SLOWLY = {"SECONDS_A_STEP": "1"}  # so that a signal arrives long before the last step, however busy the machine is


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(directory):
    """The run directory of one process with as many devices as the two together, never stopped."""
    train_to_end(directory, "alone", STEPS, devices=4)
    return directory / "alone"


@pytest.mark.slow
def test_a_run_killed_terminated_and_resumed_by_one_process_has_the_unbroken_curve(directory, alone):
    workdir = directory / "broken"
    with start_training(directory, "broken", STEPS, count=2, variables=SLOWLY) as group:
        group.wait_until(lambda: last_saved(workdir) >= 4)
        group.send(1, signal.SIGKILL)
        killed = time.monotonic()
        (status,) = group.finish(0)
        assert time.monotonic() - killed < 60
        if status == 75:  # it was in a collective computation with the other
            last_line = group.output(0).strip().splitlines()[-1]
            assert last_line.startswith("deepseek-jax: process 0 of 2: another process ended")
            assert "start all of them again" in last_line
        else:  # it waited for the other to save: jax aborts it after 30 seconds without a heartbeat
            assert status == -signal.SIGABRT and "another task died" in group.output(0)

    before = last_saved(workdir)
    with start_training(directory, "broken", STEPS, count=2, variables=SLOWLY) as group:
        group.wait_until(lambda: "resuming" in group.output(0) and last_step(workdir) > before)
        group.send(1, signal.SIGTERM)  # not to the leader, which writes the files
        assert group.finish() == [0, 0]
        saved = last_saved(workdir)
        assert f"resuming from step {before}" in group.output(0)
        assert f"stopped by SIGTERM after step {saved}" in group.output(0)
        assert saved == last_step(workdir) < 20
        assert "deepseek-jax" not in group.output(1) and "stopped" not in group.output(1)

    resumed = train_to_end(directory, "broken", STEPS, "mesh.data=1", "mesh.fsdp=2", count=1)
    assert f"resuming from step {saved}" in resumed
    np.testing.assert_allclose(curve(workdir), curve(alone), rtol=1e-5)
    assert load_entropies(workdir) == load_entropies(alone)


@pytest.mark.slow
def test_sigterm_is_heard_by_all_during_an_evaluation(directory):
    few = "train.steps=6", "eval.every=4", "checkpoint.every=0", "eval.batches=8"
    workdir = directory / "evaluated"
    slowly = {"SECONDS_A_HELD_OUT_BATCH": "2"}
    with start_training(
        directory, "evaluated", *few, options=["--fail-when-stopped"], count=2, variables=slowly
    ) as group:
        group.wait_until(lambda: last_step(workdir) == 4)
        group.send(1, signal.SIGTERM)
        assert group.finish() == [75, 75]
        assert "stopped by SIGTERM after step 4" in group.output(0)
    assert last_saved(workdir) == 4 and not _evaluated(workdir)
    train_to_end(directory, "evaluated", *few, count=2)
    assert _evaluated(workdir) == [4, 6]


def _evaluated(workdir) -> list[int]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if "val/loss" in row]


def last_saved(workdir) -> int:
    return checkpoint.newest_intact(workdir / "checkpoints") or 0


def test_each_process_reads_only_the_rows_that_its_devices_hold(directory):
    with Group(directory, *call.words(programs.shares), count=2, devices=2) as group:
        assert group.finish() == [0, 0], group.output(0) + group.output(1)


@pytest.mark.slow
def test_processes_wait_for_a_late_leader(directory):
    """gloo's collectives alone would time out after 30 seconds."""
    with Group(directory, *call.words(programs.from_a_late_leader), count=2, devices=2) as group:
        assert group.finish() == [0, 0], group.output(0) + group.output(1)
        assert all("7" in group.output(number).splitlines() for number in (0, 1))  # among lines that gloo prints


@pytest.mark.slow
def test_processes_share_the_checking_of_a_checkpoint(directory, alone):
    """And they agree on what one of them finds: in the newest, a file that the second process checks was changed."""
    shutil.copytree(alone / "checkpoints", directory / "checkpoints")
    newest, before = (directory / f"checkpoints/{step}" for step in (20, 16))
    files = {step: sorted(json.loads((step / "checksums.json").read_text())) for step in (newest, before)}
    harmed = files[newest][1]
    (newest / harmed).write_bytes((newest / harmed).read_bytes()[:-1])
    with Group(directory, *call.words(programs.checked, str(directory / "checkpoints")), count=2, devices=2) as group:
        assert group.finish() == [0, 0], group.output(0) + group.output(1)
        said = [group.output(number).splitlines() for number in (0, 1)]
    assert f"checkpoint 20 is skipped: {harmed} is missing or was changed" in said[0]
    assert not any("is skipped" in line for line in said[1])
    (first, some), (second, others) = (json.loads(lines[-1]) for lines in said)
    assert first == second == 16
    assert some + others == len(files[newest]) + len(files[before]) and abs(some - others) <= 2


def test_each_process_reads_only_the_experts_that_its_devices_hold(directory):
    released = GOLDENS / "v3"
    with Group(directory, *call.words(programs.experts_read, str(released)), count=2, devices=2) as group:
        assert group.finish() == [0, 0], group.output(0) + group.output(1)
        said = [json.loads(group.output(number).splitlines()[-1]) for number in (0, 1)]
    experts = json.loads((released / "config.json").read_text())["n_routed_experts"]
    assert said == [[True, list(range(experts // 2))], [True, list(range(experts // 2, experts))]]
