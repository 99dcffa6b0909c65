"""Parts of a user's own, in modules that an experiment names: every verb that reads a run imports them by itself."""

import contextlib
import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax import fields, part_settings, parts, plugins, record, unused
from deepseek_jax.__main__ import main
from deepseek_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    Experiment,
    LogConfig,
    OptimizerConfig,
    ScheduleConfig,
    SupervisedExperiment,
    TrainConfig,
    plain,
)
from deepseek_jax.errors import UserError
from deepseek_jax.experiment_file import resolve
from deepseek_jax.models import checks
from deepseek_jax.models.attention import costs, kinds
from deepseek_jax.models.attention.gqa import GroupedQueryAttention
from deepseek_jax.models.rope import tables
from deepseek_jax.part_settings import SETTINGS
from deepseek_jax.studies.runs import identity
from deepseek_jax.train.abstract import describe
from deepseek_jax.train.checkpoints import any_checkpoint
from deepseek_jax.train.optim import optimizer
from deepseek_jax.train.reporting.sinks import read_rows
from deepseek_jax.train.setup import prepare
from tests import added_parts
from tests.paths import ROOT
from tests.processes import Group, to_end
from tests.train import tiny
from tests.user_files import TOPICS, write_config, write_texts

TRAIN = "train", "--config", "configs/base.py", "--workdir"
MODEL = dataclasses.replace(
    tiny.ROUTED, vocab_size=512, max_position_embeddings=64, layer_types=("gqa",), num_key_value_heads=1, head_dim=16
)
GATED = "--config.model.layer_types=gated"
GATED_AND_Z = "--config.plugins=mine.gated,mine.z_loss", GATED, "--config.model.mlp_layer_types=moe_z"
SET = "--config.parts.gated.bias=1", "--config.parts.moe_z.weight=1e-2"


def as_in_a_new_process():
    return added_parts.as_in_a_new_process(("mine", "broken", "parts_of_mine"))


@pytest.fixture(autouse=True)
def new_process():
    with as_in_a_new_process():
        yield


@pytest.fixture
def command(run_command):
    """As `run_command`, in what seems to be a process of its own."""

    def run(*words):
        with as_in_a_new_process():
            return run_command(*words)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's directory: the package `mine` with the files of experiments/parts, and a config."""
    folder = tmp_path_factory.mktemp("plugins")
    shutil.copytree(ROOT / "experiments" / "parts", folder / "mine")
    source = write_texts(folder / "text.jsonl", TOPICS[:20])
    experiment = Experiment(
        model=MODEL,
        data=DataConfig(source=source, directory=str(folder / "data"), sequence_length=32, held_out=0.1),
        train=TrainConfig(steps=2, batch_size=2),
        eval=EvalConfig(batches=1, final_batches=1, samples=0),
        checkpoint=CheckpointConfig(every=1),
        log=LogConfig(every=1, tensorboard=False),
    )
    (folder / "configs").mkdir()
    write_config(folder / "configs" / "base.py", experiment)
    with contextlib.chdir(folder), as_in_a_new_process():
        assert main([*TRAIN, "run", *GATED_AND_Z, *SET]) == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """Makes the user's directory the current one."""
    monkeypatch.chdir(folder)
    return folder


def test_every_verb_that_reads_a_run_imports_its_parts(here, command):
    shutil.rmtree("run/checkpoints/2")
    status, out, err = command(*TRAIN, "run", *GATED_AND_Z, *SET)
    assert (status, err) == (0, "") and "resuming from step 1" in out
    status, out, err = command("eval", "--workdir", "run")
    assert status == 0 and "total" in out, err
    generate = "generate", "--prompt", "The", "--max-new-tokens", "4", "--workdir"
    texts = [command(*generate, "run")]
    assert command("convert", "run", "released")[0] == 0
    assert command("convert", "released", "orbax", "--to", "orbax")[0] == 0
    texts += [command(*generate, each) for each in ("released", "orbax")]
    assert texts[0][0] == 0 and texts[0] == texts[1] == texts[2]
    with as_in_a_new_process():
        assert kinds.KINDS.keys().isdisjoint(["gated"])
        run = record.read("run")
        assert run.model.layer_types == ("gated",) and run.parts.gated.bias == 1 and run.parts.moe_z.weight == 0.01
        assert issubclass(kinds.KINDS["gated"], GroupedQueryAttention)
        for directory in ("released", "orbax"):
            found = any_checkpoint.read(directory).experiment
            assert found.model == run.model and found.model.parts == run.parts
            assert (found.plugins, found.parts) == (run.plugins, run.parts), "so that `quantize` can write a run"


@pytest.mark.slow
def test_a_part_is_a_variant_of_a_study(here, command):
    """Its runs and the report are made by workers, which are processes of their own."""
    (here / "studies").mkdir()
    (here / "studies" / "gates.py").write_text(
        '''"""Do gates help?"""
from deepseek_jax.studies import Study, Variant

study = Study(
    base="configs/base.py", budget=128, seeds=1, metric="final/loss", margin=0.5,
    variants=[
        Variant("plain"),
        Variant("gated", {"plugins": ("mine.gated",), "model.layer_types": ("gated",), "parts.gated.bias": 2.0}),
    ],
    claim="gated no different from plain",
)
'''
    )
    words = "-P", "-m", "deepseek_jax", "study"  # -P: as the command `deepseek-jax`, which adds no current directory
    with Group(here, *words, "run", "studies/gates.py", "--root", "studied") as study:
        said = to_end(study)
    assert said.count("final/loss") == 2
    with as_in_a_new_process():
        to_end(Group(here, *words, "report", "studies/gates.py", "--root", "studied", "--output", "report"))
    found = json.loads((here / "report" / "results.json").read_text())
    assert {run["variant"] for run in found["runs"]} == {"plain", "gated"} and not found["failed"]


def test_a_module_can_add_a_term_to_the_loss(here):
    row = next(iter(read_rows("run/metrics.jsonl")))
    assert row["loss/router_z"] == pytest.approx(1e-2 * sum(row["router/own/z"].values()), rel=1e-4)
    parts_of_loss = row["loss/next"] + 1e-4 * row["loss/balance"] + row["loss/router_z"]
    assert row["loss/total"] == pytest.approx(parts_of_loss, rel=1e-5)
    assert 0 < row["router/own/z"]["0"] < 10  # square of log 8, for near-zero logits: 4.3


def test_plan_and_compile_change_the_program_as_training_does(here):
    experiment = record.read("run")
    planned, trained = describe(experiment).program, prepare(experiment).task.program
    assert planned.made_of[-1] is trained.made_of[-1] is sys.modules["mine.z_loss"].change_program
    assert not planned.adds_up and not trained.adds_up  # what a loss adds may not be a sum over sequences


DATA = """
import dataclasses
import numpy as np
from deepseek_jax.data.corpora import TextCorpus
from deepseek_jax.data.documents import Document
from deepseek_jax.data.sets.source import Source, numbered
from deepseek_jax.parts import add_corpus, add_labelled_set


@dataclasses.dataclass(frozen=True)
class Size:
    count: int = 60


class Counting(TextCorpus, skip_registration=True):  # tests import it again and again
    def __init__(self, *, count, **kwargs):
        self.count = count
        super().__init__(**kwargs)

    @staticmethod
    def provenance(count):
        return {"count": count}

    def documents(self, skipped):
        for start in range(self.count):
            yield Document(str(start), str(start), " ".join(map(str, range(start, start + 40))))


def sums(config):
    count = config.parts.sums.count
    inputs = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    records = {"ids": numbered(count), "inputs": inputs, "targets": inputs.sum(axis=1, keepdims=True)}
    return Source("sums", "numbers", "table", records, names=("a", "b", "c"), target_names=("sum",))


add_corpus("counting", Counting, settings=Size)
add_labelled_set("sums", "table", sums, settings=Size)
"""


def test_a_module_can_add_a_corpus_and_a_labelled_set(here, command):
    (here / "mine" / "data.py").write_text(DATA)
    own = "--config.plugins=mine.data", "--config.train.steps=2"
    for count, counted in ((200, "counted"), (210, "longer")):  # in the same data.directory
        more = f"--config.parts.counting.count={count}", "--config.data.source=counting"
        assert command(*TRAIN, counted, *own, *more)[0] == 0
    status, out, err = command("eval", "--workdir", "counted")
    assert status == 0 and "step 2 of counted on counting in rows of 32 tokens" in out, err
    assert out.partition("counting in")[2] != command("eval", "--workdir", "longer")[1].partition("counting in")[2]
    log = LogConfig(tensorboard=False)
    write_config(here / "configs" / "table.py", SupervisedExperiment(log=log, train=TrainConfig(batch_size=8)))
    words = "--config", "configs/table.py", "--workdir", "summed", "--config.dataset.name=sums"
    assert command("train", *words, *own, "--config.objective.name=mse", "--config.parts.sums.count=50")[0] == 0
    status, out, err = command("eval", "--workdir", "summed")
    assert status == 0 and "step 2 of summed on the test split of sums" in out, err
    assert json.loads((here / "summed" / "config.json").read_text())["experiment"]["parts"]["sums"] == {"count": 50}
    assert command("train", *words, *own, "--config.parts.sums.count=5.5")[2].endswith("must be a whole number.\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_library", "broken.py line 1: ModuleNotFoundError: No module named 'no_such_library'."),
        ("x = 1\n1 / 0", "broken.py line 2: ZeroDivisionError: division by zero."),
        ("def", "broken.py line 1: invalid syntax."),
        (
            "from deepseek_jax.models.moe.router import Router\nfrom deepseek_jax import parts\n"
            "parts.add_router('moe', Router)",
            "the plugin broken: moe is the name of another part; give yours a name of its own.",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_with_its_line(
    folder, tmp_path, monkeypatch, command, content, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text(content + "\n")
    config = str(folder / "configs" / "base.py")
    status, _, err = command("train", "--config", config, "--workdir", "run", "--config.plugins=broken")
    assert status == 2 and err.endswith(f"{message}\n") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_whose_module_is_not_here_is_refused_before_anything_is_read(here, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (("eval",), ("generate", "--prompt", "x")):
        status, _, err = command(*words, "--workdir", str(here / "run"))
        assert status == 2 and err == (
            f"deepseek-jax: {here}/run/config.json names the plugin mine.gated, and there is no module mine, neither "
            f"in {tmp_path} nor where Python finds modules; run this where it is, or add its directory to PYTHONPATH.\n"
        )
    (tmp_path / "mine.py").write_text("")
    assert "there is no module mine.gated, neither in" in command("eval", "--workdir", str(here / "run"))[2]


def test_a_directory_of_a_run_is_no_place_for_modules(here, command, tmp_path, monkeypatch):
    """Who made the run could have put anything there."""
    shutil.copytree(here / "run", tmp_path / "run")
    shutil.copytree(here / "mine", tmp_path / "run" / "mine")
    monkeypatch.chdir(tmp_path)
    assert "no module mine, neither" in command("eval", "--workdir", "run")[2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["mine/gated.py"], "plugins has 'mine/gated.py' in a file; name a module as `import` does: parts.gated for "),
        ([".gated"], "plugins has '.gated' in a file; name a module"),
        ([""], "plugins has '' in a file; name a module"),
        ("mine.gated", "plugins is 'mine.gated'; it must be a list of str."),
        ([3], "plugins is 3; it must be text."),
        (None, "plugins is None; it must be a list of str."),
    ],
)
def test_what_is_no_list_of_modules_is_refused(value, message):
    for family in ("language_model", "supervised"):
        with pytest.raises(UserError) as caught:
            fields.build({"family": family, "plugins": value}, "a file")
        assert str(caught.value).startswith(message)


def test_a_kind_whose_module_is_not_named_is_refused_with_a_hint(here, command):
    status, _, err = command(*TRAIN, "none", GATED)
    assert status == 2 and err.endswith("each must be one of gqa, mla, dsa, window, csa, hca, or be added by a module "
                                        "that `plugins` names.\n")  # fmt: skip


def test_a_run_is_not_resumed_without_its_modules(here, command):
    status, _, err = command(*TRAIN, "run")
    there = "plugins is ('mine.gated', 'mine.z_loss') there and empty here"
    assert status == 2 and f"holds another experiment: {there}" in err


def test_the_source_of_the_modules_is_part_of_the_codes_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    seen = set()
    for number in range(2):
        with as_in_a_new_process():
            (tmp_path / "mine" / "__init__.py").write_text(f"x = {number}\n")
            experiment = fields.build({"plugins": ["mine"]}, "a file")
            record.code_hash.cache_clear()
            seen.add(record.describe(experiment)["code"])
    assert len(seen) == 2 and record.code_hash() not in seen


def test_a_run_tells_of_modules_that_changed_since(here, command):
    module = here / "mine" / "gated.py"
    shutil.copytree(here / "run", here / "changed")
    given = module.read_text()
    module.write_text(f"{given}\n# another version\n")
    try:
        status, _, err = command("generate", "--workdir", "changed", "--prompt", "The", "--max-new-tokens", "2")
        assert status == 0 and "mine.gated, mine.z_loss changed after changed was trained" in err
        status, _, err = command(*TRAIN, "changed", *GATED_AND_Z, *SET)
        assert status == 0 and "changed after" in err
        assert command(*TRAIN, "changed", *GATED_AND_Z, *SET)[2] == "", "as the run now is of this version"
    finally:
        module.write_text(given)


def test_parts_are_added_once_and_with_all_that_they_need():
    class Mine(GroupedQueryAttention):
        """Another class than one of the same name elsewhere."""

    with pytest.raises(UserError, match="^gqa is the name of another part"):
        parts.add_attention("gqa", Mine, like="gqa")
    with pytest.raises(UserError, match="^the attention mine is to be like 'mha'; choose one of gqa, mla"):
        parts.add_attention("mine", Mine, like="mha")
    with pytest.raises(UserError, match="^the attention mine is like no other: give add_attention its sizes and"):
        parts.add_attention("mine", Mine, sizes=["head_dim"])
    with pytest.raises(UserError, match="^mine has the sizes 'head_size'; give a list of fields of ModelConfig"):
        parts.add_feed_forward("mine", Mine, sizes=["head_size"])
    with pytest.raises(UserError, match="^the router mine is a Mine, which is no subclass of Router"):
        parts.add_router("mine", Mine)
    assert "mine" not in kinds.KINDS and "mine" not in checks.OF_FEED_FORWARD
    for _ in range(2):  # the second time as if its module was reloaded
        parts.add_attention("mine", Mine, like="gqa")
    parts.add_attention("narrow", Mine, sizes=["head_dim"], cost=costs.COSTS["gqa"])
    with pytest.raises(UserError, match="^mine is the name of another part"):
        parts.add_attention("mine", GroupedQueryAttention, like="gqa")


def test_a_part_has_the_limits_and_the_rotary_width_of_the_one_it_is_like():
    parts.add_attention("mine", type("Mine", (GroupedQueryAttention,), {}), like="gqa")
    own = dataclasses.replace(MODEL, layer_types=("mine",), qk_rope_head_dim=4)
    assert costs.attention_cost(own, "mine").cached == costs.attention_cost(MODEL, "gqa").cached
    assert tables(own, "mine", np.zeros((1, 1), np.int32))[0].shape == (1, 1, MODEL.head_dim // 2)
    with pytest.raises(UserError, match="num_attention_heads .* must be a multiple of num_key_value_heads"):
        dataclasses.replace(own, num_key_value_heads=3)
    with pytest.raises(UserError, match="head_dim is 0; mine attention needs at least 1"):
        dataclasses.replace(own, head_dim=0)


def test_without_parts_that_have_settings_an_experiment_is_recorded_as_before():
    for family in (Experiment, SupervisedExperiment):
        values = plain(family())
        assert "parts" not in {*values, *values["model"], *values["optimizer"], *values["optimizer"]["schedule"]}
        assert fields.build(values, "a file") == family()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("parts.gated.bais=2",), "configs/base.py has no key parts.gated.bais; did you mean parts.gated.bias?"),
        (("parts.gatde.bias=2",), "configs/base.py has no key parts.gatde.bias; did you mean parts.gated.bias?"),
        (("parts.gated.width=2",), "configs/base.py has no key parts.gated.width; choose one of parts.gated.bias."),
        (("parts.gated=2",), "parts.gated is a section of configs/base.py; set one of its keys, such as parts.gated."),
        (("parts.gated.bias=open",), "parts.gated.bias is 'open'; it must be a finite number."),
        (("parts.moe_z.weight=-1",), "parts.moe_z.weight is -1.0; it must be at least 0."),
        (
            ("plugins=", "parts.gated.bias=2"),
            "no key parts.gated.bias; name the module that adds this part in `plugins` (in",
        ),
        (
            ("plugins=mine.gated", "parts.moe_z.weight=2"),
            "no key parts.moe_z.weight; name the module that adds this part",
        ),
    ],
)
def test_a_wrong_setting_of_a_part_is_refused(here, command, words, message):
    given = [f"--config.{word}" for word in words]
    status, _, err = command(*TRAIN, "refused", "--config.plugins=mine.gated,mine.z_loss", *given)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not (here / "refused").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.parts.gated.bias = 2.5", ""),
        (
            "config.parts.gated.bais = 2.5",
            "odd.py line 8: there is no key parts.gated.bais; did you mean parts.gated.bias?",
        ),
        ("config.parts.gated.bias = 'open'", "odd.py line 8: parts.gated.bias is 'open'; it must be a finite number."),
        (
            "config.parts.moe_z.weight = 1.0",
            "odd.py line 8: there is no key parts.moe_z.weight; name the module that adds this part in `plugins` (in ",
        ),
    ],
)
def test_a_config_file_sets_the_settings_of_its_plugins(here, line, message):
    text = (here / "configs" / "base.py").read_text().replace("default_config\n", "add_plugins, default_config\n")
    text = text.replace("    return", f"    add_plugins(config, 'mine.gated')\n    {line}\n    return")
    (here / "configs" / "odd.py").write_text(text)
    with pytest.raises(UserError) if message else contextlib.nullcontext() as caught:
        found = resolve("configs/odd.py", {"model.layer_types": "gated"})
        assert found.plugins == ("mine.gated",) and found.model.parts.gated.bias == 2.5
        assert resolve("configs/odd.py", {"parts.gated.bias": 1}).parts.gated.bias == 1.0
        assert resolve("configs/odd.py", {"plugins": ""}) == resolve("configs/base.py")
    assert not message or message in str(caught.value)


def test_settings_of_parts_tell_runs_and_variants_apart(here, command):
    status, _, err = command(*TRAIN, "run", *GATED_AND_Z, SET[0])
    assert status == 2 and "holds another experiment: parts.moe_z.weight is 0.01 there and 0.001 here; give" in err
    words = dict(word.removeprefix("--config.").split("=") for word in GATED_AND_Z)
    plain_, other = (resolve("configs/base.py", words | more) for more in ({}, {"parts.gated.bias": 2.0}))
    assert record.experiment_hash(plain_) != record.experiment_hash(other)
    assert hash(plain_.model) != hash(other.model)
    before = identity(plain_)
    assert before != identity(other)
    del SETTINGS["gated"]
    assert identity(resolve("configs/base.py", words)) == before, "a setting added to a part, at its default"


def test_a_setting_of_a_part_that_is_not_used_is_said_to_have_no_effect(here):
    words = {"plugins": "mine.gated,mine.z_loss,mine.adafactor", "model.layer_types": "gated"}
    idle = unused.idle_keys(resolve("configs/base.py", words))
    assert {key for key in idle if key.startswith("parts.")} == {
        *("parts.moe_z.weight", "parts.adafactor.decay_rate", "parts.adafactor.clip"),
    }
    assert idle["parts.moe_z.weight"] == "the experiment does not use moe_z"


def test_a_model_made_by_a_script_has_the_defaults_of_its_parts(here):
    with pytest.raises(UserError, match="layer_types has 'gated'"):
        dataclasses.replace(MODEL, layer_types=("gated",))
    plugins.load(["mine.gated"], "a test")
    model = dataclasses.replace(MODEL, layer_types=("gated",))
    assert model.parts.gated.bias == 0 and MODEL.parts == part_settings.Parts()
    own = dataclasses.replace(model, parts=dataclasses.replace(model.parts, gated=type(model.parts.gated)(bias=3.0)))
    with pytest.raises(UserError, match="model.parts or optimizer.parts differs from the experiment's `parts`"):
        fields.checked(Experiment(plugins=("mine.gated",), model=own))
    given = Experiment(plugins=("mine.gated",), parts=own.parts, model=model)
    assert fields.checked(given).model.parts.gated.bias == 3


def test_a_damaged_section_of_parts_is_refused(here):
    values = plain(record.read("run"))
    for parts_, message in (
        ({"gated": 3}, "parts.gated is 3; it must be an object."),
        ({"gated": {"bias": "x"}}, "parts.gated.bias is 'x'; it must be a finite number."),
        ({"gated": {"bais": 1.0}}, "a file sets an unknown key, parts.gated.bais; did you mean parts.gated.bias?"),
        (None, "parts is None; it must be an object."),
    ):
        with pytest.raises(UserError) as caught:
            fields.build(values | {"parts": parts_}, "a file")
        assert str(caught.value) == message
    assert fields.build(values | {"parts": {}}, "a file").parts.moe_z.weight == 1e-3


@dataclasses.dataclass
class Changeable:
    x: int = 0


@dataclasses.dataclass(frozen=True)
class Needed:
    x: int


@dataclasses.dataclass(frozen=True)
class Whole:
    x: float = 0


@dataclasses.dataclass(frozen=True)
class OtherType:
    x: dict | None = None


@dataclasses.dataclass(frozen=True)
class Fine:
    x: tuple[int, ...] = (1, 2)
    inner: Whole = Whole(x=2.0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("own", Changeable, "the settings of own, Changeable, must be a frozen dataclass"),
        ("own", {"x": 1}, "the settings of own, {'x': 1}, must be a frozen dataclass"),
        ("own", Needed, "the settings of own, Needed, need a default for each field"),
        ("own", Whole, "have x of type float with the default 0; write 0.0."),
        ("own", OtherType, "have x of type dict | None; use int, float, bool, str, or tuple"),
        ("o-wn", Fine, "'o-wn' has settings, so it is a part of keys"),
        ("class", Fine, "'class' has settings, so it is a part of keys"),
    ],
)
def test_settings_that_could_not_be_keys_are_refused(name, settings, message):
    with pytest.raises(UserError) as caught:
        parts.add_settings(name, settings)
    assert message in str(caught.value) and name not in SETTINGS
    parts.add_settings("own", Fine)
    assert fields.leaf_types("supervised", [__name__])["parts.own.inner.x"] is float
    with pytest.raises(UserError, match="^own has settings already"):
        parts.add_settings("own", type("Others", (Fine,), {}))


def test_an_optimizer_and_a_schedule_of_ones_own_train_and_resume(here, command):
    words = "--config.plugins=mine.adafactor,mine.inverse_sqrt", "--config.optimizer.name=adafactor"
    words += "--config.optimizer.schedule.name=inverse_sqrt", "--config.parts.inverse_sqrt.timescale=3"
    assert command(*TRAIN, "whole", *words)[0] == 0
    shutil.copytree("whole", "stopped")
    shutil.rmtree("stopped/checkpoints/2")
    status, out, err = command(*TRAIN, "stopped", *words)
    assert (status, err) == (0, "") and "resuming from step 1" in out
    whole, stopped = (list(read_rows(f"{name}/metrics.jsonl")) for name in ("whole", "stopped"))
    assert [row["loss/total"] for row in whole[:2]] == [row["loss/total"] for row in stopped[:2]]
    rates = [row["learning_rate"] for row in whole[:2]]
    assert rates == pytest.approx([2.2e-4, 2.2e-4 * (1 + 1 / 3) ** -0.5])
    with as_in_a_new_process():
        state = describe(record.read("whole")).state["opt_state"]
    assert any("v_row" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
    assert "total" in command("eval", "--workdir", "whole")[1]


def test_an_optimizer_of_ones_own_is_clipped_and_decayed_as_the_others():
    @dataclasses.dataclass(frozen=True)
    class Sign:
        scale: float = 1.0

    def direction(config, steps, axes):
        return optax.stateless(lambda updates, _: jax.tree.map(lambda x: config.parts.sign.scale * x, updates))

    parts.add_optimizer("sign", direction, settings=Sign)
    kind = part_settings.section(["sign"])
    config = OptimizerConfig(
        name="sign", peak_lr=0.1, weight_decay=0.5, schedule=ScheduleConfig("constant"), parts=kind(Sign(scale=2.0))
    )
    chain, params = optimizer.make_optimizer(config, 10), {"kernel": jnp.ones(1), "scale": jnp.ones(1)}
    gradients = {"kernel": jnp.array([3.0]), "scale": jnp.array([4.0])}  # of norm 5: clipped to 1
    updates, _ = chain.update(gradients, chain.init(params), params, value=0.0)
    np.testing.assert_allclose(updates["kernel"], -0.1 * (2 * 0.6 + 0.5), rtol=1e-6)
    np.testing.assert_allclose(updates["scale"], -0.1 * 2 * 0.8, rtol=1e-6)
    for settings, message in (
        ({"nesterov": True}, "optimizer.nesterov is set, but sign does not use it"),
        ({"moment_dtype": "bfloat16"}, "in which the state of sign would stand still"),
    ):
        with pytest.raises(UserError, match=message):
            OptimizerConfig(name="sign", **settings)


def test_names_of_optimizers_and_schedules_are_their_own():
    for add, name in ((parts.add_optimizer, "lion"), (parts.add_schedule, "cosine"), (parts.add_optimizer, "gqa")):
        with pytest.raises(UserError, match=f"^{name} is the name of another part"):
            add(name, lambda *_: None)
    with pytest.raises(UserError, match="^mine has the settings 'b3'; give a list of fields of OptimizerConfig"):
        parts.add_optimizer("mine", lambda *_: None, uses=["b3"])
    with pytest.raises(UserError, match="schedule.name is 'mine'; choose .* or one that a module of `plugins`"):
        ScheduleConfig("mine")
