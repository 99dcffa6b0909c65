"""config.json: what is written comes back, and a run directory belongs to one experiment."""

import dataclasses
import errno
import json

import pytest

from deepseek_jax import locks, record
from deepseek_jax.config import (
    DataConfig,
    EvalConfig,
    Experiment,
    LogConfig,
    StoppingConfig,
    SupervisedExperiment,
    TrainConfig,
)
from deepseek_jax.errors import UserError
from deepseek_jax.studies import runs

EXPERIMENT = Experiment(train=TrainConfig(steps=7))


def test_the_experiment_comes_back_from_the_run_directory(tmp_path):
    record.claim(tmp_path / "new" / "run", EXPERIMENT)
    assert record.read(tmp_path / "new" / "run") == EXPERIMENT


def test_config_json_says_the_software(tmp_path):
    record.claim(tmp_path, EXPERIMENT)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["hash"] == record.experiment_hash(EXPERIMENT)
    assert written["packages"]["jax"] and written["python"]
    assert written["git"] is None or len(written["git"]["commit"]) == 40
    assert written["code"] == record.code_hash() and len(written["code"]) == 16


def test_the_hash_tells_settings_apart_and_nothing_else():
    assert record.experiment_hash(EXPERIMENT) == record.experiment_hash(Experiment(train=TrainConfig(steps=7)))
    assert record.experiment_hash(EXPERIMENT) != record.experiment_hash(Experiment())


def test_a_run_directory_refuses_another_experiment(tmp_path):
    record.claim(tmp_path, EXPERIMENT)
    with pytest.raises(UserError) as error:
        record.claim(tmp_path, Experiment(train=TrainConfig(steps=8)))
    expected = f"{tmp_path} holds another experiment: train.steps is 7 there and 8 here; give another --workdir."
    assert str(error.value) == expected
    assert record.read(tmp_path) == EXPERIMENT


def test_a_directory_of_the_other_family_or_none_is_refused(tmp_path):
    record.claim(tmp_path, EXPERIMENT)
    with pytest.raises(UserError, match="holds a run of the family language_model"):
        record.claim(tmp_path, SupervisedExperiment())
    with pytest.raises(UserError, match="is not a directory"):
        record.claim(tmp_path / record.FILE, EXPERIMENT)


def test_a_place_where_nothing_can_be_made_is_told_from_one_where_it_can(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run cannot be made a run directory: Not a directory; give another."):
        record.check_place(tmp_path / "file" / "run")
    record.check_place(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_goes_on_with_other_logging(tmp_path):
    record.claim(tmp_path, EXPERIMENT)
    other = dataclasses.replace(EXPERIMENT, log=LogConfig(every=3))
    record.claim(tmp_path, other)
    assert record.read(tmp_path) == other


@pytest.mark.parametrize("changed", [{"pipeline_microbatches": 4}, {"pipeline_rounds": 2}, {"remat": "full"}])
def test_a_run_goes_on_with_what_another_mesh_needs(tmp_path, changed):
    record.claim(tmp_path, EXPERIMENT)
    other = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, **changed))
    record.claim(tmp_path, other)
    assert record.read(tmp_path) == other
    assert runs.identity(other) != runs.identity(EXPERIMENT), "studies may compare their speed"


def test_a_run_goes_on_where_prepared_data_lies_elsewhere(tmp_path):
    experiment = SupervisedExperiment()
    record.claim(tmp_path, experiment)
    moved = dataclasses.replace(experiment, dataset=dataclasses.replace(experiment.dataset, directory="/data"))
    record.claim(tmp_path, moved)
    assert record.read(tmp_path) == moved


@pytest.mark.parametrize("key", ["every", "batch_size", "batches"])
def test_evaluations_that_may_end_a_run_stay_as_they_are(tmp_path, key):
    """When they are and what they are of; what is looked at afterwards may change."""
    before = EvalConfig(every=2, batch_size=4, batches=8)
    after = dataclasses.replace(before, **{key: 5})
    patient = dataclasses.replace(EXPERIMENT, eval=before, stopping=StoppingConfig(patience=3))
    record.claim(tmp_path, patient)
    shown = dataclasses.replace(before, final_batches=3, samples=0, sample_tokens=7)
    record.claim(tmp_path, dataclasses.replace(patient, eval=shown))
    with pytest.raises(UserError, match=f"eval.{key} is {getattr(before, key)} there and 5 here"):
        record.claim(tmp_path, dataclasses.replace(patient, eval=after))
    assert record.read(tmp_path).eval == shown
    for eval in (before, after):
        record.claim(tmp_path / "impatient", dataclasses.replace(EXPERIMENT, eval=eval))


def test_a_run_may_begin_to_drop_steps_and_not_to_stop_at_them(tmp_path):
    drops = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, on_nonfinite="skip"))
    record.claim(tmp_path, EXPERIMENT)
    record.claim(tmp_path, drops)
    assert record.read(tmp_path) == drops
    with pytest.raises(UserError, match="train.on_nonfinite is skip there and stop here"):
        record.claim(tmp_path, EXPERIMENT)


def test_a_run_among_its_own_texts_is_refused(tmp_path):
    experiment = dataclasses.replace(EXPERIMENT, data=DataConfig(source=str(tmp_path)))
    with pytest.raises(UserError, match="is the directory of data.source"):
        record.claim(tmp_path / ".", experiment)
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_nobody_knows_what_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(UserError, match="has checkpoints but no config.json that describes them"):
        record.claim(tmp_path, EXPERIMENT)


def test_settings_that_an_old_run_does_not_know_take_their_defaults(tmp_path):
    values = dataclasses.asdict(EXPERIMENT)
    del values["optimizer"]["schedule"], values["log"]
    (tmp_path / "config.json").write_text(json.dumps({"experiment": values}))
    assert record.read(tmp_path) == EXPERIMENT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a run directory: it has no config.json"),
        ('{"experi', "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        pytest.param("[" * 10**5, "is damaged", id="nested"),
        ('{"model_type": "deepseek_v3"}', "is a checkpoint, not a run directory; `deepseek-jax quantize` makes one"),
        ('{"experiment": {"model": {"layers": 3}}}', "sets an unknown key, model.layers"),
        ('{"experiment": {"train": {"steps": "x"}}}', "train.steps is 'x'; it must be a whole number."),
    ],
)
def test_a_config_json_that_cannot_be_read(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        record.read(tmp_path)


def test_a_file_system_without_locks_is_trusted(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with record.held(tmp_path / "run"), record.held(tmp_path / "run"):
        pass
