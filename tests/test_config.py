"""A config file and overrides become a checked experiment, or an error message."""

import dataclasses
import math
import re
import textwrap
import typing

import numpy as np
import pytest

from deepseek_jax import experiment_file, fields
from deepseek_jax.config import Experiment, OptimizerConfig, default_config
from deepseek_jax.errors import UserError
from deepseek_jax.parallel.mesh import axis_sizes

TINY = "configs/v3_tiny.py"


@pytest.fixture
def in_repository(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)


@pytest.fixture
def config_file(tmp_path):
    """config_file(body) writes a config file whose get_config() has this body, and returns its path."""

    def write(body: str) -> str:
        head = "from deepseek_jax.config import default_config\n\ndef get_config():\n    config = default_config()\n"
        path = tmp_path / "mine.py"
        path.write_text(head + textwrap.indent(body, "    "))
        return str(path)

    return write


@pytest.fixture
def for_pods(pytestconfig):
    """The experiments of the configs whose mesh has several devices."""
    paths = (pytestconfig.rootpath / "configs").glob("[!_]*.py")
    found = {path.stem: experiment_file.resolve(str(path)) for path in paths}
    return {name: each for name, each in found.items() if abs(math.prod(dataclasses.astuple(each.mesh))) > 1}


def test_configs_for_pods_save_and_evaluate_during_the_run(for_pods):
    """Otherwise losing a host would cost all steps since the first."""
    assert set(for_pods) == {"v2_236b", "v3_671b", "v32_671b", "v4_flash", "v4_pro"}
    assert all(each.checkpoint.every > 0 and each.eval.every > 0 for each in for_pods.values())


def test_configs_for_pods_use_all_devices_of_a_larger_pod(for_pods):
    for each in for_pods.values():
        devices = each.mesh.fsdp * each.mesh.expert
        assert [axis_sizes(each.mesh, times * devices)["data"] for times in (1, 2)] == [1, 2]


def test_defaults_survive_the_round_trip_through_a_config_dict():
    assert fields.build(default_config().to_dict(), origin="defaults") == Experiment()


def test_every_default_has_its_fields_type_and_can_be_parsed_from_text():
    defaults = fields.flatten(default_config().to_dict())
    for key, kind in fields.leaf_types("language_model").items():
        assert fields.convert(key, defaults[key], kind) == defaults[key]
        text = ",".join(map(str, defaults[key])) if typing.get_origin(kind) is tuple else str(defaults[key])
        assert fields.parse(key, text, kind) == defaults[key]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.peak_lr", "3e-4", 3e-4),
        ("optimizer.peak_lr", "1", 1.0),
        ("mesh.data", "-1", -1),
        ("model.tie_word_embeddings", "yes", True),
        ("model.tie_word_embeddings", "False", False),
        ("data.source", "texts/a=b", "texts/a=b"),
        ("data.tokenizer", "", ""),
        ("optimizer.schedule.milestones", "0.5,1", (0.5, 1.0)),
        ("optimizer.schedule.milestones", "(0.5,)", (0.5,)),
        ("optimizer.schedule.milestones", "()", ()),
        ("optimizer.groups", "(head|norm) lr=10", ("(head|norm) lr=10",)),
        ("optimizer.groups", "(head lr=10, (q|k) decay=0)", ("head lr=10", "(q|k) decay=0")),
    ],
)
def test_overrides_are_parsed_as_the_type_of_their_field(key, text, value):
    parsed = fields.parse(key, text, fields.leaf_types("language_model")[key])
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.n_shared", "1", f"{TINY} has no key model.n_shared; did you mean model.n_shared_experts?"),
        ("peak_lr", "1", f"{TINY} has no key peak_lr; did you mean optimizer.peak_lr?"),
        ("optimizer.lr", "1", f"{TINY} has no key optimizer.lr; did you mean optimizer.peak_lr?"),
        ("zzzz", "1", f"{TINY} has no key zzzz."),
        (
            "family",
            "supervised",
            f"family is language_model in {TINY}, which decides what can be set; give a config of another family.",
        ),
        ("model", "1", f"model is a section of {TINY}; set one of its keys, such as model.vocab_size."),
        ("train.steps", "many", "train.steps is 'many'; it must be a whole number."),
        ("train.steps", "1.5", "train.steps is '1.5'; it must be a whole number."),
        ("optimizer.peak_lr", "nan", "optimizer.peak_lr is 'nan'; it must be a finite number."),
        ("log.tensorboard", "maybe", "log.tensorboard is 'maybe'; it must be true or false."),
        ("optimizer.schedule.milestones", "a", "optimizer.schedule.milestones is 'a'; it must be a finite number."),
        (
            "optimizer.name",
            "lyon",
            "optimizer.name is 'lyon'; choose one of adam, adamw, muon, sgd, rmsprop, adagrad, lion, or one that a "
            "module of `plugins` adds.",
        ),
        (
            "optimizer.groups",
            "foo",
            "optimizer.groups has 'foo'; write a regular expression and factors, as in 'head lr=10 decay=0'.",
        ),
        ("train.seed", "-1", "train.seed is -1; it must be at least 0."),
        ("optimizer.b1", "1.0", "optimizer.b1 is 1, a moment that never moves; set it below 1."),
    ],
)
def test_wrong_overrides_are_refused(in_repository, key, text, message):
    with pytest.raises(UserError) as error:
        experiment_file.resolve(TINY, {key: text})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.schedule.name": "one_cycle"}, "schedule.name is one_cycle, which has a rise of its own"),
        ({"optimizer.schedule.name": "exponential", "optimizer.schedule.decay_ratio": "0"}, "must be above 0"),
        ({"optimizer.schedule.name": "range", "optimizer.schedule.final_ratio": "0"}, "must be above 0"),
        ({"optimizer.schedule.name": "plateau", "optimizer.schedule.decay_ratio": "1"}, "lowers nothing"),
        ({"optimizer.schedule.name": "plateau", "optimizer.schedule.decay_ratio": "0"}, "must be above 0"),
        ({"optimizer.moment_dtype": "bfloat16", "optimizer.b2": "0.999"}, "optimizer.moment_dtype=float32"),
        ({"optimizer.moment_dtype": "bfloat16", "optimizer.b1": "0.998"}, "or optimizer.b1 to at most 0.99"),
        (
            {"optimizer.moment_dtype": "bfloat16", "optimizer.name": "sgd", "optimizer.b1": "0.998"},
            "or optimizer.b1 to at most 0.99",
        ),
        (
            {"optimizer.moment_dtype": "bfloat16", "optimizer.name": "lion", "optimizer.b2": "0.999"},
            "or optimizer.b2 to at most 0.99",
        ),
        ({"optimizer.moment_dtype": "bfloat16", "optimizer.name": "adagrad"}, "optimizer.moment_dtype=float32"),
        ({"data.source": ""}, "data.source is empty; name a corpus, a file or a directory"),
        ({"train.ramp_start": "2", "train.microbatch_size": "2"}, "train.ramp_fraction"),
        ({"optimizer.name": "adam"}, "optimizer.name=adamw or set optimizer.weight_decay=0"),
        ({"eval.sample_tokens": "0"}, "eval.sample_tokens is 0; it must be at least 1"),
        ({"train.steps": "100000000000000000000"}, "it must be at most 2147483647"),
        ({"train.ema_decay": "1.0"}, "an average that never moves"),
        ({"tune.lora.rank": "2", "tune.last_layers": "1"}, "tune.lora.paths"),
        ({"stopping.patience": "2", "eval.every": "0"}, "stopping.patience counts evaluations"),
    ],
)
def test_contradictory_settings_are_refused(in_repository, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        experiment_file.resolve(TINY, overrides)


def test_experiments_made_in_python_are_checked():
    def of(**train):
        return dataclasses.replace(Experiment(), train=dataclasses.replace(Experiment().train, **train))

    mixed = dataclasses.replace(Experiment(), optimizer=OptimizerConfig(peak_lr=1, groups=["head lr=2"]))
    assert fields.checked(mixed).optimizer == OptimizerConfig(peak_lr=1.0, groups=("head lr=2",))
    for wrong, message in [
        (of(seed=np.int64(3)), "train.seed is .*3.*; it must be a whole number"),
        (of(steps=6.0), "train.steps is 6.0; it must be a whole number"),
        (dataclasses.replace(Experiment(), optimizer=OptimizerConfig(peak_lr=math.nan)), "it must be a finite number"),
        (default_config(), "this is a ConfigDict, not an experiment"),
    ]:
        with pytest.raises(UserError, match=message):
            fields.checked(wrong)


@pytest.mark.parametrize(("name", "unused"), [("sgd", "b2"), ("lion", "b1")])
def test_bfloat16_moments_ignore_decay_rates_that_the_optimizer_does_not_use(name, unused):
    OptimizerConfig(name=name, moment_dtype="bfloat16", **{unused: 0.999})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("config.model.vocab_siz = 3\nreturn config", "there is no key vocab_siz; did you mean model.vocab_size?"),
        ("config.model.update(vocab_siz=3)\nreturn config", "line 5: there is no key vocab_siz"),
        ("config.train.steps = 'many'\nreturn config", "line 5: train.steps is 'many'; it must be a whole number."),
        ("config.log.every = 'x'\nreturn config", "line 5: every is 'x'; it must be a whole number."),
        ("config.optimizer.peak_lr = 'x'\nreturn config", "optimizer.peak_lr is 'x'; it must be a finite number."),
        ("config.optimizer.update(nesterov=1)\nreturn config", "optimizer.nesterov is 1; it must be true or false."),
        ("config.optimizer.groups = 'a lr=1'\nreturn config", "optimizer.groups is 'a lr=1'; it must be a list."),
        ("config.optimizer = 3\nreturn config", "line 5: optimizer is 3; it must be a section of settings."),
        ("config.family = 'hybrid'\nreturn config", "is of the family 'hybrid'; choose one of language_model, "),
        ("\nreturn config.model.vocab_size / 0", "line 6: ZeroDivisionError: division by zero."),
        ("import no_such_module", "line 5: ModuleNotFoundError: No module named 'no_such_module'."),
        ("return config )", "line 5: unmatched ')'."),
        ("config.train.steps = None\nreturn config", "train.steps is None; it must be a whole number."),
        ("config.train.steps = True\nreturn config", "train.steps is True; it must be a whole number."),
        ("return {}", "must change and return deepseek_jax.config.default_config()"),
        ("with config.unlocked(): del config.train\nreturn config", "what it returns lacks train.batch_size."),
    ],
)
def test_wrong_config_files_are_refused(config_file, body, message):
    with pytest.raises(UserError) as error:
        experiment_file.resolve(config_file(body))
    assert message in str(error.value)


def test_missing_files_and_files_without_get_config_are_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "run.json").write_text("{}")
    for name, message in (
        ("missing.py", "there is no config file"),
        ("empty.py", "has no function get_config()"),
        ("run.json", "is not a Python file"),
    ):
        with pytest.raises(UserError, match=message):
            experiment_file.load(str(tmp_path / name))


def test_a_config_imports_its_siblings_from_any_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "sibling_configs"
    folder.mkdir()
    (folder / "common.py").write_text("STEPS = 7\n")
    (folder / "mine.py").write_text(
        "from deepseek_jax.config import default_config\n"
        "from sibling_configs import common\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.train.steps = common.STEPS\n"
        "    return config\n"
    )
    monkeypatch.chdir("/")
    assert experiment_file.resolve(str(folder / "mine.py")).train.steps == 7


def test_a_config_file_is_never_read_from_a_stale_cache(config_file, tmp_path):
    """Even if changed within a second to another text of the same length, and without leaving a __pycache__."""
    for steps in "345":
        path = config_file(f"config.train.steps = {steps}\nreturn config")
        assert experiment_file.load(path).train.steps == int(steps)
    assert len([*tmp_path.iterdir()]) == 1


def test_an_override_reaches_settings_tied_to_the_key_by_reference(config_file):
    path = config_file("config.model.max_position_embeddings = config.data.get_ref('sequence_length')\nreturn config")
    experiment = experiment_file.resolve(path, {"data.sequence_length": "64"})
    assert experiment.model.max_position_embeddings == experiment.data.sequence_length == 64


def test_every_config_of_the_repository_resolves(in_repository, pytestconfig):
    for path in sorted(pytestconfig.rootpath.glob("configs/[!_]*.py")):
        if "def get_config" in path.read_text():
            assert dataclasses.is_dataclass(experiment_file.resolve(str(path)))
