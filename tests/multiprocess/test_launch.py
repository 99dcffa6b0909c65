"""experiments/launch: the scripts parse, and what they call is there; what a process alone, or half told, does."""

import math
import re
import shutil
import subprocess
from pathlib import Path

import jax
import pytest
import yaml

from deepseek_jax.errors import UserError
from deepseek_jax.parallel import processes

LAUNCH = Path(__file__).resolve().parents[2] / "experiments" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "deepseek-jax train --config" in script.read_text()
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_without_arguments_says_what_it_wants(script):
    result = subprocess.run(["bash", script], capture_output=True, text=True)
    assert result.returncode and re.search(r": [124]: (a config|name of the TPU)", result.stderr)


def test_the_jobset_starts_the_verb_once_on_each_host():
    (job,) = (manifest := yaml.safe_load((LAUNCH / "jobset.yaml").read_text()))["spec"]["replicatedJobs"]
    assert manifest["kind"] == "JobSet"
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][:2] == ["deepseek-jax", "train"]
    topology = spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(size) for size in topology.split("x"))
    assert chips == spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]


def test_a_machine_alone_connects_to_nothing(monkeypatch):
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    processes.connect()
    assert not jax.distributed.is_initialized() and processes.leads()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "cannot be connected .* set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "node0"},
            "JAX_COORDINATOR_ADDRESS is 'node0'; it must be host:port",
        ),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; it must be a whole number"),
    ],
)
def test_a_process_that_is_half_told_who_it_is_refuses(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        processes.connect()
