"""experiments/launch: the scripts parse and restart sensibly; what `connect` does alone or with missing variables."""

import math
import os
import re
import shutil
import subprocess

import jax
import pytest
import yaml

from deepseek_jax.errors import UserError
from deepseek_jax.parallel import processes
from tests.paths import ROOT

LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_launch_script_parses_and_calls_train(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "deepseek-jax train --config" in script.read_text()
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


@pytest.mark.parametrize("name", ["slurm.sh", "jobset.yaml"])
def test_launchers_that_restart_runs_ask_for_a_status_that_tells_a_stopped_run(name):
    assert "--fail-when-stopped" in (LAUNCH / name).read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_launch_script_without_arguments_says_which_are_missing(script):
    result = subprocess.run(["bash", script], capture_output=True, text=True)
    assert result.returncode and re.search(r": [124]: (a config|name of the TPU)", result.stderr)


@pytest.mark.parametrize(
    ("status", "restarts", "again"), [(0, 0, False), (1, 0, True), (2, 0, False), (75, 8, True), (75, 9, False)]
)
def test_a_slurm_job_requeues_itself_only_where_that_may_help(tmp_path, status, restarts, again):
    for program, ends in (("srun", f"exit {status}"), ("scontrol", 'echo "$@"')):
        (tmp_path / program).write_text(f"#!/bin/sh\n{ends}\n")
        (tmp_path / program).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    command = ["bash", LAUNCH / "slurm.sh", "config.py", "run"]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.stdout == ("requeue 7\n" if again else "")
    assert result.returncode == (0 if again else status)


def test_the_jobset_fails_for_good_on_errors_that_no_restart_mends():
    spec = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (job,) = spec["replicatedJobs"]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert rule["action"] == "FailJob" and pod["restartPolicy"] == "Never"
    on = rule["onExitCodes"]
    assert (on["containerName"], on["operator"], on["values"]) == (pod["containers"][0]["name"], "In", [2])


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


def test_a_single_process_connects_to_nothing(monkeypatch):
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    processes.connect()
    assert not jax.distributed.is_initialized() and processes.is_leader()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "cannot be connected .* set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "node0"},
            "JAX_COORDINATOR_ADDRESS is 'node0'; it must be host:port",
        ),
        *(
            (
                {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": f"node0:{port}"},
                f"JAX_COORDINATOR_ADDRESS is 'node0:{port}'; it must be host:port .*, the port from 1 to 65535",
            )
            for port in ("65536", "0", "7777x", "7" * 5000)
        ),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; it must be a whole number"),
    ],
)
def test_incomplete_or_malformed_process_variables_are_refused(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        processes.connect()
