"""config.json of a run: it is read back as written, and a run directory belongs to one experiment."""

import dataclasses
import errno
import json

import pytest

from deepseek_jax import files, record
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


def test_the_experiment_is_read_back_from_the_run_directory(tmp_path):
    record.claim(tmp_path / "new" / "run", EXPERIMENT)
    assert record.read(tmp_path / "new" / "run") == EXPERIMENT


def test_config_json_records_the_software(tmp_path):
    record.claim(tmp_path, EXPERIMENT)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["hash"] == record.experiment_hash(EXPERIMENT)
    assert written["packages"]["jax"] and written["python"]
    assert written["git"] is None or len(written["git"]["commit"]) == 40
    assert written["code"] == record.code_hash() and len(written["code"]) == 16


def test_the_hash_depends_on_the_settings_alone():
    assert record.experiment_hash(EXPERIMENT) == record.experiment_hash(Experiment(train=TrainConfig(steps=7)))
    assert record.experiment_hash(EXPERIMENT) != record.experiment_hash(Experiment())


def test_a_run_directory_refuses_another_experiment(tmp_path):
    record.claim(tmp_path, EXPERIMENT)
    with pytest.raises(UserError) as error:
        record.claim(tmp_path, Experiment(train=TrainConfig(steps=8)))
    expected = f"{tmp_path} holds another experiment: train.steps is 7 there and 8 here; give another --workdir (to go"
    assert str(error.value).startswith(expected) and "start.full_state=true" in str(error.value)
    assert record.read(tmp_path) == EXPERIMENT


def test_a_run_of_the_other_family_and_a_file_are_refused_as_run_directory(tmp_path):
    record.claim(tmp_path, EXPERIMENT)
    with pytest.raises(UserError, match="holds a run of the family language_model"):
        record.claim(tmp_path, SupervisedExperiment())
    with pytest.raises(UserError, match="is not a directory"):
        record.claim(tmp_path / record.CONFIG_FILE, EXPERIMENT)


def test_check_place_refuses_impossible_paths_without_creating_anything(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run cannot be made a run directory: Not a directory"):
        record.check_place(tmp_path / "file" / "run")
    record.check_place(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_may_resume_with_other_logging(tmp_path):
    record.claim(tmp_path, EXPERIMENT)
    other = dataclasses.replace(EXPERIMENT, log=LogConfig(every=3))
    record.claim(tmp_path, other)
    assert record.read(tmp_path) == other


@pytest.mark.parametrize("changed", [{"pipeline_microbatches": 4}, {"pipeline_rounds": 2}, {"remat": "full"}])
def test_a_run_may_resume_with_other_pipeline_and_remat_settings(tmp_path, changed):
    record.claim(tmp_path, EXPERIMENT)
    other = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, **changed))
    record.claim(tmp_path, other)
    assert record.read(tmp_path) == other
    assert runs.identity(other) != runs.identity(EXPERIMENT), "studies may compare their speed"


def test_a_run_may_resume_with_prepared_data_elsewhere(tmp_path):
    experiment = SupervisedExperiment()
    record.claim(tmp_path, experiment)
    moved = dataclasses.replace(experiment, dataset=dataclasses.replace(experiment.dataset, directory="/data"))
    record.claim(tmp_path, moved)
    assert record.read(tmp_path) == moved


@pytest.mark.parametrize("key", ["every", "batch_size", "batches"])
def test_with_early_stopping_a_run_may_not_resume_with_other_evaluations(tmp_path, key):
    """With early stopping, when evaluations take place and on which batches is fixed; the final scoring may change."""
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


def test_a_run_may_switch_to_skipping_non_finite_steps_but_not_back(tmp_path):
    drops = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, on_nonfinite="skip"))
    record.claim(tmp_path, EXPERIMENT)
    record.claim(tmp_path, drops)
    assert record.read(tmp_path) == drops
    with pytest.raises(UserError, match="train.on_nonfinite is skip there and stop here"):
        record.claim(tmp_path, EXPERIMENT)


def test_a_run_directory_that_is_the_source_of_its_texts_is_refused(tmp_path):
    experiment = dataclasses.replace(EXPERIMENT, data=DataConfig(source=str(tmp_path)))
    with pytest.raises(UserError, match="is the directory of data.source"):
        record.claim(tmp_path / ".", experiment)
    assert not list(tmp_path.iterdir())


def test_a_directory_with_checkpoints_but_no_config_json_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(UserError, match="has checkpoints but no config.json that describes them"):
        record.claim(tmp_path, EXPERIMENT)


def test_settings_missing_in_an_old_config_json_take_their_defaults(tmp_path):
    values = dataclasses.asdict(EXPERIMENT)
    del values["optimizer"]["schedule"], values["log"]
    (tmp_path / "config.json").write_text(json.dumps({"experiment": values}))
    assert record.read(tmp_path) == EXPERIMENT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a run directory: it has no config.json"),
        ('{"experi', "config.json is not JSON"),
        ("[]", "config.json is not a JSON object"),
        ("{}", "config.json is damaged: it has no entry 'experiment'"),
        pytest.param("[" * 10**5, "config.json is not JSON", id="nested"),
        ('{"model_type": "deepseek_v3"}', "is a checkpoint, not a run directory; `deepseek-jax quantize` makes one"),
        ('{"experiment": {"model": {"layers": 3}}}', "sets an unknown key, model.layers"),
        ('{"experiment": {"train": {"steps": "x"}}}', "train.steps is 'x'; it must be a whole number."),
    ],
)
def test_an_unreadable_config_json_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        record.read(tmp_path)


def test_on_a_file_system_without_locks_runs_are_not_locked(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with record.held(tmp_path / "run"), record.held(tmp_path / "run"):
        pass
