"""Four processes with two devices each, whose checkpoint is then resumed by fewer processes and on other meshes."""

import shutil
import signal

import numpy as np
import pytest

from deepseek_jax.train.checkpoints import checkpoint
from tests.multiprocess.group import curve, load_entropies, start_training, train_to_end
from tests.progress import last_step

pytestmark = pytest.mark.slow

STEPS = "train.steps=12"
INTERRUPT = signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM  # ignored in background jobs


def test_a_checkpoint_of_four_processes_resumes_in_one_and_in_two_on_other_meshes(tmp_path):
    train_to_end(tmp_path, "unbroken", STEPS, devices=8)
    unbroken = tmp_path / "unbroken"
    with start_training(tmp_path, "four", STEPS, count=4) as group:
        group.wait_until(lambda: last_step(tmp_path / "four") >= 3)
        group.send(2, INTERRUPT)  # this process tells the others, so that all save after the same step
        assert group.finish() == [0, 0, 0, 0], [group.output(number) for number in range(4)]
    saved = checkpoint.newest_intact(tmp_path / "four" / "checkpoints")
    assert saved == last_step(tmp_path / "four") < 12
    for name, mesh, size in [
        ("one", ["mesh.fsdp=2", "mesh.data=1"], {"count": 1}),
        ("two", ["mesh.expert=2", "mesh.tensor=2", "mesh.data=1"], {"count": 2}),
    ]:
        shutil.copytree(tmp_path / "four", tmp_path / name)
        assert f"resuming from step {saved}" in train_to_end(tmp_path, name, STEPS, *mesh, **size)
        np.testing.assert_allclose(curve(tmp_path / name), curve(unbroken), rtol=1e-5, err_msg=name)
        assert load_entropies(tmp_path / name) == load_entropies(unbroken), name
