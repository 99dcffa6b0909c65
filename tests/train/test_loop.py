"""The training loop on a tiny real model: what it writes, what it refuses, and how it stops and fails."""

import dataclasses
import errno
import io
import json
import os
import re
import signal
import time
import types

import jax
import numpy as np
import psutil
import pytest
from rich.console import Console

from deepseek_jax import record
from deepseek_jax.config import CheckpointConfig, EvalConfig, StartConfig, StoppingConfig
from deepseek_jax.data.tokenizer import SPECIAL, Tokenizer
from deepseek_jax.errors import UserError
from deepseek_jax.train import loop, metrics, preemption
from deepseek_jax.train.checkpoints import checkpoint, integrity
from deepseek_jax.train.checkpoints.restore import restore_model
from deepseek_jax.train.language_model import LanguageModelTask
from deepseek_jax.train.loop import train
from deepseek_jax.train.setup import Setup, prepare
from tests.paths import ROOT
from tests.train import tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("loop")


DOCUMENTED = re.findall(r"`([^`]+)`", (ROOT / "docs" / "runs.md").read_text().partition("```")[0])


def is_documented(key: str) -> bool:
    return any(key.startswith(name[:-3]) if name.endswith("...") else key == name for name in DOCUMENTED)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def test_a_run_writes_its_directory(directory):
    console, experiment = quiet(), tiny.experiment(directory)
    complete = EvalConfig(every=16, batches=4)  # all held-out batches, with baselines and samples
    scores = train(dataclasses.replace(experiment, eval=complete), directory / "run", console)
    names = {path.name for path in (directory / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "report.html", "samples.txt", "tokenizer.json"} <= names
    shown = console.file.getvalue()
    for wanted in ("validation bits per byte", "gzip -9", "xz -9", "tokens/s", "run directory"):
        assert wanted in shown
    rows = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss/next" in row]
    assert trained[-1]["loss/next"] < trained[0]["loss/next"] - 0.5
    assert scores["final/bits_per_byte"] < 8 and scores["final/gzip -9"] < 8
    assert [row["step"] for row in rows if "val/loss" in row] == [16, 32, 40]
    seconds = {"step_seconds", "data_wait_seconds", "dispatch_seconds", "overhead_seconds"}
    assert seconds <= trained[-1].keys()
    assert not [key for row in rows for key in row if not is_documented(key)]


def test_compiling_for_a_larger_batch_is_no_part_of_any_steps_time(directory, monkeypatch):
    """Nor is a step timed by the batch size before it: FLOPs per second stay proportional to tokens per second."""
    monkeypatch.setattr(metrics, "SPAN", 0.0)  # so that even a single short step is timed
    given = tiny.experiment(directory, steps=8)
    ramp = dataclasses.replace(given.train, microbatch_size=1, ramp_start=1, ramp_stages=2, ramp_fraction=0.5)
    brief = EvalConfig(batches=1, final_batches=1, samples=0)
    train(dataclasses.replace(given, train=ramp, eval=brief), directory / "ramp", quiet())
    rows = [row for row in rows_of(directory / "ramp") if "loss/next" in row]
    timed = [row for row in rows if "step_seconds" in row]
    assert [row["step"] for row in rows if row not in timed] == [1, 3, 5]
    a_token = [row["flops_per_second"] / row["tokens_per_second"] for row in timed]
    assert a_token == pytest.approx([a_token[0]] * len(timed), rel=0.1)  # attention varies with document lengths


def test_a_non_finite_step_stops_the_run_and_names_the_operation(directory, monkeypatch):
    updates, gradient_function = [], loop.gradient_function
    monkeypatch.setattr(
        loop, "gradient_function", lambda *given: updates.append(int(given[-1])) or gradient_function(*given)
    )
    config = tiny.experiment(directory)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, peak_lr=1e30, clip_norm=0.0))
    with pytest.raises(UserError, match=r"step 3 is not finite; it began at \w+ in .*\(.*\.py:\d+"):
        train(config, directory / "stopped", quiet())
    assert "Look here:" in (directory / "stopped" / "report.html").read_text()
    rows = [json.loads(line) for line in (directory / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and rows[-1]["skipped"] == 1
    assert updates == [2], "what is looked through is the update that failed, counted from 0"


def test_a_directory_of_another_experiment_is_refused_before_data_is_prepared(directory, monkeypatch):
    config = tiny.experiment(directory, steps=10)
    train(config, directory / "mine", quiet())
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=20))
    monkeypatch.setattr(loop, "prepare", lambda *_: pytest.fail("it was prepared"))
    with pytest.raises(UserError, match="train.steps"):
        train(longer, directory / "mine", quiet())


def test_a_state_larger_than_the_memory_is_refused_before_a_run_begins(directory, monkeypatch):
    """XLA would wait forever to allocate an array that exceeds the CPU's memory, and ignore SIGTERM meanwhile."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=100_000))
    with pytest.raises(
        UserError, match=r"parameters and optimizer take 0.0 GiB, and this machine has 0.0 GiB of memory;"
    ):
        train(tiny.experiment(directory), directory / "large", quiet())
    assert not (directory / "large").exists()


@pytest.mark.parametrize(
    ("section", "change", "smaller"),
    [
        ("data", {"sequence_length": 2**30}, "train.batch_size, train.microbatch_size or data.sequence_length"),
        ("train", {"batch_size": 2**30}, "train.batch_size, train.microbatch_size or data.sequence_length"),
    ],
)
def test_a_step_larger_than_the_memory_is_refused_before_a_run_begins(directory, section, change, smaller):
    """Otherwise the kernel would kill the process without a message, after config.json has been written."""
    config = tiny.experiment(directory)
    config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **change)})
    with pytest.raises(UserError, match=rf"a step takes at least .* GiB beside the 0.0 GiB .*; lower {smaller}\."):
        train(config, directory / "long", quiet())
    assert not (directory / "long").exists()


def test_a_checkpoint_that_cannot_be_written_ends_the_run_before_the_next_one(directory, monkeypatch):
    config, begin = tiny.experiment(directory, steps=9), loop._start_step

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def begin_late(run, state, step):
        if step > 5:
            time.sleep(1)  # lets the writer thread fail first
        return begin(run, state, step)

    monkeypatch.setattr(integrity, "record", full)
    monkeypatch.setattr(loop, "_start_step", begin_late)
    with pytest.raises(OSError, match="No space left"):
        train(config, directory / "full", quiet())
    assert 5 <= rows_of(directory / "full")[-1]["step"] < 9
    assert not checkpoint.has_checkpoints(directory / "full")


def test_a_run_with_ema_is_scored_by_the_average():
    task = types.SimpleNamespace(scores=lambda score, params, buffers, held_out: {"loss": params})
    setup = types.SimpleNamespace(task=task, held_out_batches=lambda split, limit: ())
    run, state = types.SimpleNamespace(setup=setup, score=None, stopping=str), {"params": 1.0, "buffers": {}}
    assert loop._scores(run, state, "val", 0) == {"val/loss": 1.0}
    assert loop._scores(run, state | {"ema": {"params": 2.0, "buffers": {}}}, "val", 0) == {"val/loss": 2.0}


def test_the_microbatch_size_does_not_change_the_held_out_batches(directory):
    """They only save memory; otherwise scores of runs with different microbatch sizes could not be compared."""
    experiment = tiny.experiment(directory)
    found = []
    for size in (1, 2, 4):
        split = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, microbatch_size=size))
        batches = list(prepare(split, quiet()).held_out_batches("val", 2))
        assert len(batches) == 8 // size
        found.append(np.concatenate([batch["tokens"] for batch in batches]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 8])
def test_sigterm_during_an_evaluation_saves_at_once_and_resuming_repeats_the_evaluation(
    directory, train_alike, monkeypatch, step
):
    """Both in mid-run and at the end, rows and parameters become those of a run that was never stopped."""
    config = tiny.experiment(directory, tiny.ROUTED, steps=8)
    config = dataclasses.replace(
        config, eval=EvalConfig(every=4, batches=4, samples=0), stopping=StoppingConfig(patience=3, min_delta=100.0)
    )
    if not (directory / "unbroken").exists():  # else it is that of the other `step`
        train_alike(config, directory / "unbroken", quiet())
    workdir, seen = directory / f"broken{step}", []

    def until_stopped(stopping, batches):
        seen.append("evaluation")
        for number, batch in enumerate(ask(stopping, batches)):
            if len(seen) == step // 4 and number == 1:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patched:
        ask = preemption.until_stopped
        patched.setattr(preemption, "until_stopped", until_stopped)
        train_alike(config, workdir, stopped := quiet())
    assert f"stopped by SIGTERM after step {step}" in stopped.file.getvalue()
    assert [row["step"] for row in rows_of(workdir) if "val/loss" in row] == [4, 8][: step // 4 - 1]
    made_up_for = next(row for row in rows_of(directory / "unbroken") if row["step"] == step and "val/loss" in row)
    with (workdir / "metrics.jsonl").open("a") as file:  # as if a resumed run had written it, then been killed
        file.write(json.dumps(made_up_for) + "\n")
    scores = train_alike(config, workdir, quiet())
    assert "final/loss" in scores and not list((workdir / "checkpoints").glob("*aside*"))
    assert timeless(workdir) == timeless(directory / "unbroken")
    again = quiet()
    train_alike(config, workdir, again)
    assert timeless(workdir) == timeless(directory / "unbroken"), "what was made up for is not made again"
    left, right = (restore_model(each) for each in (workdir, directory / "unbroken"))
    assert left.step == right.step == 8
    jax.tree.map(np.testing.assert_array_equal, left.params, right.params)


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def timeless(workdir):
    clocks = ("seconds", "per_second", "bytes", "goodput")
    return [{key: value for key, value in row.items() if not key.endswith(clocks)} for row in rows_of(workdir)]


@pytest.mark.slow
def test_expert_shares_belong_to_the_step_of_their_row(directory, train_alike):
    """`router/share` at a step is the same whether that step is logged or not and whether the run resumed before it."""
    config = tiny.experiment(directory, tiny.ROUTED, steps=6)
    config = dataclasses.replace(config, eval=EvalConfig(every=2, batches=1, samples=0))
    shares = {}
    for name, every, until in (("all", 1, None), ("some", 5, None), ("resumed", 5, 3)):
        run = dataclasses.replace(config, log=dataclasses.replace(config.log, every=every))
        train_alike(run, directory / f"shares_{name}", quiet(), until=until)
        train_alike(run, directory / f"shares_{name}", quiet())
        rows = rows_of(directory / f"shares_{name}")
        assert not [key for row in rows for key in row if not is_documented(key)]
        found = {row["step"]: row["router/share"] for row in rows if "router/share" in row}
        shares[name] = {step: found.get(step) for step in (2, 4, 6)}
    assert shares["all"][2] != shares["all"][4]
    assert shares["all"] == shares["some"] == shares["resumed"]


def test_an_experiment_of_wrong_types_is_refused_before_anything_is_written(directory):
    config = tiny.experiment(directory)
    with pytest.raises(UserError, match="train.steps is 6.0; it must be a whole number"):
        train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6.0)), directory / "typed")
    assert not (directory / "typed").exists()


def test_a_run_that_fails_to_start_does_not_claim_its_directory(directory, monkeypatch):
    config = tiny.experiment(directory, steps=6)
    missing = dataclasses.replace(config, start=StartConfig(checkpoint=str(directory / "nothing")))
    with pytest.raises(UserError, match="nothing"):
        train(missing, directory / "begun", quiet())

    def unreadable(_):
        raise UserError("nothing to read")

    of_nothing = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, groups=("nosuch lr=0.1",)))
    with pytest.raises(UserError, match="'nosuch', which matches no trained parameter's path"):
        train(of_nothing, directory / "begun", quiet())
    with monkeypatch.context() as patch, pytest.raises(UserError, match="nothing to read"):
        patch.setattr(Setup, "train_batches", unreadable)
        train(config, directory / "begun", quiet())
    assert not (directory / "begun" / "config.json").exists()
    train(config, directory / "begun", quiet())
    (directory / "begun" / "config.json").unlink()
    with pytest.raises(UserError, match="has checkpoints but no config.json"):
        train(config, directory / "begun", quiet())


def test_a_run_without_held_out_text_writes_no_row_of_scores(directory):
    """Here the configured tokenizer also lies in the run directory itself, which must be allowed."""
    config = tiny.experiment(directory, steps=8)
    given = directory / "own" / "tokenizer.json"
    given.parent.mkdir()
    given.write_text(prepare(config, quiet()).task.corpus.tokenizer.path.read_text())
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=0.0, tokenizer=str(given)))
    for _ in range(2):
        train(config, given.parent, quiet())
        rows = (given.parent / "metrics.jsonl").read_text().splitlines()
        assert not [row for row in rows if json.loads(row).keys() == {"step"}]


def test_a_run_whose_texts_have_changed_is_refused_and_keeps_its_tokenizer(tmp_path, train_alike):
    """Whether paused or finished: the model is useless without the tokenizer whose token ids it was trained on."""
    experiment, workdir = tiny.experiment(tmp_path, steps=6), tmp_path / "run"
    texts = tmp_path / "topics.jsonl"
    as_trained, others = texts.read_text(), "".join(json.dumps({"text": "zq " * n}) + "\n" for n in range(200, 300))
    train_alike(experiment, workdir, quiet(), until=2)
    before = {name: (workdir / name).read_bytes() for name in ("tokenizer.json", "config.json")}
    for state in ("paused", "finished"):
        texts.write_text(as_trained + others)
        with pytest.raises(UserError, match="another tokenizer than its data yields now"):
            train_alike(experiment, workdir, quiet())
        assert before == {name: (workdir / name).read_bytes() for name in before}
        texts.write_text(as_trained)
        if state == "paused":
            train_alike(experiment, workdir, quiet())
    given = dataclasses.replace(experiment.data, tokenizer=str(workdir / "tokenizer.json"))
    given = dataclasses.replace(experiment, data=given)
    train_alike(given, tmp_path / "given", quiet())
    texts.write_text(as_trained + others)
    with pytest.raises(UserError, match="trained on other data"):
        train_alike(given, tmp_path / "given", quiet())


def test_sigterm_while_the_last_checkpoint_is_written_or_the_run_is_scored_loses_neither(
    directory, train_alike, monkeypatch
):
    """A scheduler sends SIGTERM at its time limit, whatever the run is doing, and may send a second one soon after."""
    config = dataclasses.replace(tiny.experiment(directory, steps=6), checkpoint=CheckpointConfig())
    workdir = directory / "ended"
    close = checkpoint.Checkpoints.__exit__

    def closed(*given):
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        close(*given)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Checkpoints, "__exit__", closed)
        assert "final/loss" not in train_alike(config, workdir, stopped := quiet())
    assert "stopped by SIGTERM before the final scores were done" in stopped.file.getvalue()
    assert preemption.heard() == preemption.TERMINATED
    assert checkpoint.newest_intact(workdir / "checkpoints") == 6 and (workdir / "report.html").exists()

    def scores(*given):
        signal.raise_signal(signal.SIGINT)
        return score(*given)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as background jobs of a script ignore SIGINT
    try:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            score = LanguageModelTask.scores
            patched.setattr(LanguageModelTask, "scores", scores)
            train_alike(config, workdir, quiet())
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [key for row in rows_of(workdir) for key in row if key.startswith("final/")]
    assert "final/loss" in train_alike(config, workdir, quiet())


def test_a_run_directory_in_which_another_process_trains_is_refused(directory):
    """Both would write rows, and each would delete the checkpoint that the other has half written."""
    config, workdir = tiny.experiment(directory, steps=6), directory / "shared"
    with (
        record.held(workdir),
        pytest.raises(UserError, match=rf"another process is training in .* \(process {os.getpid()} on"),
    ):
        train(config, workdir, quiet())
    assert not workdir.exists()
    with record.held(workdir):  # the lock was released
        pass


def test_a_finished_run_is_scored_again_with_other_settings(directory, train_alike):
    """The new scores' row names these settings and replaces the old one, baselines included."""
    config, workdir = tiny.experiment(directory, steps=6), directory / "rescored"
    for batches in (0, 1):
        few = dataclasses.replace(config, eval=EvalConfig(batches=1, final_batches=batches, samples=0))
        for _ in range(2):
            scores = train_alike(few, workdir, quiet())
            assert ("final/gzip -9" in scores) == (batches == 0)
            (row,) = (row for row in rows_of(workdir) if "final/loss" in row)
            assert row["eval"] == {"final_batches": batches, "batch_size": 0}
            assert not [key for key in row if not is_documented(key)]


def test_a_tokenizer_is_copied_with_the_names_of_its_special_tokens(directory):
    config = tiny.experiment(directory)
    text = prepare(config, quiet()).task.tokenizer.path.read_text()
    given, workdir = directory / "llama" / "tokenizer.json", directory / "of_llama"
    given.parent.mkdir()
    given.write_text(text.replace(SPECIAL["bos"], "<s>").replace(SPECIAL["eos"], "</s>"))
    (given.parent / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "other": 1}')
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(given)))
    task = prepare(config, quiet()).task
    task.save_data_files(workdir)
    kept = Tokenizer(workdir / "tokenizer.json")
    assert kept.named_beside == task.tokenizer.named_beside == {"bos": kept.bos, "eos": kept.eos}
