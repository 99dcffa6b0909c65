"""Parts of a user's own, in modules that an experiment names: every verb that reads a run imports them by itself."""

import contextlib
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from deepseek_jax import fields, parts, record
from deepseek_jax.__main__ import main
from deepseek_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    Experiment,
    LogConfig,
    SupervisedExperiment,
    TrainConfig,
)
from deepseek_jax.data.corpora import CORPORA
from deepseek_jax.data.sets.registry import SOURCES
from deepseek_jax.errors import UserError
from deepseek_jax.models import checks, feed_forward
from deepseek_jax.models.attention import costs, kinds
from deepseek_jax.models.attention.gqa import GroupedQueryAttention
from deepseek_jax.models.moe import router
from deepseek_jax.models.rope import tables
from deepseek_jax.train.abstract import describe
from deepseek_jax.train.reporting.sinks import read_rows
from deepseek_jax.train.setup import prepare
from tests.paths import ROOT
from tests.processes import Group, to_end
from tests.train import tiny
from tests.user_files import TOPICS, write_config, write_texts

TABLES = (
    *(kinds.KINDS, costs.COSTS, feed_forward.FEED_FORWARDS, router.ROUTERS),
    *(checks.OF_ATTENTION, checks.OF_FEED_FORWARD, checks.LIKE, checks.ADDED_BY, CORPORA, SOURCES),
)
TRAIN = "train", "--config", "configs/base.py", "--workdir"
MODEL = dataclasses.replace(
    tiny.ROUTED, vocab_size=512, max_position_embeddings=64, layer_types=("gqa",), num_key_value_heads=1, head_dim=16
)
GATED = "--config.model.layer_types=gated"
GATED_AND_Z = "--config.plugins=mine.gated,mine.z_loss", GATED, "--config.model.mlp_layer_types=moe_z"


@contextlib.contextmanager
def as_in_a_new_process():
    """A context that knows no parts added before (by other tests), and forgets those that are added inside of it."""
    before, modules, added = [dict(table) for table in TABLES], set(sys.modules), set(checks.ADDED_BY)
    for table in TABLES:
        for name in added & table.keys():
            del table[name]
    try:
        yield
    finally:
        for table, entries in zip(TABLES, before, strict=True):
            table.clear()
            table.update(entries)
        for name in set(sys.modules) - modules:
            if name.split(".")[0] in ("mine", "broken", "parts_of_mine"):
                del sys.modules[name]


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
        assert main([*TRAIN, "run", *GATED_AND_Z]) == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """Makes the user's directory the current one."""
    monkeypatch.chdir(folder)
    return folder


def test_every_verb_that_reads_a_run_imports_its_parts(here, command):
    shutil.rmtree("run/checkpoints/2")
    status, out, err = command(*TRAIN, "run", *GATED_AND_Z)
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
        assert record.read("run").model.layer_types == ("gated",)
        assert issubclass(kinds.KINDS["gated"], GroupedQueryAttention)


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
        Variant("gated", {"plugins": ("mine.gated",), "model.layer_types": ("gated",)}),
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
    assert row["loss/router_z"] == pytest.approx(1e-3 * sum(row["router/own/z"].values()), rel=1e-4)
    parts_of_loss = row["loss/next"] + 1e-4 * row["loss/balance"] + row["loss/router_z"]
    assert row["loss/total"] == pytest.approx(parts_of_loss, rel=1e-5)
    assert 0 < row["router/own/z"]["0"] < 10  # square of log 8, for near-zero logits: 4.3


def test_plan_and_compile_change_the_program_as_training_does(here):
    experiment = record.read("run")
    planned, trained = describe(experiment).program, prepare(experiment).task.program
    assert planned.made_of[-1] is trained.made_of[-1] is sys.modules["mine.z_loss"].change_program
    assert not planned.adds_up and not trained.adds_up  # what a loss adds may not be a sum over sequences


DATA = """
import numpy as np
from deepseek_jax.data.corpora import CORPORA, TextCorpus
from deepseek_jax.data.documents import Document
from deepseek_jax.data.sets.registry import SOURCES
from deepseek_jax.data.sets.source import Source, numbered


class Counting(TextCorpus, skip_registration=True):  # tests import it again and again
    @staticmethod
    def provenance():
        return {}

    def documents(self, skipped):
        for start in range(200):
            yield Document(str(start), str(start), " ".join(map(str, range(start, start + 40))))


def sums(config):
    inputs = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    records = {"ids": numbered(60), "inputs": inputs, "targets": inputs.sum(axis=1, keepdims=True)}
    return Source("sums", "numbers", "table", records, names=("a", "b", "c"), target_names=("sum",))


CORPORA["counting"] = Counting
SOURCES["sums"] = "table", sums
"""


def test_a_module_can_add_a_corpus_and_a_labelled_set(here, command):
    (here / "mine" / "data.py").write_text(DATA)
    own = "--config.plugins=mine.data", "--config.train.steps=2"
    assert command(*TRAIN, "counted", *own, "--config.data.source=counting")[0] == 0
    status, out, err = command("eval", "--workdir", "counted")
    assert status == 0 and "step 2 of counted on counting in rows of 32 tokens" in out, err
    log = LogConfig(tensorboard=False)
    write_config(here / "configs" / "table.py", SupervisedExperiment(log=log, train=TrainConfig(batch_size=8)))
    words = "--config", "configs/table.py", "--workdir", "summed", "--config.dataset.name=sums"
    assert command("train", *words, *own, "--config.objective.name=mse")[0] == 0
    status, out, err = command("eval", "--workdir", "summed")
    assert status == 0 and "step 2 of summed on the test split of sums" in out, err


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
    there = "plugins is ('mine.gated', 'mine.z_loss') there and () here"
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
