"""A run that is killed at any moment and resumed gives the same losses, bit for bit, as one that never stopped.

The run has every kind of state that is carried between steps: MTP, moving averages, a batch-size ramp, early stopping.
"""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from deepseek_jax.train.checkpoints import checkpoint
from deepseek_jax.train.checkpoints.restore import restore_model
from tests.processes import Group, to_end
from tests.progress import last_step, rows

STEPS, STOPPED = 40, 32  # configured steps; the step at which patience runs out, three evaluations after the first
CLOCKS = ("seconds", "per_second", "bytes", "goodput")  # endings of the only keys that may differ: times and memory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


def start(directory: Path, workdir: Path, *run: Path) -> Group:
    return Group(directory, "-m", "tests.resume.carrying_all", str(directory), str(workdir), *map(str, run))


def measured(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl without times and memory."""
    return [{key: value for key, value in row.items() if not key.endswith(CLOCKS)} for row in rows(workdir)]


@pytest.fixture(scope="module")
def unbroken(directory):
    workdir = directory / "unbroken"
    to_end(start(directory, workdir))
    return workdir


def test_resume_is_bit_exact_after_two_sigkills_ctrl_c_and_sigterm(directory, unbroken):
    workdir = directory / "broken"
    with start(directory, workdir) as run:
        run.wait_until(lambda: last_step(workdir) >= 8)
        run.send(0, signal.SIGKILL)

    def being_written():
        return last_step(workdir) >= 15 and any((workdir / "checkpoints").glob("*tmp*"))

    with start(directory, workdir) as run:
        run.wait_until(being_written, pause=0.001)
        run.send(0, signal.SIGKILL)

    with start(directory, workdir) as run:
        run.wait_until(lambda: last_step(workdir) >= 18, pause=0.001)
        run.send(0, signal.SIGINT)
        assert run.finish() == [-signal.SIGINT]  # Python re-raises the signal where nobody catches KeyboardInterrupt
    saved = checkpoint.newest_intact(workdir / "checkpoints")
    assert f"stopped by Ctrl-C after step {saved}; the same command" in run.output() and saved == last_step(workdir)

    with start(directory, workdir) as run:
        run.wait_until(lambda: last_step(workdir) >= 22, pause=0.001)
        run.send(0, signal.SIGTERM)
        said = to_end(run)
    saved = checkpoint.newest_intact(workdir / "checkpoints")
    assert f"stopped by SIGTERM after step {saved}" in said
    assert saved == last_step(workdir) < STOPPED

    assert f"resuming from step {saved}" in to_end(start(directory, workdir))
    assert measured(workdir) == measured(unbroken)
    assert [row["step"] for row in rows(workdir) if "loss/next" in row] == list(range(1, STOPPED + 1))
    assert_same_model(workdir, unbroken)


def assert_same_model(workdir: Path, unbroken: Path):
    left, right = restore_model(workdir), restore_model(unbroken)
    assert left.step == right.step == STOPPED
    for part in ("params", "buffers"):
        flat = [np.asarray(leaf) for tree in (left, right) for leaf in _leaves(getattr(tree, part))]
        half = len(flat) // 2
        for one, other in zip(flat[:half], flat[half:], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_branch_is_bit_exact_also_if_it_is_killed_when_the_other_run_is_gone(directory, unbroken):
    """From the best checkpoint on, up to the evaluation at which patience runs out and that checkpoint is restored."""
    other = shutil.copytree(unbroken, directory / "other")
    workdir, best = directory / "branch", checkpoint.best_step(unbroken)
    with start(directory, workdir, other) as run:
        run.wait_until((workdir / "checkpoints" / str(best)).is_dir, pause=0.001)
        run.send(0, signal.SIGKILL)
    assert f"branching from step {best} of {other}\n" in run.output()  # where nothing differs
    shutil.rmtree(other)
    assert "resuming from step" in to_end(start(directory, workdir, other))
    assert measured(workdir) == [row for row in measured(unbroken) if row["step"] > best]
    assert_same_model(workdir, unbroken)


def test_training_a_finished_run_again_shows_its_scores_and_changes_nothing(directory, unbroken):
    before = rows(unbroken)
    assert "validation bits per byte" in to_end(start(directory, unbroken))
    assert rows(unbroken) == before


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]
