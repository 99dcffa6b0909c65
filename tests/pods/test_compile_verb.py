"""deepseek-jax compile: steps for devices that are not here, and what their compilers need."""

import json
import os
import re

import pytest

from deepseek_jax.parallel.topology import parse
from deepseek_jax.pods import devices as compilers
from tests.paths import ROOT

CONFIG = str(ROOT / "configs" / "v3_tiny.py")
TINY = "compile", "--config", CONFIG, "--topology", "v5e:2x4", "--mesh", "data=1,fsdp=2,expert=4"
GPUS = "compile", "--config", CONFIG, "--topology", "h100:1x8", "--mesh", "data=1,fsdp=2,expert=4"


def is_installed(platform: str) -> bool:
    return compilers.installed(compilers.COMPILERS[platform][0])


@pytest.mark.parametrize("platform, command, extra", [("tpu", TINY, "tpu"), ("cuda", GPUS, "gpu")])
def test_without_the_compiler_the_extra_is_named(platform, command, extra, run_command):
    if is_installed(platform):
        pytest.skip(f"the extra [{extra}] is installed")
    status, _, error = run_command(*command)
    assert status == 2 and f"'.[{extra}]'" in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "platform, command, moves_tokens", [("tpu", TINY, "ragged-all-to-all"), ("cuda", GPUS, "all-to-all")]
)
def test_a_step_for_eight_accelerators(platform, command, moves_tokens, run_python, tmp_path):
    if not is_installed(platform):
        pytest.skip(f"{compilers.COMPILERS[platform][0]} is not installed")
    sending = "--config.router.capacity_factor=1.5"  # without a limit tokens would be gathered
    result = run_python("-m", "deepseek_jax", *command, sending, "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["fits"] and moves_tokens in report["collectives"] and report["unknown_loops"] == 0
    assert "fits: " in result.stdout and (tmp_path / "step.hlo").stat().st_size > 10_000
    refused = run_python("-m", "deepseek_jax", *command, "--config.train.batch_size=65536")
    assert refused.returncode == 0 and refused.stdout.startswith("does not fit")


@pytest.mark.parametrize(
    "name, variable, given, asked",
    [
        ("tpu7x:2x2x1", "LIBTPU_INIT_ARGS", "--theirs=1", r"--fibers_default_.*_reduce_scatter=false --theirs=1"),
        ("tpu7x:2x2x1", "LIBTPU_INIT_ARGS", None, r"--fibers_default_.*_reduce_scatter=false"),
        ("v5e:2x4", "LIBTPU_INIT_ARGS", "--theirs=1", "--theirs=1"),
        ("v5e:2x4", "ALLOW_MULTIPLE_LIBTPU_LOAD", None, "1"),
        ("h100:1x8", "XLA_FLAGS", "--theirs=1", "--xla_gpu_enable_cub_radix_sort=false --theirs=1"),
    ],
)
def test_required_compiler_flags_precede_those_that_a_user_gives(name, variable, given, asked, monkeypatch):
    environment = {} if given is None else {variable: given}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(compilers, "installed", lambda module: True)
    compilers.prepare(parse(name))
    assert re.fullmatch(asked, environment[variable])


@pytest.mark.slow
@pytest.mark.parametrize("level", ["UNKNOWN", "O1"])  # the default, and the level that compiles faster
def test_a_step_for_eight_tpu7x(level, run_python, monkeypatch):
    """At either level libtpu aborts without the flags in pods/devices.py."""
    if not is_installed("tpu"):
        pytest.skip("libtpu is not installed")
    monkeypatch.setenv("JAX_OPTIMIZATION_LEVEL", level)
    result = run_python("-m", "deepseek_jax", *(each.replace("v5e:2x4", "tpu7x:2x2x1") for each in TINY))
    assert result.returncode == 0, result.stderr
    assert "fits: " in result.stdout


@pytest.mark.slow
def test_a_sharded_sequence_uses_splash_attention_on_a_tpu(run_python, tmp_path):
    """Splash attention has one static mask, but the positions of a device's queries depend on the device."""
    if not is_installed("tpu"):
        pytest.skip("libtpu is not installed")
    widths = ("qk_nope_head_dim=128", "qk_rope_head_dim=64", "v_head_dim=128", "num_nextn_predict_layers=0")
    options = [f"--config.model.{width}" for width in widths] + ["--config.data.sequence_length=4096"]
    command = *TINY[:-1], "data=2,context=4", *options, "--out", str(tmp_path)
    result = run_python("-m", "deepseek_jax", *command)
    assert result.returncode == 0, result.stderr
    program = (tmp_path / "step.hlo").read_text()
    assert all(name in program for name in ("splash_mha_fwd", "splash_mha_dkv", "splash_mha_dq"))
