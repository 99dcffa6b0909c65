"""prune and quantize on a small run: their output, and what a user can get wrong."""

import dataclasses
import io
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax.compress import pruning, source
from deepseek_jax.compress.calibrate import input_sums, largest_inputs
from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.compress.measure import Measure
from deepseek_jax.config import LogConfig, SupervisedExperiment, TrainConfig
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.models.tree import flatten, merge
from deepseek_jax.tasks.config import ObjectiveConfig
from deepseek_jax.train.checkpoints import any_checkpoint
from deepseek_jax.train.checkpoints.checkpoint import Checkpoints, newest_intact
from deepseek_jax.train.checkpoints.restore import restore_model
from deepseek_jax.train.loop import train
from tests.paths import GOLDENS
from tests.train import tiny

V3 = GOLDENS / "v3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `run`, the run directory of a language model trained for six steps."""
    folder = tmp_path_factory.mktemp("compress")
    train(tiny.experiment(folder, tiny.MOE, steps=6), folder / "run")
    return folder


def weights(workdir) -> dict:
    return flatten(restore_model(workdir).params)


def test_prune_writes_a_run_with_zeros_and_a_page(folder, run_command):
    command = "prune", f"{folder}/run", f"{folder}/half", "--sparsity", "0.5", "--curve", "0.25"
    status, out, err = run_command(*command)
    assert (status, err) == (0, "")
    assert "25% removed: validation loss" in out and "50% removed: validation loss" in out
    assert f"half: {source.bytes_of(folder / 'half'):,} bytes" in out.replace("\n", "")
    before, after = weights(folder / "run"), weights(folder / "half")
    for path, leaf in after.items():
        pruned = leaf.ndim > 2 and "router" not in path and "norm" not in path
        assert float((leaf == 0).mean()) == pytest.approx(0.5 if pruned else 0, abs=0.01), path
        np.testing.assert_array_equal(leaf[leaf != 0], before[path][leaf != 0])
    page = (folder / "half" / "pruning.html").read_text()
    assert "50.0% of" in page and "layers/1-1/feed_forward/experts/up" in page and "data:image/png" in page
    assert "gone; validation loss " in page
    assert run_command("generate", "--workdir", f"{folder}/half", "--prompt", "a", "--max-new-tokens", "2")[0] == 0
    assert run_command(*command)[2].endswith("half is not empty; give a directory that does not exist yet.\n")


@pytest.mark.slow
def test_wanda_scores_weights_by_the_norm_of_their_inputs(folder, run_command):
    assert run_command("prune", f"{folder}/run", f"{folder}/wanda", "--method", "wanda", "--pattern", "2:4")[0] == 0
    given = any_checkpoint.read(folder / "run")
    moments = input_sums(Measure(given), given, 4)
    path = "layers/1-1/feed_forward/experts/down"
    score = np.abs(given.params["layers"]["1-1"]["feed_forward"]["experts"]["down"])
    score = (score * np.sqrt(np.asarray(moments[path]).reshape(*score.shape[:-1], 1))).reshape(1, 8, 8, 4, 32)
    kept = np.asarray(weights(folder / "wanda")[path] != 0).reshape(score.shape)
    assert (kept.sum(axis=3) == 2).mean() > 0.99  # except experts without tokens
    for one, mask in zip(score[0, 0].swapaxes(1, 2).reshape(-1, 4), kept[0, 0].swapaxes(1, 2).reshape(-1, 4)):
        assert one[mask].min() >= one[~mask].max()
    largest = largest_inputs(Measure(given), given, 1)
    assert largest.keys() <= moments.keys() and all(each > 0 for each in largest.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "layer"),
        (("--method", "wanda"), "output"),
        (("--method", "wanda", "--scope", "global"), "global"),
        (("--method", "heads"), "layer"),
    ],
)
def test_the_default_scope_is_each_output_for_wanda(folder, run_command, tmp_path, monkeypatch, options, expected):
    asked = []
    monkeypatch.setattr(pruning, "prune", lambda given, target, method, settings, **_: asked.append(settings.scope))
    assert run_command("prune", f"{folder}/run", f"{tmp_path}/out", *options)[0] == 0
    assert asked == [expected]


def test_ctrl_c_waits_until_the_checkpoint_is_written(folder, tmp_path, monkeypatch):
    """After it the output is deleted, so nothing may still be writing to it."""
    given, save = any_checkpoint.read(folder / "run"), Checkpoints.save

    def interrupted(self, *arguments):
        save(self, *arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source.write(tmp_path / "out", given)
    assert newest_intact(tmp_path / "out" / "checkpoints") == given.step


def test_tokenizer_config_json_is_copied_along(folder, tmp_path):
    given = shutil.copytree(folder / "run", tmp_path / "run")
    (given / "tokenizer_config.json").write_text("{}")
    source.write(tmp_path / "out", source.with_sections(any_checkpoint.read(given)))
    assert (tmp_path / "out" / "tokenizer_config.json").exists()


def test_a_pattern_determines_the_share_that_is_removed(folder, run_command):
    status, out, _ = run_command("prune", f"{folder}/run", f"{folder}/quarter", "--pattern", "1:4")
    assert status == 0 and "75% removed: validation loss" in out and out.count("removed") == 1
    assert "75.0% of" in (folder / "quarter" / "pruning.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "changed"), [("heads", "num_attention_heads"), ("experts", "n_routed_experts")])
def test_structured_pruning_writes_a_smaller_run(folder, run_command, method, changed):
    command = "prune", f"{folder}/run", f"{folder}/{method}", "--method", method, "--sparsity", "0.4"
    status, out, _ = run_command(*command)
    assert status == 0 and "50% removed: validation loss" in out
    config = json.loads((folder / method / "config.json").read_text())["experiment"]["model"]
    assert config[changed] == getattr(tiny.MOE, changed) // 2
    small, large = (sum(leaf.size for leaf in weights(folder / name).values()) for name in (method, "run"))
    assert small < large
    status, out, _ = run_command("eval", "--workdir", f"{folder}/{method}")
    assert status == 0 and "bits per byte" in out


@pytest.mark.slow
def test_prune_rewinds_to_an_existing_checkpoint_only(folder, run_command):
    run = folder / "run"
    last = restore_model(run).step
    assert run_command("prune", f"{run}", f"{folder}/ticket", "--rewind", f"{last}", "--sparsity", "0.8")[0] == 0
    assert "has no checkpoint of step 1" in run_command("prune", f"{run}", f"{folder}/none", "--rewind", "1")[2]


@pytest.mark.slow
def test_rewinding_applies_the_masks_to_the_early_model_and_reports_its_loss(folder, tmp_path):
    given, told = any_checkpoint.read(folder / "run"), io.StringIO()
    params, buffers = (jax.tree.map(lambda leaf: 1.25 * leaf + 0.01, each) for each in (given.params, given.buffers))
    early = dataclasses.replace(given, step=3, params=params, buffers=buffers)
    assert jax.tree.leaves(buffers)
    settings, console = PruneConfig(sparsity=0.5), Console(file=told)
    pruning.prune(given, tmp_path / "out", "magnitude", settings, curve=[], early=early, batches=1, console=console)
    written = any_checkpoint.read(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, written.buffers, early.buffers)
    found, before = (flatten(each.params) for each in (written, early))
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, np.where(leaf == 0, 0, before[path]), err_msg=path)
    zeros = found["layers/1-1/attention/out"] == 0
    own = np.abs(given.params["layers"]["1-1"]["attention"]["out"])  # masks follow these, not the early weights
    assert zeros.mean() == pytest.approx(0.5, abs=0.01) and own[zeros].max() <= own[~zeros].min()
    measure = Measure(written)
    of_written, dense = (measure.scores(each.params, each.buffers, 1, "val")["loss"] for each in (written, early))
    assert f"50% removed: validation loss {of_written:.4f}, before {dense:.4f}" in told.getvalue()
    assert f"validation loss {of_written:.4f}, before {dense:.4f}" in (tmp_path / "out" / "pruning.html").read_text()


def test_quantize_keeps_integers_and_eval_reads_them(folder, run_command):
    options = "--weights", "int8", "--activations", "int8"
    status, out, err = run_command("quantize", f"{folder}/run", f"{folder}/int8", *options)
    assert (status, err) == (0, "") and "% of what float32 arrays take" in out
    written, given = any_checkpoint.read(folder / "int8"), any_checkpoint.read(folder / "run")
    assert written.experiment.arithmetic != given.experiment.arithmetic
    losses = [Measure(each).scores(each.params, each.buffers, 4, "val")["loss"] for each in (written, given)]
    assert losses[0] != losses[1] and "validation loss {:.4f}, before {:.4f}".format(*losses) in out
    config = json.loads((folder / "int8" / "config.json").read_text())["experiment"]
    assert config["quantize"]["weights"] == "int8" and config["arithmetic"]["kind"] == "int8"
    assert any(each.startswith("layers/0-0/attention/q_down=") for each in config["arithmetic"]["ranges"])
    for path, leaf in weights(folder / "int8").items():
        np.testing.assert_allclose(leaf, weights(folder / "run")[path], atol=0.01 * float(np.abs(leaf).max()))
    trained = restore_model(folder / "int8")
    assert trained.graphdef != restore_model(folder / "run").graphdef  # it includes the arithmetic
    assert run_command("eval", "--workdir", f"{folder}/int8")[0] == 0
    assert jax.tree.leaves(trained.params)[0].dtype == np.float32


@pytest.mark.slow
def test_quantize_skips_the_measurement_without_data(folder, run_command, tmp_path, monkeypatch):
    """A released model has no data; --batches 0 skips the measurement for a run whose data is not at hand."""

    class Refusing:
        def __init__(self, *_, **__):
            pytest.fail("nothing must be measured")

    monkeypatch.setattr("deepseek_jax.compress.quantizing.Measure", Refusing)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    for given, options in ((V3, ()), (folder / "run", ("--batches", "0"))):
        target = tmp_path / given.name
        status, out, _ = run_command("quantize", f"{given}", f"{target}", "--weights", "int4", *options)
        assert status == 0 and "loss" not in out and "bytes" in out
        assert "reading the model" in out and "quantizing" in out, "a terminal shows what is being done"
    options = "--weights", "int8", "--activations", "int8", "--batches", "0"
    status, _, err = run_command("quantize", f"{folder}/run", f"{tmp_path}/none", *options)
    assert status == 2 and "--activations needs batches for its calibration; leave out --batches 0." in err


@pytest.mark.slow
def test_quantize_release_output_can_be_quantized_again(folder, run_command):
    status, out, _ = run_command("quantize", f"{folder}/run", f"{folder}/fp8", "--weights", "fp8", "--release")
    assert status == 0 and "validation loss" in out
    assert (folder / "fp8" / "model.safetensors").exists() and (folder / "fp8" / "tokenizer.json").exists()
    assert run_command("quantize", f"{folder}/fp8", f"{folder}/again", "--weights", "int4", "--group", "16")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prune", "{run}", "{new}", "--sparsity", "1.5"), "--sparsity is 1.5; it must lie between 0 and 1"),
        (("prune", "{run}", "{new}", "--pattern", "4:2"), "--pattern is '4:2'; write N:M, as in 2:4"),
        (("prune", "{run}", "{new}", "--pattern", "5:7"), "inputs, not a multiple of 7; groups of 2, 4"),
        (
            ("prune", "{run}", "{new}", "--pattern", "1:4", "--sparsity", "0.5"),
            "--pattern 1:4 always removes 75% of each output; leave out --sparsity, --curve and --scope.",
        ),
        (
            ("prune", "{run}", "{new}", "--pattern", "2:4", "--scope", "global"),
            "--pattern 2:4 always removes 50% of each output; leave out",
        ),
        (("prune", "{run}", "{new}", "--pattern", "2:4", "--curve", "0.25"), "--pattern 2:4 always removes 50%"),
        (("prune", "{run}", "{new}", "--paths", "nowhere"), "is 'nowhere', which matches no matrix's path"),
        (("prune", "{run}", "{new}", "--method", "units"), "--method units does not apply to"),
        (
            ("prune", "{run}", "{new}", "--method", "heads", "--scope", "layer"),
            "for single weights; --method is heads",
        ),
        (("prune", "{new}", "{new}"), "is not a directory; give that of a run or a checkpoint"),
        (("quantize", "{run}", "{new}", "--weights", "int4", "--group", "7"), "quantize.group is 7, which divides"),
        (("quantize", "{run}", "{new}", "--weights", "int4", "--release"), "--release writes fp8 and fp4, not int4"),
        (("quantize", "{run}", "{new}", "--weights", "fp4", "--release"), "FP4 is only for V4's experts"),
        (
            ("quantize", "{run}", "{new}", "--weights", "fp8", "--group", "7"),
            "which is for int8 and int4; quantize.weights is fp8",
        ),
    ],
)
def test_impossible_options_are_refused_in_one_sentence(folder, run_command, words, message):
    status, _, err = run_command(*(word.format(run=folder / "run", new=folder / "new") for word in words))
    assert status == 2 and err.count("\n") == 1 and message in err
    assert not (folder / "new").exists()


@pytest.mark.parametrize("words", [("quantize", "--weights", "int8", "--checkpoint"), ("prune", "--rewind")])
def test_a_step_of_a_released_model_is_refused(run_command, tmp_path, words):
    verb, *options = words
    status, _, err = run_command(verb, str(V3), str(tmp_path / "out"), *options, "77")
    assert status == 2
    assert err.endswith("is not a run directory and has no checkpoint of step 77; leave the step out.\n")


@pytest.mark.parametrize(
    "words", [("prune", "--sparsity", "0.5"), ("quantize", "--weights", "int8", "--activations", "int8")]
)
def test_a_model_without_its_tokenizer_is_refused(folder, run_command, tmp_path, words):
    shutil.copytree(folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("tokenizer.json"))
    verb, *options = words
    status, _, err = run_command(verb, f"{tmp_path}/run", f"{tmp_path}/new", *options)
    assert status == 2 and "run has no tokenizer.json, which is needed to tokenize text; copy the model's" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("units",), "--method units does not apply to"),
        (("experts", "--sparsity", "0.99"), "--sparsity 0.99 leaves 1 of 4 experts in each of 2 groups"),
        (("wanda", "--paths", "head|q_up"), "wanda cannot measure the inputs of head; give --paths without"),
        (("wanda", "--paths", "embedding"), "wanda cannot measure the inputs of embedding; give"),
    ],
)
def test_impossible_pruning_is_refused_before_data_is_read(folder, run_command, monkeypatch, words, message):
    monkeypatch.setattr(pruning, "Measure", None)
    status, _, err = run_command("prune", f"{folder}/run", f"{folder}/new", "--method", *words)
    assert status == 2 and message in err


def test_moments_add_up_over_batches(folder, monkeypatch):
    given = any_checkpoint.read(folder / "run")
    measure = Measure(given)
    batches, whole = list(measure.training_batches(2)), input_sums(measure, given, 2)
    parts = []
    for batch in batches:
        monkeypatch.setattr(Measure, "training_batches", lambda self, count, batch=batch: [batch])
        parts.append(input_sums(measure, given, 1))
    for path, moments in whole.items():
        np.testing.assert_allclose(moments, parts[0][path] + parts[1][path], rtol=1e-5, err_msg=path)


def test_weight_penalties_and_dropout_do_not_enter_the_input_moments(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{k},{2 * k}\n" for k in range(20)))
    plain = SupervisedExperiment(
        model=HybridConfig(
            convolution=ConvolutionConfig(filters=()),
            recurrent=RecurrentConfig(kind="gru", hidden_size=4),
            attention=AttentionConfig(num_heads=0),
        ),
        dataset=DatasetConfig(str(tmp_path / "t.csv"), columns=ColumnsConfig(features=("x",), targets=("y",))),
        objective=ObjectiveConfig(name="mse"),
        train=TrainConfig(steps=1, batch_size=4),
        log=LogConfig(tensorboard=False),
    )
    dropping = dataclasses.replace(plain.model, dropout=0.5)
    pulled = dataclasses.replace(plain, model=dropping, objective=ObjectiveConfig(name="mse", l1=100.0, l2=100.0))
    train(pulled, tmp_path / "run")
    given = any_checkpoint.read(tmp_path / "run")
    unpulled = dataclasses.replace(given, experiment=plain)
    expected = input_sums(Measure(unpulled), unpulled, 1)
    for path, moments in input_sums(Measure(given), given, 1).items():
        np.testing.assert_array_equal(moments, expected[path], err_msg=path)
    assert largest_inputs(Measure(given), given, 1)


@pytest.mark.slow
def test_the_largest_input_is_bounded_closely(folder):
    """`largest_inputs` is an upper bound, but close: high-power norms in units of it are hardly below 1.

    It is also compared with the true maximum of the first layer's inputs.
    """
    given, model = any_checkpoint.read(folder / "run"), restore_model(folder / "run")
    measure = Measure(given)
    largest = largest_inputs(measure, given, 1)
    higher = input_sums(measure, given, 1, power=448, units=largest)
    shares = {path: float(np.asarray(higher[path]).max()) ** (1 / 448) for path in largest}
    assert all(0.95 < share < 1.001 for share in shares.values()), shares
    decoder = merge(model.graphdef, model.params, model.buffers)
    batch = {name: leaf[0] for name, leaf in next(iter(measure.training_batches(1))).items()}
    first = jax.tree.map(lambda leaf: leaf[0], decoder.layers["0-0"])
    x = first.attention_norm(decoder.embed_streams(batch["tokens"]))
    seen = float(jnp.abs(x[batch["segment_ids"] > 0]).max())
    assert seen <= largest["layers/0-0/attention/q_down"] < 1.05 * seen
