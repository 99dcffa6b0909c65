"""--profile: a trace of the requested steps, with the model's named scopes."""

import io
import json

import pytest
from jax.profiler import ProfileData
from rich.console import Console

from deepseek_jax.train.loop import train
from tests.train import tiny


def test_a_trace_with_the_models_scopes_is_written_to_the_run_directory(tmp_path):
    train(tiny.experiment(tmp_path, steps=6), tmp_path / "run", Console(file=io.StringIO()), profile=range(3, 5))
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    names = {line.name for plane in ProfileData.from_file(str(trace)).planes for line in plane.lines}
    assert names
    content = trace.read_bytes()
    for scope in (b"mla_project", b"router"):
        assert scope in content, scope
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [row["goodput"] for row in rows if "goodput" in row]
    assert shares[0] < 0.1 and all(0 < share < 1 for share in shares)


@pytest.mark.parametrize("steps", ["10", "4:3", "0:2", "a:b", "1:2:3"])
def test_a_malformed_range_of_steps_is_refused(run_command, steps):
    status, _, error = run_command("train", "--config", "x.py", "--workdir", "x", "--profile", steps)
    assert status == 2 and f"{steps!r} is not a range of steps such as 10:13" in error
