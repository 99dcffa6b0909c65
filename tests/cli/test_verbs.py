"""Every verb on one small run, and what a user can get wrong between verbs."""

import dataclasses
import re
import shutil
import signal

import pytest

from deepseek_jax.__main__ import main
from deepseek_jax.config import CheckpointConfig, DataConfig, Experiment, TrainConfig
from deepseek_jax.train.setup import Setup
from tests.paths import GOLDENS
from tests.progress import rows
from tests.train import tiny
from tests.user_files import TOPICS, write_config, write_texts

MODEL = dataclasses.replace(tiny.FOUR_EXPERTS, vocab_size=512, max_position_embeddings=64, num_nextn_predict_layers=1)
DENSE = "--config.model.num_hidden_layers=1", "--config.model.num_nextn_predict_layers=0"
BRIEF = *DENSE, "--config.train.steps=1", "--config.eval.samples=0"  # for tests that only need some run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a config file (mine.py), its text, and the run directory `run` that `train` made with them."""
    folder = tmp_path_factory.mktemp("verbs")
    source = write_texts(folder / "text.jsonl", TOPICS[:20])
    experiment = Experiment(
        model=MODEL,
        data=DataConfig(source=source, directory=str(folder / "data"), sequence_length=32, held_out=0.1),
        train=TrainConfig(steps=2, batch_size=2),
        checkpoint=CheckpointConfig(every=1),
    )
    config = write_config(folder / "mine.py", experiment)
    assert main(["train", "--config", config, "--workdir", f"{folder}/run"]) == 0
    return folder


@pytest.fixture
def train(run_command, folder):
    """train(*overrides, workdir="run") runs the verb `train` in this directory of `folder`."""

    def run(*overrides: str, workdir: str = "run"):
        return run_command("train", "--config", f"{folder}/mine.py", "--workdir", f"{folder}/{workdir}", *overrides)

    return run


@pytest.mark.slow
def test_train_goes_on_from_a_checkpoint_of_another_run(train, folder):
    start = f"--config.start.checkpoint={folder}/run", "--config.start.full_state=true", "--config.start.step=1"
    status, out, _ = train(*start, "--config.train.steps=3", workdir="longer")
    assert status == 0 and "branching from step 1 of" in out
    assert [row["step"] for row in rows(folder / "longer") if "loss/next" in row] == [3]
    status, _, err = train(*start, "--config.optimizer.name=sgd", workdir="other")
    assert status == 2 and "there optimizer.name is adamw and here sgd" in err and not (folder / "other").exists()


def test_train_writes_a_run_directory(folder):
    names = {path.name for path in (folder / "run").iterdir()}
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "report.html", "tensorboard"} <= names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimizer.peak_lr=1", "holds another experiment: optimizer.peak_lr is 0.00022 there and 1.0 here"),
        ("--config.train.batch_size=3", "holds another experiment: train.batch_size is 2 there and 3 here"),
    ],
)
def test_a_run_directory_of_another_experiment_is_refused(train, override, message):
    status, _, err = train(override)
    assert status == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.data.source=no/such/text", "'no/such/text' is neither a corpus"),
        ("--config.model.vocab_size=100", "a byte-level vocabulary needs at least 262 entries"),
        ("--config.mesh.expert=3", "needs a multiple of 3 devices, and there is 1: change"),
    ],
)
def test_train_refuses_impossible_settings_in_one_line(train, override, message):
    status, _, err = train(override, workdir="refused")
    assert status == 2 and message in err and err.count("\n") == 1


def test_an_impossible_run_directory_is_refused_before_data_is_prepared(train, folder):
    status, _, err = train("--config.data.source=no/such/text", workdir="text.jsonl/run")
    assert (status, err) == (
        2,
        f"deepseek-jax: {folder}/text.jsonl/run cannot be made a run directory: Not a directory; give another.\n",
    )


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(train, folder):
    tokenizer = f"--config.data.tokenizer={folder}/run/tokenizer.json"
    status, _, err = train(tokenizer, "--config.model.vocab_size=300", workdir="refused")
    assert status == 2 and "set model.vocab_size to at least 512" in err


@pytest.mark.slow
def test_fail_when_stopped_tells_a_stopped_run_from_a_finished_one(train, monkeypatch):
    place = Setup.place

    def stopped(setup, batches):
        signal.raise_signal(signal.SIGTERM)
        return place(setup, batches)

    monkeypatch.setattr(Setup, "place", stopped)
    options = *BRIEF, "--config.train.steps=3"
    assert train(*options, workdir="stopped")[0] == 0
    assert train(*options, "--fail-when-stopped", workdir="stopped")[0] == 75
    monkeypatch.undo()
    assert [train(*options, "--fail-when-stopped", workdir="stopped")[0] for _ in range(2)] == [0, 0]


def test_steps_to_profile_that_are_not_taken_are_reported(run_command, folder):
    words = "train", "--config", f"{folder}/mine.py", "--workdir", f"{folder}/run", "--profile"
    status, _, err = run_command(*words, "3:4")
    assert (status, err) == (
        2,
        "deepseek-jax: --profile begins at step 3, but train.steps is 2; name steps up to that.\n",
    )
    status, _, err = run_command(*words, "1:2")  # steps that the finished run has already taken
    assert status == 0 and "nothing was traced: the steps 1 to 2 of --profile were done already" in err


def test_a_batch_that_the_mesh_does_not_divide_is_refused_by_train(run_python, folder):
    argv = "train", "--config", f"{folder}/mine.py", "--workdir", f"{folder}/refused", "--config.train.batch_size=3"
    done = run_python("-m", "deepseek_jax", *argv, devices=2)
    assert done.returncode == 2 and "train.batch_size" in done.stderr and done.stderr.count("\n") == 1


def test_eval_scores_beside_compressors(run_command, folder):
    status, out, _ = run_command("eval", "--workdir", f"{folder}/run")
    assert status == 0
    assert "step 2" in out and "gzip -9" in out and "xz -9" in out and "total" in out


def test_skipped_records_are_reported_once(run_command, train, folder):
    text = folder / "broken.jsonl"
    text.write_text((folder / "text.jsonl").read_text() + '{"text":\n')
    source = f"--config.data.source={text}"
    place = f"broken: 1 record was skipped, the first: {text}:21: broken JSON; all in {folder}/data/text/broken-"
    for _ in range(2):  # first prepared, then found in the cache
        status, out, _ = train(source, *BRIEF, workdir="of_broken")
        assert status == 0 and out.count("skipped,") == 1 and place in out
    status, out, _ = run_command("eval", "--workdir", f"{folder}/of_broken")
    assert status == 0 and out.count("skipped,") == 1 and place in out
    assert "skipped" not in run_command("eval", "--workdir", f"{folder}/run")[1]
    cut = "prune", f"{folder}/of_broken", f"{folder}/cut", "--method", "hidden", "--batches", "1"
    status, out, _ = run_command(*cut)
    assert status == 0 and out.count("skipped,") == 1 and place in out


def test_eval_of_an_earlier_checkpoint_on_another_text(run_command, folder):
    (folder / "other.txt").write_text("Another text, which is one document.\n" * 5)
    argv = "--workdir", f"{folder}/run", "--checkpoint", "1", "--source", f"{folder}/other.txt", "--batch-size", "1"
    status, out, _ = run_command("eval", *argv)
    assert status == 0
    assert "step 1" in out and "other.txt" in out


def test_a_missing_checkpoint_is_refused_with_those_that_exist(run_command, folder):
    status, _, err = run_command("eval", "--workdir", f"{folder}/run", "--checkpoint", "7")
    assert (status, err) == (2, f"deepseek-jax: {folder}/run has no checkpoint of step 7; it has 1, 2.\n")


def test_generate_continues_prompts_of_different_lengths(run_command, folder):
    (folder / "prompts.txt").write_text("The class statement\n\nA\n")
    argv = "--workdir", f"{folder}/run", "--prompts", f"{folder}/prompts.txt", "--max-new-tokens", "4"
    status, out, _ = run_command("generate", *argv)
    assert status == 0
    assert "The class statement" in out and "\nA" in out
    sampled = [run_command("generate", *argv, "--temperature", "1", "--seed", seed)[1] for seed in ("1", "1", "2")]
    assert sampled[0] == sampled[1] != sampled[2]
    status, speculated, err = run_command("generate", *argv, "--speculative")
    assert (status, speculated) == (0, out)
    assert re.fullmatch(r"speculation: \d of \d drafts accepted \(.*%\) in \d rounds\n", err)


def test_predict_is_not_for_language_models(run_command, folder):
    assert run_command("predict", "--workdir", f"{folder}/run", f"{folder}/text.jsonl")[::2] == (
        2,
        f"deepseek-jax: {folder}/run has a language model; use `generate` for it.\n",
    )


def test_texts_longer_than_max_position_embeddings_are_warned_of(run_command, folder):
    """The model's max_position_embeddings is 64."""
    argv = "generate", "--workdir", f"{folder}/run", "--max-new-tokens", "4"
    status, out, err = run_command(*argv, "--prompt", "0" * 70)  # each digit is one token
    assert status == 0 and out.startswith("0" * 70)
    sentence = "tokens, and the model was made for 64 (max_position_embeddings); do not rely on what comes after these."
    assert re.fullmatch(rf"deepseek-jax: the text has 7\d {re.escape(sentence)}\n", err)
    status, _, err = run_command(*argv, "--prompt", "0" * 62, "--prompt", "0")
    assert status == 0 and err.startswith("deepseek-jax: 1 of 2 texts have up to 6")
    assert run_command(*argv, "--prompt", "0" * 40)[2] == ""


@pytest.fixture(scope="module")
def released(folder):
    """The directory to which `convert` wrote the run: config.json, safetensors, tokenizer.json."""
    assert main(["convert", f"{folder}/run", f"{folder}/released"]) == 0
    return folder / "released"


def test_generate_continues_with_a_released_checkpoint(run_command, folder, released):
    argv = "--prompt", "The class statement", "--max-new-tokens", "8"
    status, out, err = run_command("generate", "--workdir", str(released), *argv)
    assert (status, err) == (0, "") and out == run_command("generate", "--workdir", f"{folder}/run", *argv)[1]
    assert run_command("generate", "--workdir", str(released), *argv, "--speculative")[1] == out
    assert run_command("convert", str(released), f"{folder}/orbax", "--to", "orbax")[0] == 0
    assert run_command("generate", "--workdir", f"{folder}/orbax", *argv)[1] == out
    status, asked, _ = run_command("generate", "--workdir", str(released), *argv, "--chat", "v3")
    assert status == 0 and asked.startswith("The class statement\n") and asked != out


def test_a_bfloat16_checkpoint_is_computed_in_bfloat16(run_command, folder, released):
    from deepseek_jax.train.checkpoints import any_checkpoint

    assert run_command("convert", str(released), f"{folder}/rough", "--dtype", "bfloat16")[0] == 0
    trained = any_checkpoint.read(f"{folder}/rough", dtype=None)
    assert trained.params["embedding"].dtype.name == trained.experiment.train.dtype == "bfloat16"
    assert run_command("generate", "--workdir", f"{folder}/rough", "--prompt", "A", "--max-new-tokens", "2")[0] == 0


def test_an_earlier_checkpoint_of_a_run_is_converted(run_command, folder, released):
    from deepseek_jax.train.checkpoints import any_checkpoint

    assert run_command("convert", f"{folder}/run", f"{folder}/first", "--checkpoint", "1")[0] == 0
    first, newest = (any_checkpoint.read(path).params["head"] for path in (folder / "first", released))
    assert (first == any_checkpoint.read(folder / "run", 1).params["head"]).all() and (first != newest).any()
    status, _, err = run_command("convert", f"{folder}/run", f"{folder}/none", "--checkpoint", "7")
    assert status == 2 and "run has no checkpoint of step 7; it has 1, 2." in err


def test_eval_of_a_released_checkpoint_equals_that_of_its_run(run_command, folder, released):
    (folder / "scored.txt").write_text("A text that neither was trained on.\n" * 9)
    argv = "--source", f"{folder}/scored.txt", "--batch-size", "2"
    status, of_run, _ = run_command("eval", "--workdir", f"{folder}/run", *argv)
    assert status == 0 and "in rows of 32 tokens" in of_run
    status, out, _ = run_command("eval", "--workdir", str(released), *argv, "--sequence-length", "32")
    table = of_run.partition("bits per byte:\n")[2]
    assert status == 0 and table and out.endswith(table)
    assert "in rows of 64 tokens" in run_command("eval", "--workdir", str(released), *argv)[1]
    status, _, err = run_command("eval", "--workdir", str(released), *argv, "--sequence-length", "80")
    assert status == 0 and "a row has 80 tokens, and the model was made for 64 (max_position_embeddings);" in err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_pretrained_reads_a_run_like_its_converted_checkpoint(folder, released, dtype):
    import jax
    import numpy as np

    from deepseek_jax import api

    ours, theirs = (api.from_pretrained(path, dtype=dtype) for path in (folder / "run", released))
    assert ours.config == theirs.config and ours.graphdef == theirs.graphdef
    assert ours.params["embedding"].dtype == dtype
    for part in ("params", "buffers"):
        jax.tree.map(np.testing.assert_array_equal, getattr(ours, part), getattr(theirs, part))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval"], "released is a released checkpoint, without text of its own; name some with --source."),
        (
            ["eval", "--source", "code", "--checkpoint", "3"],
            "is not a run directory and has no checkpoint of step 3; leave the step out.",
        ),
        (["generate", "--prompt", "a", "--chat", "v5"], "--chat is 'v5'; choose one of v3, v3.2, v4."),
        (["generate", "--prompt", "a", "--checkpoint", "/"], "/ is a directory, not the number of a step;"),
    ],
)
def test_options_that_a_released_checkpoint_cannot_serve_are_refused(run_command, released, words, message):
    status, _, err = run_command(*words, "--workdir", str(released))
    assert status == 2 and message in err and err.count("\n") == 1


def test_a_released_checkpoint_without_or_with_a_wrong_tokenizer_is_refused(run_command, tmp_path, released):
    v3 = shutil.copytree(GOLDENS / "v3", tmp_path / "v3")
    argv = "generate", "--workdir", str(v3), "--prompt", "a"
    status, _, err = run_command(*argv)
    expected = f"{v3} has no tokenizer.json, which is needed to tokenize text; copy the model's there."
    assert (status, err) == (2, f"deepseek-jax: {expected}\n")
    shutil.copyfile(released / "tokenizer.json", v3 / "tokenizer.json")
    status, _, err = run_command(*argv)
    assert status == 2 and "has 512 entries and the model 256; copy the model's own there." in err


def test_names_with_brackets_are_not_taken_for_markup(run_command, train, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # so that rich does not wrap the names
    text = folder / "some [bold].jsonl"
    text.write_text((folder / "text.jsonl").read_text())
    status, out, _ = train(f"--config.data.source={text}", *BRIEF, workdir="r[adam]")
    assert status == 0 and f"{folder}/r[adam]" in out
    directory = f"--config.data.directory={folder}/data"
    status, out, _ = run_command("data", "prepare", "--source", str(text), directory)
    assert status == 0 and out.count("│ some [bold] │") == 2  # one row per split


@pytest.mark.parametrize("action", ["prepare", "inspect"])
def test_data_shows_the_corpus(run_command, folder, action):
    status, out, _ = run_command("data", action, "--config", f"{folder}/mine.py")
    assert status == 0
    assert "512 entries" in out and ("A packed row" in out) == (action == "inspect")
