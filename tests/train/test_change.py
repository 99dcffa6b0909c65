"""Training a changed program: it takes part in the step, on any mesh, and a run belongs to one such function."""

import json

import pytest

from deepseek_jax import record
from deepseek_jax.errors import UserError
from deepseek_jax.train.checkpoints.restore import restore_model
from deepseek_jax.train.loop import train
from tests.train import changed
from tests.train.changed import QUIET, brief, pulls, with_a_parameter


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("changed")
    train(brief(directory), directory / "run", QUIET, until=3, change=with_a_parameter(0.5))
    return directory


@pytest.mark.slow
def test_a_parameter_of_ones_own_is_trained_on_two_devices_as_on_one(run, on_devices):
    one = pulls(run / "run")
    assert len(one) == 3 and one[-1] < one[0]
    assert on_devices(2, changed.on_two_devices, str(run)) == pytest.approx(one, rel=1e-5)


def test_a_run_is_resumed_with_the_same_change_only(run):
    name = json.loads((run / "run/config.json").read_text())["change"]
    assert name.startswith("changed-")
    for other, shown in ((None, "None"), (with_a_parameter(0.25), "changed-")):
        with pytest.raises(UserError) as refused:
            train(brief(run), run / "run", QUIET, change=other)
        assert str(refused.value).startswith(f"{run}/run holds a run with change={name}, and here it is {shown}")
    assert "final/loss" in train(brief(run), run / "run", QUIET, change=with_a_parameter(0.5))
    assert len(pulls(run / "run")) == 6
    assert "pull" not in restore_model(run / "run").params  # readers of runs load the model


def test_a_run_directory_of_before_has_no_change(tmp_path):
    record.claim(tmp_path, brief(tmp_path))
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in written.items() if key != "change"}))
    record.claim(tmp_path, brief(tmp_path))
    with pytest.raises(UserError, match="holds a run with change=None, and here it is mine-12"):
        record.claim(tmp_path, brief(tmp_path), "mine-12")


def test_a_change_without_a_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be functions defined with `def`, but one is <function .*<lambda>"):
        train(brief(tmp_path), tmp_path / "run", QUIET, change=lambda program: program)
    names = {}
    exec("def change(program):\n    return program", names)
    with pytest.raises(UserError, match="^change is known by its source, .* define it in a file"):
        train(brief(tmp_path), tmp_path / "run", QUIET, change=names["change"])
    assert not (tmp_path / "run").exists()
