"""start.full_state: runs that go on from the whole state of another's checkpoint, and refusals of what does not fit."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax import record
from deepseek_jax.compress import source
from deepseek_jax.config import CheckpointConfig, EvalConfig, ScheduleConfig, StartConfig
from deepseek_jax.errors import UserError
from deepseek_jax.train import branch
from deepseek_jax.train.checkpoints import any_checkpoint, checkpoint
from deepseek_jax.train.checkpoints.checkpoint import Checkpoints
from deepseek_jax.train.loop import train
from deepseek_jax.train.optim import schedules
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import check
from tests.progress import rows
from tests.train import branch_on_mesh, digits

QUIET = Console(quiet=True)
CLOCKS = ("seconds", "per_second", "bytes", "goodput")  # endings of the only keys that may differ: times and memory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(directory, experiment, run directory) of a trained language model: checkpoints 2, 3, 4 and 6 of six steps."""
    directory = tmp_path_factory.mktemp("branch")
    experiment = branch_on_mesh.experiment(directory)
    train(experiment, directory / "base", QUIET)
    return directory, experiment, directory / "base"


def from_(base, start=4, run=None, **sections):
    """The base's experiment, with `sections` changed, that branches from `run` (by default its own) at step `start`."""
    asked = StartConfig(checkpoint=str(run or base[2]), step=start, full_state=True)
    return dataclasses.replace(base[1], start=asked, **sections)


def begun(experiment):
    """(state, position, what was said, the setup) at the beginning of a branch."""
    setup, said = prepare(experiment, QUIET), []
    return *branch.begin(setup, setup.train_batches(), said.append), said, setup


def changed(base, section, **values):
    """{section: that of the base's experiment with these values}."""
    return {section: dataclasses.replace(getattr(base[1], section), **values)}


def measured(workdir):
    return [{key: value for key, value in row.items() if not key.endswith(CLOCKS)} for row in rows(workdir)]


def kept(base, step, experiment=None):
    """The whole state of a checkpoint, in the shapes of `experiment`, by default that of `base`."""
    return checkpoint.read(base[2], prepare(experiment or base[1], QUIET).abstract, step)[1]


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_an_unchanged_config_gives_the_losses_of_the_run_that_was_not_interrupted(base, tmp_path):
    train(from_(base), tmp_path / "run", QUIET)
    assert measured(tmp_path / "run") == [row for row in measured(base[2]) if row["step"] > 4]
    assert_equal(kept((0, 0, tmp_path / "run"), 6, base[1]), kept(base, 6))


@pytest.mark.slow
def test_a_hybrid_network_goes_on_bit_for_bit(tmp_path):
    """With batch norms, dropout and augmentation, whose randomness follows the step."""
    experiment = digits.experiment(eval=EvalConfig(every=4), checkpoint=CheckpointConfig(every=4, keep=9))
    experiment = dataclasses.replace(
        experiment,
        train=dataclasses.replace(experiment.train, steps=8, ema_decay=0.9),
        log=dataclasses.replace(experiment.log, every=1),
    )
    train(experiment, tmp_path / "base", QUIET)
    train(from_((0, experiment, tmp_path / "base")), tmp_path / "run", QUIET)
    assert measured(tmp_path / "run") == [row for row in measured(tmp_path / "base") if row["step"] > 4]


def test_a_longer_run_with_another_schedule_evaluates_it_at_the_steps_that_follow(base, tmp_path):
    wsd = ScheduleConfig(name="wsd", decay_fraction=0.6)
    optimizer = dataclasses.replace(base[1].optimizer, peak_lr=1e-3, weight_decay=0.2, schedule=wsd)
    longer = from_(base, 4, optimizer=optimizer, **changed(base, "train", steps=10))
    train(longer, tmp_path / "run", QUIET)
    found = {row["step"]: row for row in rows(tmp_path / "run") if "learning_rate" in row}
    rate = schedules.learning_rate(optimizer, 10)
    assert {step: row["learning_rate"] for step, row in found.items()} == {
        step: pytest.approx(float(rate(step - 1)), rel=1e-5) for step in range(5, 11)
    }
    there = next(row for row in rows(base[2]) if row["step"] == 5)
    assert found[5]["loss/total"] == there["loss/total"]  # the same parameters, the same batch
    assert "at step 10" in (tmp_path / "run/report.html").read_text()


@pytest.mark.slow
def test_on_a_mesh_the_state_is_sharded(base, on_devices):
    on_devices(4, branch_on_mesh.check, str(base[0]))


def test_what_differs_is_said(base):
    longer = from_(base, **changed(base, "train", steps=9), eval=EvalConfig(batches=1))
    assert begun(longer)[2] == [f"branching from step 4 of {base[2]}, where train.steps is 6 and here 9"]
    assert begun(from_(base, **changed(base, "train", remat="full")))[2] == [f"branching from step 4 of {base[2]}"]


def test_other_data_are_read_from_their_beginning(base):
    for changes in ({"seed": 1}, {"microbatch_size": 4}):
        _, position, said, _ = begun(from_(base, **changed(base, "train", **changes)))
        assert position.data["position"] == 0
        assert said[1].startswith("the data are read from their beginning")


def test_a_batch_of_more_microbatches_goes_on_in_the_data(base):
    _, position, said, _ = begun(from_(base, **changed(base, "train", batch_size=8)))
    assert position.data["position"] == 8 and len(said) == 1  # four steps of two microbatches


def test_moving_averages_begin_at_the_branch_or_are_left_behind(base):
    _, experiment, workdir = base
    state = begun(from_(base, **changed(base, "train", ema_decay=0.0)))[0]
    assert "ema" not in state
    assert_equal(state["params"], kept(base, 4)["params"])


def test_moving_averages_begin_with_the_parameters_of_a_run_without_them(base, tmp_path):
    """Every array is another: the step donates them all."""
    without = dataclasses.replace(base[1], **changed(base, "train", ema_decay=0.0, steps=2))
    train(without, tmp_path / "run", QUIET)
    state = begun(from_(base, 2, tmp_path / "run"))[0]
    assert_equal(state["ema"]["params"], state["params"])
    addresses = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(addresses) == len(set(addresses))


def test_moments_take_the_dtype_that_this_run_keeps_them_in(base):
    state = begun(from_(base, **changed(base, "optimizer", moment_dtype="bfloat16")))[0]
    there = kept(base, 4)["opt_state"]
    for ours, theirs in zip(jax.tree.leaves(state["opt_state"]), jax.tree.leaves(there), strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(ours.dtype))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state["opt_state"])} == {"bfloat16", "int32"}


def test_the_best_score_is_kept_where_the_checkpoint_is_the_best_one(base):
    best = checkpoint.best_step(base[2])
    assert best == 6  # in so few steps each evaluation, of steps 3 and 6, is the best so far
    longer = changed(base, "train", steps=9)
    assert begun(from_(base, 6, **longer))[1].best_step == 6
    assert np.isfinite(begun(from_(base, 6, **longer))[1].best_score)
    otherwise = dict(eval=EvalConfig(batches=2), **longer)
    for experiment in (from_(base, 4), from_(base, 6, **otherwise)):
        position = begun(experiment)[1]
        assert position.best_step == 0 and position.best_score == np.inf


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("optimizer", {"name": "lion"}, "/nu/.* has no.*optimizer.name is adamw and here lion.*leave start.full_state"),
        ("optimizer", {"name": "sgd"}, "has none and this model has .*; there optimizer.name is adamw and here sgd"),
        ("optimizer", {"schedule": ScheduleConfig("plateau")}, "optimizer.schedule.name is cosine and here plateau"),
        ("model", {"intermediate_size": 48}, r"\(1, 48, 32\); there model.intermediate_size is 64 and here 48"),
        ("model", {"num_hidden_layers": 2}, "does not fit: .* there model.num_hidden_layers is 1 and here 2"),
        ("tune", {"train": "^head$"}, "does not fit: .* there tune.train is empty and here"),
        ("train", {"steps": 4}, "train.steps is 4, which includes the 4 steps that .*/base took"),
    ],
)
def test_what_does_not_fit_is_refused(base, section, values, message):
    with pytest.raises(UserError, match=message):
        begun(from_(base, **changed(base, section, **values)))


def test_directories_without_a_whole_state_are_refused(base, tmp_path):
    with pytest.raises(UserError, match="start.full_state is set, but .*nowhere is not a run directory"):
        begun(from_(base, run=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="base has no checkpoint of step 5; it has 2, 3, 4, 6"):
        begun(from_(base, 5))
    record.claim(tmp_path / "untrained", base[1])
    shutil.copy(base[2] / "tokenizer.json", tmp_path / "untrained")
    with pytest.raises(UserError, match="untrained has no checkpoint yet; train it first"):
        begun(from_(base, 0, tmp_path / "untrained"))
    source.write(tmp_path / "model", source.with_sections(any_checkpoint.read(base[2], 4)))
    with pytest.raises(UserError, match="model holds a model without optimizer state; leave start.full_state out"):
        begun(from_(base, 0, tmp_path / "model"))
    with pytest.raises(UserError, match="start.checkpoint is .*base, a model of the family language_model"):
        begun(digits.experiment(start=from_(base).start))


def test_a_damaged_checkpoint_is_refused_if_it_was_named_and_passed_over_if_not(base, tmp_path, caplog):
    copy = shutil.copytree(base[2], tmp_path / "copy")
    largest = max((copy / "checkpoints/6/state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    longer = changed(base, "train", steps=9)
    with pytest.raises(UserError, match="checkpoint 6 of .*copy is damaged"):
        begun(from_(base, 6, copy, **longer))
    assert begun(from_(base, 0, copy, **longer))[1].step == 4
    assert "checkpoint 6 is skipped" in caplog.text


def test_a_state_that_early_stopping_restored_is_refused_by_the_step_that_it_is_of(base, tmp_path):
    copy = shutil.copytree(base[2], tmp_path / "copy")
    with Checkpoints(copy, CheckpointConfig(keep=9), print) as checkpoints:
        position = dataclasses.replace(checkpoint.read_position(copy, 6), step=8, stopped=True)
        checkpoints.save(kept(base, 4), position, np.inf)
    with pytest.raises(UserError, match="checkpoint 8 of .* is that of step 4, .* set start.step=4"):
        begun(from_(base, 0, copy, **changed(base, "train", steps=9)))


def test_a_run_that_dropped_steps_goes_on_only_where_steps_may_be_dropped(base, tmp_path):
    copy, dropped = shutil.copytree(base[2], tmp_path / "copy"), kept(base, 6)
    dropped["skipped"] += 1
    with Checkpoints(copy, CheckpointConfig(keep=9), print) as checkpoints:
        checkpoints.save(dropped, checkpoint.read_position(copy, 6), np.inf)
    with pytest.raises(UserError, match="copy has dropped 1 steps that were not finite; set train.on_nonfinite=skip"):
        begun(from_(base, 6, copy, **changed(base, "train", steps=9)))
    skipping = changed(base, "train", steps=9, on_nonfinite="skip")
    assert begun(from_(base, 6, copy, **skipping))[0]["skipped"] == 1


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"step": 3}, "start.step applies to start.checkpoint, which is empty"),
        ({"full_state": True}, "start.full_state applies to start.checkpoint, which is empty"),
        ({"checkpoint": "x", "step": 3, "best": True}, "start.best and start.step both name a checkpoint"),
        ({"checkpoint": "x", "full_state": True, "fresh": "^head"}, "start.full_state takes over all parameters"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(base, start, message):
    with pytest.raises(UserError, match=message):
        check(dataclasses.replace(base[1], start=StartConfig(**start)))
