"""start.checkpoint: runs that start from checkpoints of every kind, fresh parts, and refusals where they do not fit."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax import experiment_file, record
from deepseek_jax.compress import pruning
from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.config import CheckpointConfig, EvalConfig, Experiment, StartConfig
from deepseek_jax.convert import huggingface, orbax_directory
from deepseek_jax.errors import UserError
from deepseek_jax.train.checkpoints import any_checkpoint, checkpoint
from deepseek_jax.train.checkpoints.restore import restore_model
from deepseek_jax.train.loop import train
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import check, first_state
from deepseek_jax.tune.config import LoraConfig, TuneConfig
from tests.paths import ROOT
from tests.train import on_mesh, tiny

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(directory, experiment, run directory) of a trained model with EMA."""
    directory = tmp_path_factory.mktemp("start")
    experiment = tiny.experiment(directory, steps=6)
    experiment = dataclasses.replace(
        experiment,
        train=dataclasses.replace(experiment.train, ema_decay=0.5),
        eval=EvalConfig(every=2, batches=1, samples=0),
        checkpoint=CheckpointConfig(every=2, keep=9),
    )
    train(experiment, directory / "base", QUIET)
    return directory, experiment, directory / "base"


def begun(base, checkpoint=None, model=None, **start):
    """(the first state of a run that starts from `checkpoint`, by default that of `base`; messages)."""
    directory, experiment, workdir = base
    start = StartConfig(checkpoint=str(checkpoint or workdir), **start)
    data = dataclasses.replace(experiment.data, tokenizer=str(workdir / "tokenizer.json"))
    experiment = dataclasses.replace(experiment, start=start, data=data, model=model or experiment.model)
    said = []
    return first_state(prepare(experiment, QUIET), said.append), said


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_run_starts_with_the_ema_of_another(base):
    state, said = begun(base)
    trained = restore_model(base[2])
    assert_equal(state["params"], trained.params)
    assert not said and state["step"] == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(state["opt_state"]))


def test_a_pattern_that_leaves_nothing_to_begin_from_is_refused(base):
    with pytest.raises(UserError, match="start.fresh is '.', which leaves nothing of .*/base to begin from"):
        begun(base, fresh=".")


def test_zeros_can_only_stay_where_there_are_some(base, tmp_path):
    """A dense checkpoint named by mistake would be trained as a dense model without a word."""
    directory, experiment, workdir = base
    keeping = dataclasses.replace(experiment, prune=PruneConfig(method="zeros"))
    with pytest.raises(UserError, match="prune.method is zeros, but .*/base has none"):
        begun((directory, keeping, workdir))
    elsewhere = dataclasses.replace(keeping, prune=PruneConfig(method="zeros", paths="feed_forward/"))
    how, half = PruneConfig(paths="attention/"), tmp_path / "half"
    pruning.prune(any_checkpoint.read(workdir), half, "magnitude", how, curve=[], early=None, batches=1, console=QUIET)
    with pytest.raises(UserError, match="has none in the matrices of prune.paths, 'feed_forward/'; begin from"):
        begun((directory, elsewhere, workdir), half)
    params = begun((directory, keeping, workdir), half)[0]["params"]
    assert (params["layers"]["0-0"]["attention"]["out"] == 0).mean() > 0.4


def test_adapters_that_add_nothing_are_refused():
    with pytest.raises(UserError, match="tune.lora.alpha is 0, which multiplies what adapters add"):
        check(Experiment(tune=TuneConfig(lora=LoraConfig(rank=2, alpha=0.0))))


def test_zeros_that_adapters_would_fill_are_refused():
    experiment = Experiment(
        prune=PruneConfig(method="zeros"),
        tune=TuneConfig(lora=LoraConfig(rank=2)),
        start=StartConfig(checkpoint="runs/half"),
    )
    with pytest.raises(UserError, match="prune.method is zeros, but tune.lora trains only adapters"):
        check(experiment)
    check(dataclasses.replace(experiment, tune=dataclasses.replace(experiment.tune, train="^head$")))


def test_a_run_starts_with_the_best_step_of_another(base):
    _, experiment, workdir = base
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    scores = {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}
    best = min(scores, key=scores.get)
    assert_equal(begun(base, best=True)[0]["params"], restore_model(workdir, best).params)


@pytest.mark.parametrize("kind", [orbax_directory, huggingface])
def test_a_run_starts_with_a_converted_model(base, tmp_path, kind):
    trained = restore_model(base[2])
    kind.save(tmp_path / "model", base[1].model, trained.params, trained.buffers)
    assert_equal(begun(base, tmp_path / "model")[0]["params"], trained.params)


def test_fresh_embeddings_of_another_vocabulary_leave_the_rest(base):
    model = dataclasses.replace(base[1].model, vocab_size=410)
    state, said = begun(base, model=model, fresh="^head$|embedding")
    trained = restore_model(base[2])
    assert state["params"]["embedding"].shape[0] == 410 and state["params"]["embedding"].std() < 0.03
    assert_equal(state["params"]["layers"], trained.params["layers"])
    assert said == [f"beginning from {base[2]}, where model.vocab_size is 400 and here 410"]


def test_start_checkpoints_that_do_not_fit_are_refused(base, tmp_path):
    model = dataclasses.replace(base[1].model, intermediate_size=48)
    with pytest.raises(
        UserError,
        match=r"feed_forward/down does not fit: .* has \(1, 64, 32\) and this model has "
        r"\(1, 48, 32\); there model.intermediate_size is 64 and here 48",
    ):
        begun(base, model=model)
    with pytest.raises(
        UserError, match="head does not fit: .* and this model has none; there model.tie_word_embeddings"
    ):
        begun(base, model=dataclasses.replace(base[1].model, tie_word_embeddings=True))
    with pytest.raises(UserError, match="'nowhere', which matches no parameter's path"):
        begun(base, fresh="nowhere")
    with pytest.raises(UserError, match="is not a directory"):
        begun(base, "nowhere")
    with pytest.raises(UserError, match="start.best is set, but .* is not a run directory"):
        begun(base, "nowhere", best=True)
    record.claim(tmp_path / "untrained", base[1])
    with pytest.raises(UserError, match="untrained has no checkpoint yet; train it first.$"):
        begun(base, tmp_path / "untrained")
    with pytest.raises(UserError, match="is not a regular expression"):
        StartConfig(fresh="(")


def test_another_tokenizer_is_refused_unless_embeddings_are_fresh(base, tmp_path):
    copy = shutil.copytree(base[2], tmp_path / "copy")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="another tokenizer; set data.tokenizer=.*copy/tokenizer.json"):
        begun(base, copy)
    begun(base, copy, fresh="embedding|^head$")


def test_a_resumed_run_does_not_need_its_start_checkpoint(base, tmp_path):
    source = shutil.copytree(base[2], tmp_path / "source")
    experiment = dataclasses.replace(
        base[1],
        start=StartConfig(checkpoint=str(source)),
        data=dataclasses.replace(base[1].data, tokenizer=str(base[2] / "tokenizer.json")),
        train=dataclasses.replace(base[1].train, steps=6),
    )
    first = train(experiment, tmp_path / "run", QUIET)
    shutil.rmtree(source)
    assert train(experiment, tmp_path / "run", QUIET) == first
    assert json.loads((tmp_path / "run/config.json").read_text())["experiment"]["start"]["checkpoint"] == str(source)


@pytest.mark.slow
def test_on_a_mesh_the_starting_parameters_are_sharded(base, tmp_path, on_devices):
    trained = restore_model(base[2])
    huggingface.save(tmp_path / "model", base[1].model, trained.params, trained.buffers)
    for where in (base[2], tmp_path / "model"):
        on_devices(4, on_mesh.check, str(base[0]), str(where))


def test_restore_model_gives_the_ema_of_a_run_that_has_it(base):
    trained = restore_model(base[2])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), trained.params
    )
    _, kept = checkpoint.read(base[2], {"ema": {"params": like}, "params": like})
    jax.tree.map(np.testing.assert_array_equal, trained.params, kept["ema"]["params"])
    assert (kept["ema"]["params"]["embedding"] != kept["params"]["embedding"]).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start.fresh": "^head"}, "start.fresh applies to start.checkpoint, which is empty; name one"),
        ({"start.best": "true"}, "start.best applies to start.checkpoint, which is empty; name one"),
        ({"prune.method": "zeros"}, "prune.method=zeros applies to start.checkpoint, which is empty; name one"),
    ],
)
def test_what_needs_a_checkpoint_is_refused_without_one_before_data_is_prepared(tmp_path, settings, message):
    """Only for a new run: an old run with such settings in its config.json can still be read and resumed."""
    experiment = experiment_file.resolve(str(ROOT / "configs" / "v3_tiny.py"), settings)
    with pytest.raises(UserError, match=re.escape(message)):
        train(experiment, tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


def test_without_a_run_directory_it_is_refused_too(base):
    """By find-lr and esft."""
    experiment = dataclasses.replace(base[1], start=StartConfig(best=True))
    with pytest.raises(UserError, match="start.best applies to start.checkpoint, which is empty"):
        first_state(prepare(experiment, QUIET), pytest.fail)
