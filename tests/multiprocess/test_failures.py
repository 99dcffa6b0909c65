"""A failure of one process soon ends all processes of the run, with a reason; and collective work that all share."""

import re
import signal
import time

import pytest

from deepseek_jax.parallel import processes
from tests import call
from tests.multiprocess import programs
from tests.multiprocess.group import start_training, train_to_end
from tests.processes import Group
from tests.progress import last_step

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("failures")


def test_when_one_process_freezes_the_other_ends_within_a_minute(directory):
    with start_training(directory, "frozen", "train.steps=1000000", count=2) as group:
        group.wait_until(lambda: last_step(directory / "frozen") >= 5)
        group.send(1, signal.SIGSTOP)
        frozen = time.monotonic()
        (status,) = group.finish(0)
        assert status != 0 and time.monotonic() - frozen < 60
        assert "another task died" in group.output(0) or "another process ended" in group.output(0)


def test_when_the_leader_is_killed_the_other_process_ends_within_a_minute(directory):
    with start_training(directory, "leaderless", "train.steps=1000000", count=2) as group:
        group.wait_until(lambda: last_step(directory / "leaderless") >= 5)
        group.send(0, signal.SIGKILL)
        killed = time.monotonic()
        (status,) = group.finish(1)
        assert status != 0 and time.monotonic() - killed < 60
        assert "another task died" in group.output(1) or "another process ended" in group.output(1)


def test_when_one_process_fails_it_says_why_and_the_others_end_too(directory):
    with Group(directory, *call.words(programs.one_fails), count=2, devices=2) as group:
        statuses = group.finish()
        assert statuses[1] == 2
        assert group.output(1).strip().splitlines()[-1] == "deepseek-jax: process 1 of 2: the corpus cannot be read."
        assert statuses[0] != 0 and "another" in group.output(0)


def test_a_checkpoint_that_one_process_cannot_write_ends_all_processes(directory):
    """Otherwise the other's writer thread would wait for it for hours, while both train on."""
    overrides = "train.steps=1000000", "checkpoint.every=20"
    with start_training(directory, "full", *overrides, count=2, variables={"FULL_DISK": "yes"}) as group:
        assert group.finish() == [2, processes.AGAIN]
        assert "deepseek-jax: process 0 of 2: the disk is full: " in group.output(0)
        assert "another process ended" in group.output(1)


def test_every_process_names_the_place_where_a_step_became_non_finite(directory):
    overrides = "train.steps=10", "optimizer.peak_lr=1e30", "optimizer.clip_norm=0"
    with start_training(directory, "exploded", *overrides, count=2) as group:
        assert group.finish() == [2, 2]
        for number in (0, 1):
            pattern = (
                rf"deepseek-jax: process {number} of 2: step \d+ is not finite; it began (at \w+ in|in the parameter)"
            )
            assert re.search(pattern, group.output(number)), group.output(number)


def test_two_processes_give_the_scores_and_samples_of_one(directory):
    overrides = "train.steps=6", "eval.samples=2", "eval.sample_tokens=8"
    train_to_end(directory, "one", *overrides, "mesh.fsdp=4", "mesh.data=1", devices=4)
    train_to_end(directory, "two", *overrides, "mesh.fsdp=4", "mesh.data=1", count=2)
    assert (directory / "one" / "samples.txt").read_text() == (directory / "two" / "samples.txt").read_text()
    tables = []
    for workdir, size in (("one", {"count": 1, "devices": 4}), ("two", {"count": 2, "devices": 2})):
        verb = "-m", "deepseek_jax", "eval", "--workdir", workdir
        with Group(directory, *verb, **size) as group:
            assert not any(group.finish()), group.output(0)
            tables.append(re.findall(r"topics\S* .*", group.output(0)) or re.findall(r"total .*", group.output(0)))
            assert size["count"] == 1 or "total" not in group.output(1)
    assert tables[0] == tables[1] != []
