"""Checkpoints: which are kept, which are passed over as damaged, and what is restored."""

import errno
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.config import CheckpointConfig
from deepseek_jax.errors import UserError
from deepseek_jax.train.checkpoints import checkpoint, integrity
from deepseek_jax.train.checkpoints.checkpoint import Checkpoints, RunPosition

OPTIMIZER = optax.adam(1e-3)


def state(value: float) -> dict:
    params = {"kernel": jnp.full((64, 64), value), "norm": {"scale": jnp.arange(3.0)}}
    return {"step": jnp.int32(value), "params": params, "buffers": {}, "opt_state": OPTIMIZER.init(params)}


def abstract() -> dict:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))


@pytest.fixture
def said():
    return []


@pytest.fixture
def opened(tmp_path, said):
    def open_again(keep: int = 2):
        return Checkpoints(tmp_path, CheckpointConfig(keep=keep), say=said.append)

    return open_again


def steps(tmp_path) -> list[int]:
    return sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())


def save(opened, *values: int, scores: dict | None = None):
    with opened() as checkpoints:
        for value in values:
            progress = RunPosition(value, {"position": value * 10}, 0.5, 7)
            checkpoints.save(state(value), progress, (scores or {}).get(value, float("inf")))


def largest_file(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(directory):
    path = largest_file(directory)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(directory):
    path = largest_file(directory)
    path.write_bytes(path.read_bytes()[:-20])


def lose_a_file(directory):
    largest_file(directory).unlink()


def never_sealed(directory):
    (directory / "checksums.json").unlink()


def test_state_and_progress_are_restored(opened):
    save(opened, 1, 3)
    with opened() as checkpoints:
        restored, progress = checkpoints.restore(abstract())
    assert progress == RunPosition(3, {"position": 30}, 0.5, 7)
    assert jax.tree.structure(restored) == jax.tree.structure(state(3))
    for left, right in zip(jax.tree.leaves(restored), jax.tree.leaves(state(3)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_failed_background_write_is_raised_without_another_save(opened, monkeypatch):
    """Checkpoints are written in the background, and the disk may fill meanwhile."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened() as checkpoints:
        checkpoints.check()  # nothing was saved
        checkpoints.save(state(1), RunPosition(1))
        checkpoints.wait()
        checkpoints.check()
        monkeypatch.setattr(integrity, "record", full)
        checkpoints.save(state(2), RunPosition(2))
        with pytest.raises(OSError, match="No space"):
            for _ in range(1000):
                checkpoints.check()
                time.sleep(0.02)
        monkeypatch.undo()
        checkpoints.save(state(3), RunPosition(3))
        assert checkpoints.is_intact(3)


def test_an_empty_directory_restores_nothing(opened):
    with opened() as checkpoints:
        assert checkpoints.restore(abstract()) is None


def test_the_newest_and_the_best_are_kept_across_restarts(opened, tmp_path):
    save(opened, 1, 2, 3, scores={1: 3.0, 2: 1.0, 3: 2.0})
    save(opened, 4, 5, scores={4: 5.0})
    assert steps(tmp_path) == [2, 4, 5]


def test_a_step_that_is_saved_again_is_replaced(opened, tmp_path):
    with opened() as checkpoints:
        for waited in (0, 3):
            checkpoints.save(state(1), RunPosition(1, waited=waited))
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]  # nothing is set aside any more
        assert checkpoints.restore(abstract())[1].waited == 3


def test_a_checkpoint_set_aside_for_an_unfinished_replacement_is_found(opened, tmp_path):
    """The run was killed between setting the old one aside and completing the new one; readers must find the old."""
    save(opened, 3)
    directory = tmp_path / "checkpoints"
    (directory / "3").rename(directory / f"3{checkpoint.REPLACED}")
    shutil.copytree(
        directory / f"3{checkpoint.REPLACED}" / "progress", directory / "3.orbax-checkpoint-tmp" / "progress"
    )
    assert checkpoint.has_checkpoints(tmp_path)
    for step in (None, 3):
        assert checkpoint.read(tmp_path, {"step": abstract()["step"]}, step)[0] == 3
    assert checkpoint.best_step(tmp_path) == 7
    with opened() as checkpoints:
        assert checkpoints.restore(abstract())[1].step == 3
    assert steps(tmp_path) == [3]


@pytest.mark.parametrize("harm", [flip_a_bit, cut_short, lose_a_file, never_sealed])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(opened, said, tmp_path, harm):
    save(opened, 1, 2)
    harm(tmp_path / "checkpoints" / "2")
    with opened() as checkpoints:
        restored, progress = checkpoints.restore(abstract())
        assert progress.step == int(restored["step"]) == 1
        checkpoints.save(state(2), RunPosition(2))  # the damaged one does not stand in the way
    assert len(said) == 1 and said[0].startswith("checkpoint 2 is skipped")
    assert checkpoint.newest_intact(tmp_path / "checkpoints") == 2


def test_a_damaged_checkpoint_does_not_count_among_those_kept(opened, tmp_path):
    save(opened, 1, 3)
    flip_a_bit(tmp_path / "checkpoints" / "3")
    with opened(keep=1) as checkpoints:
        checkpoints.restore(abstract())
        checkpoints.save(state(2), RunPosition(2))
    assert steps(tmp_path) == [2]


def test_a_half_written_checkpoint_is_no_checkpoint(opened, said, tmp_path):
    save(opened, 1)
    directory = tmp_path / "checkpoints"
    shutil.copytree(directory / "1", directory / "2.orbax-checkpoint-tmp")
    with opened() as checkpoints:
        assert checkpoints.restore(abstract())[1].step == 1
        checkpoints.save(state(2), RunPosition(2))  # the half-written one does not stand in the way
    assert steps(tmp_path) == [1, 2] and not said
    assert checkpoint.newest_intact(directory) == 2


def test_when_all_checkpoints_are_damaged_restoring_fails(opened, tmp_path):
    save(opened, 1)
    flip_a_bit(tmp_path / "checkpoints" / "1")
    with opened() as checkpoints, pytest.raises(UserError, match="none of the 1 checkpoints"):
        checkpoints.restore(abstract())


def test_a_run_does_not_resume_from_a_checkpoint_without_optimizer_state(opened):
    with opened() as checkpoints:
        checkpoints.save(state(1), RunPosition(1, model_only=True))
    with opened() as checkpoints, pytest.raises(UserError, match=r"start a new run from it, with start\.checkpoint="):
        checkpoints.restore(abstract())


def test_parameters_alone_can_be_read(opened, tmp_path):
    save(opened, 1)
    step, part = checkpoint.read(tmp_path, {"params": abstract()["params"]})
    assert step == 1 and list(part) == ["params"]
    np.testing.assert_array_equal(part["params"]["kernel"], state(1)["params"]["kernel"])


@pytest.fixture
def checked(monkeypatch):
    """A list that collects the files whose checksums are computed, as step/path."""
    found, checksum = [], integrity._crc32

    def watched(path):
        found.append(str(path).rpartition("/checkpoints/")[2])
        return checksum(path)

    monkeypatch.setattr(integrity, "_crc32", watched)
    return found


def sealed(tmp_path, step: int, below: str = "") -> list[str]:
    sums = json.loads((tmp_path / f"checkpoints/{step}/checksums.json").read_text())
    return sorted(f"{step}/{name}" for name in sums if name.startswith(below))


@pytest.mark.parametrize("step", [None, 1])
def test_each_file_of_a_checkpoint_that_is_read_is_checked_once(opened, tmp_path, checked, step):
    """Checking reads a whole checkpoint, which may be terabytes."""
    save(opened, 1)
    checked.clear()
    checkpoint.read(tmp_path, {"params": abstract()["params"]}, step)
    assert sorted(checked) == sealed(tmp_path, 1) != []


def going_on(opened, tmp_path) -> int:
    with opened() as checkpoints:
        return checkpoints.restore(abstract())[1].step


def reading(opened, tmp_path) -> int:
    return checkpoint.read(tmp_path, {"params": abstract()["params"]})[0]


@pytest.mark.parametrize("take", [going_on, reading])
def test_a_damaged_checkpoint_is_passed_over_and_no_file_is_checked_twice(opened, tmp_path, checked, take):
    save(opened, 1, 2)
    flip_a_bit(tmp_path / "checkpoints" / "2")
    checked.clear()
    assert take(opened, tmp_path) == 1
    assert set(sealed(tmp_path, 1)) < set(checked)
    assert len(checked) == len(set(checked))


def test_best_step_checks_only_the_progress_of_the_newest_checkpoint(opened, tmp_path, checked):
    save(opened, 7, 8, scores={7: 0.5})
    checked.clear()
    assert checkpoint.best_step(tmp_path) == 7
    assert sorted(checked) == sealed(tmp_path, 8, "progress") != []
    flip_a_bit(tmp_path / "checkpoints" / "8")  # in an array, but `best_step` reads only the progress
    assert checkpoint.best_step(tmp_path) == 7


def test_a_step_can_be_chosen(opened, tmp_path):
    save(opened, 1, 2)
    step, part = checkpoint.read(tmp_path, {"params": abstract()["params"]}, step=1)
    assert step == 1 and part["params"]["kernel"][0, 0] == 1
    with pytest.raises(UserError, match="no checkpoint of step 7; it has 1, 2"):
        checkpoint.read(tmp_path, {}, step=7)
    flip_a_bit(tmp_path / "checkpoints" / "2")
    with pytest.raises(UserError, match="checkpoint 2 of .* is damaged"):
        checkpoint.read(tmp_path, {}, step=2)


def test_a_run_without_checkpoints_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no checkpoint yet"):
        checkpoint.read(tmp_path, {"params": abstract()["params"]})


def test_progress_is_json(opened, tmp_path):
    assert json.loads(json.dumps(vars(RunPosition())))["best_score"] == float("inf")
