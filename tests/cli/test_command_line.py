"""The command line as a user meets it: help, refusals, exit codes."""

import errno
import io
import logging
import re
import sys
import unittest.mock
from types import SimpleNamespace

import pytest

from deepseek_jax import __main__, record
from deepseek_jax.cli import arguments, runtime
from deepseek_jax.config import Experiment
from deepseek_jax.errors import LOG, UserError
from tests.paths import ROOT

FULL = "deepseek-jax: the disk is full: make room and run this again.  Training resumes from its last checkpoint.\n"
GENERATE = ["generate", "--workdir", "x"]
TRAIN = ["--config", "x", "--workdir", "y"]
POD = ["--config", "x", "--topology", "v5p:8x8x8"]
HYBRID = ["--config", str(ROOT / "configs/hybrid_mnist.py")]
VERBS = (["train"], ["eval"], ["generate"], ["data", "prepare"], ["data", "inspect"])


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_has_an_example(run_command, verb):
    status, out, err = run_command(*verb, "--help")
    assert (status, err) == (0, "")
    assert f"\n  deepseek-jax {' '.join(verb)} " in out.partition("examples:")[2]


def test_help_lists_every_verb(run_command):
    _, out, _ = run_command("--help")
    verbs = unittest.mock.MagicMock()
    for module in arguments.VERBS:
        module.add_to(verbs)
    names = [call.args[0] for call in verbs.add_parser.call_args_list]
    assert len(names) == len(arguments.VERBS)
    assert [name for name in names if not re.search(rf"^    {name}\b", out, re.M)] == []


def test_help_does_not_wait_for_jax(run_python):
    show = "import sys; from deepseek_jax import __main__; sys.argv[1:] = ['train', '--help']\n"
    show += "try: __main__.main()\nexcept SystemExit: assert not {'jax', 'rich', 'ml_collections'} & set(sys.modules)"
    done = run_python("-c", show)
    assert done.returncode == 0, done.stderr


def test_python_m_deepseek_jax_is_the_command(run_python):
    done = run_python("-m", "deepseek_jax", "train", "--config", "missing.py", "--workdir", "run")
    assert (done.returncode, done.stderr) == (2, "deepseek-jax: there is no config file missing.py.\n")


def test_a_misspelt_key_is_refused_in_one_line(run_python, pytestconfig):
    config = str(pytestconfig.rootpath / "configs" / "v3_tiny.py")
    argv = "train", "--config", config, "--workdir", "x", "--config.model.n_routed_expert=32"
    done = run_python("-m", "deepseek_jax", *argv)
    message = f"deepseek-jax: {config} has no key model.n_routed_expert; did you mean model.n_routed_experts?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: VERB; see `deepseek-jax --help`."),
        (["trian"], "invalid choice: 'trian'"),
        (["data"], "the following arguments are required: VERB; see `deepseek-jax data --help`."),
        (["train", "--workdir", "x"], "arguments are required: --config; see `deepseek-jax train --help`."),
        (["train", "--conf", "x"], "unknown option --conf (did you mean --config?); see `deepseek-jax train --help`."),
        (["quantize", "x", "y", "--weigths", "int8"], "unknown option --weigths (did you mean --weights?); see"),
        (
            ["data", "check", "--exclde=x"],
            "unknown option --exclde (did you mean --exclude?); see `deepseek-jax data ch",
        ),
        (["train", "--cnfig", "x", "--workdir", "y"], "unknown option --cnfig (did you mean --config?)"),
        (["--verbose", "train"], "unknown option --verbose; see `deepseek-jax --help`."),
        ([*GENERATE, "--prompt", "--promts"], "argument --prompt: expected one argument"),
        (["train", *TRAIN, "3"], "unrecognized arguments: 3; see `deepseek-jax train --help`."),
        (
            ["train", "--config", "x", "--workdir", "y", "--steps", "3"],
            "unknown option --steps; see `deepseek-jax train --help`.",
        ),
        (
            ["train", *TRAIN, "--confg.train.steps=3"],
            "unknown option --confg.train.steps (did you mean --config.train.steps?); see `deepseek-jax train",
        ),
        (
            ["train", *TRAIN, "--profil", "3:4"],
            "unknown option --profil (did you mean --profile?); see `deepseek-jax train --help`.",
        ),
        (
            [*GENERATE, "--prompt", "a", "--confg.seed=3"],
            "unknown option --confg.seed; see `deepseek-jax generate --help`.",
        ),
        (["train", "--config.train.steps"], "--config.train.steps needs a value: --config.train.steps=VALUE."),
        (["train", "--config.train.steps", "--workdir", "x"], "--config.train.steps needs a value"),
        (["generate", "--workdir", "x"], "one of the arguments --prompt --prompts is required"),
        ([*GENERATE, "--prompt", "a", "--config.train.steps=3"], "--config.train.steps cannot be set for this verb"),
        ([*GENERATE, "--prompt", "a", "--top-k", "0"], "'0' is not a whole number of at least 1"),
        (["prune", "in", "out", "--checkpoint", "/"], "/ is a directory, not the number of a step; give it as IN"),
        ([*GENERATE, "--prompt", "a", "--temperature", "nan"], "'nan' is not a number of at least 0"),
        ([*GENERATE, "--prompt", "a", "--seed", "-1"], "'-1' is not a whole number between 0 and 2147483647"),
        ([*GENERATE, "--prompt", "a", "--seed", str(2**70)], "is not a whole number between 0 and 2147483647"),
        ([*GENERATE, "--prompt", "a", "--top-p", "1.5"], "'1.5' is not a number between 0 and 1"),
        ([*GENERATE, "--prompt", "a", "--top-k", "3"], "--top-k only affects sampling; add --temperature 1, as"),
        ([*GENERATE, "--prompt", "a", "--top-p", "0.5", "--temperature", "0"], "--top-p only affects sampling"),
        ([*GENERATE, "--prompt", "a", "--seed", "0"], "--seed only affects sampling; add --temperature 1, as"),
        (["plan", *POD, "--mesh", "fsdp=64, fsdp=16"], "--mesh fsdp=64, fsdp=16 names an axis twice; give each one"),
        ([*GENERATE, "--prompts", "missing.txt"], "cannot read prompts from missing.txt: No such file"),
        (["data", "prepare"], "one of the arguments --config --source is required"),
        (["train", "--config", "x", "--workdir", ""], "argument --workdir: the name is empty; give one; see"),
        (["train", "--config", "", "--workdir", "x"], "argument --config: the name is empty; give one; see"),
        (["eval", "--workdir", ""], "argument --workdir: the name is empty; give one; see"),
        (["eval", "--workdir", "x", "--source", ""], "argument --source: the name is empty; give one; see"),
        (["data", "inspect", "--source", ""], "argument --source: the name is empty; give one; see"),
        (["data", "check", ""], "argument NAME: the name is empty; give one; see"),
        (["convert", "", "out"], "argument IN: the name is empty; give one; see"),
        (["study", "report", "x.py", "--output", ""], "argument --output: the name is empty; give one; see"),
        (["data", "show", "digits", "--output", "no/x.html"], "there is no directory no to write x.html into."),
        (["data", "show", "digits", "--output", "/"], "/ is a directory; name a file in it."),
        (["data", "check", "digits", "--output", "no/x.html"], "there is no directory no to write x.html into."),
        (["data", "check", "digits", "--exclude", "no/x.txt"], "there is no directory no to write x.txt into."),
        (["find-lr", "--config", "x", "--picture", "no/x.png"], "there is no directory no to write x.png into."),
        (["compile", *POD, "--out", f"{__file__}/x"], "/x cannot be made a directory: Not a directory; give another."),
        (["prune", "x", __file__], "test_command_line.py is a file; give a directory that does not exist yet."),
        (["quantize", "x", __file__, "--weights", "int8"], "is a file; give a directory that does not exist yet."),
        (
            ["quantize", "x", f"{__file__}/x", "--weights", "int8"],
            "/x cannot be made a directory: Not a directory; give another.",
        ),
        (["adapters", "merge", "x", "y", __file__], "is a file; give a directory that does not exist yet."),
        (["prune", "x", "out", "--method", "heads", "--rewind", "0"], "are for single weights; --method is heads."),
        (["inspect", *HYBRID], "hybrid_mnist.py has a hybrid network; inspect shows language models only."),
        (["esft", *HYBRID, "--threshold", "0"], "--threshold is 0, for which no expert is needed; give a share"),
        (["esft", *HYBRID, "--threshold", "0.4"], "has a hybrid network; give a config of a language model with"),
        (["data", "inspect", *HYBRID], "has a hybrid network; `deepseek-jax data show` shows its labelled set."),
    ],
)
def test_invalid_command_lines_are_refused_in_one_line(run_command, argv, message):
    status, out, err = run_command(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("deepseek-jax: ") and err.count("\n") == 1 and message in err


def test_prompts_that_are_not_utf8_are_refused(run_command, monkeypatch, tmp_path):
    """Also in the C locale, common in containers, where Python decodes such bytes from stdin as lone surrogates."""
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9\n")
    piped = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", piped)
    for given in (f"{tmp_path}/prompts.txt", "-"):
        status, _, err = run_command(*GENERATE, "--prompts", given)
        assert status == 2 and err.startswith(f"deepseek-jax: cannot read prompts from {given}: 'utf-8' codec can't")


@pytest.mark.parametrize("verb", (["eval"], ["generate", "--prompt", "a"]), ids=lambda verb: verb[0])
def test_a_directory_without_a_model_is_refused(run_command, tmp_path, verb):
    (tmp_path / "model.safetensors").touch()
    for given in (tmp_path, tmp_path / "model.safetensors", tmp_path / "absent"):
        status, _, err = run_command(*verb, "--workdir", str(given))
        expected = f"{given} is neither a run directory nor a checkpoint: it has no config.json; give the directory of"
        assert status == 2 and err == f"deepseek-jax: {expected} a training, or of a released model.\n"


@pytest.mark.parametrize(
    "words",
    [
        "eval --workdir {run}",
        "generate --workdir {run} --prompt a",
        "convert {run} {out}",
        "convert {run} {out} --to orbax",
        "prune {run} {out}",
        "quantize {run} {out} --weights int8",
        "adapters merge {run} {run} {out}",
    ],
)
def test_a_run_without_a_checkpoint_is_refused(run_command, tmp_path, words):
    run, out = tmp_path / "run", tmp_path / "out"
    record.claim(run, Experiment())
    status, _, err = run_command(*words.format(run=run, out=out).split())
    assert (status, err) == (2, f"deepseek-jax: {run} has no checkpoint yet; train it first.\n")
    assert not out.exists()


def test_overrides_are_split_from_options():
    argv = ["train", "--config", "x.py", "--config.mesh.data", "-1", "--config.train.steps=3", "--config.train.steps=4"]
    words, overrides = arguments.split_overrides([*argv, "--config.data.tokenizer="])
    assert words == ["train", "--config", "x.py"]
    assert overrides == {"mesh.data": "-1", "train.steps": "4", "data.tokenizer": ""}


@pytest.mark.parametrize(
    ("raised", "status", "shown"),
    [
        (UserError("mend it."), 2, "deepseek-jax: mend it.\n"),
        (KeyboardInterrupt(), 130, "deepseek-jax: interrupted.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, FULL),
        (
            ValueError(  # as raised by tensorstore, with which Orbax writes
                'RESOURCE_EXHAUSTED: Error writing "params.embedding/0.0" in OCDBT database at local file "x": Failed '
                "to write 70493 bytes to file 4: No space left on device [os_error_code='28']"
            ),
            2,
            FULL,
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 142GiB with allocator x. [a='']"),
            2,
            "deepseek-jax: the device's memory is too small (Out of memory while trying to allocate 142GiB with "
            "allocator x).  Training needs less with a smaller train.microbatch_size, over more devices, or for a "
            "language model with train.remat set to dots or full; `generate` with fewer --max-new-tokens or prompts; "
            "every verb with smaller batches or bfloat16.\n",
        ),
    ],
)
def test_exceptions_become_exit_codes_and_messages(monkeypatch, capsys, raised, status, shown):
    def read(argv):
        raise raised

    monkeypatch.setattr(arguments, "read", read)
    assert __main__.main([]) == status
    assert capsys.readouterr().err == shown


def test_warnings_look_like_other_messages_and_are_printed_once(capsys, caplog):
    for _ in range(2):
        runtime.prepare()
    LOG.warning("a matrix holds NaN")
    assert capsys.readouterr().err == "deepseek-jax: a matrix holds NaN\n"
    assert not caplog.records  # not repeated by the root logger, which has handlers once absl is imported


@pytest.mark.parametrize(
    ("verb", "cache", "memory"),
    [(["compile", *POD], False, True), (["study", "diff", "x", "y"], True, True), (["convert", "x", "y"], True, False)],
)
def test_only_compile_keeps_no_programs_and_only_convert_no_memory(run_command, monkeypatch, verb, cache, memory):
    asked = []
    monkeypatch.setattr(runtime, "prepare", lambda *given: asked.append(given))
    assert run_command(*verb)[0] == 2 and asked == [(cache, memory)]


def test_the_console_leaves_brackets_and_long_lines_as_they_are(capsys):
    runtime.console().print(line := "see runs[1]/[bold]x.png " * 20)
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize("library", ["absl", "asyncio"])
def test_a_full_disk_is_not_reported_by_background_threads_too(caplog, library):
    runtime.prepare()
    for error in (ValueError("Failed writing: No space left on device"), ValueError("another")):
        logging.getLogger(library).error("a thread raised", exc_info=error)
    assert [str(record.exc_info[1]) for record in caplog.records] == ["another"]


def test_abandoned_background_writes_end_silently(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: shown.append(str(args.exc_value)))
    for _ in range(2):
        runtime.prepare()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert shown == ["another"]


@pytest.mark.parametrize("raised", [ZeroDivisionError, RuntimeError, ValueError, OSError])
def test_a_bug_keeps_its_traceback(monkeypatch, raised):
    def read(argv):
        raise raised("a bug")

    monkeypatch.setattr(arguments, "read", read)
    with pytest.raises(raised):
        __main__.main([])
