"""A real study that is killed with SIGKILL and started again gives the report of one that was never stopped."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from pydoc_data import topics

import pytest

from tests.paths import ROOT

CONFIG = """
from deepseek_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(vocab_size=400, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    config.model.update(num_attention_heads=2, q_lora_rank=16, kv_lora_rank=16, num_nextn_predict_layers=0)
    config.model.update(qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, initializer_range=0.02)
    config.model.update(first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    config.model.update(n_group=1, topk_group=1)
    config.data.update(source="{folder}/text.jsonl", directory="{folder}/data", sequence_length=64, held_out=0.1)
    config.optimizer.update(peak_lr=3e-3)
    config.train.update(batch_size=2)
    config.eval.update(final_batches=2, batches=1, samples=0)
    config.checkpoint.every = 4
    config.log.update(every=1, tensorboard=False)
    return config
"""
STUDY = '''"""Is a shared expert worth having?"""

from deepseek_jax.studies.measures import cache_bytes, shared_for_routed, specialisation
from experiments import Study, Variant

study = Study(
    base="{folder}/base.py",
    budget=40 * 128,
    seeds=2,
    metric="final/loss",
    margin=0.01,
    variants=[
        Variant("shared"),
        Variant("none", {{"model.n_shared_experts": 0}}),
        Variant("diverges", {{"optimizer.name": "sgd", "optimizer.peak_lr": 1e30, "optimizer.clip_norm": 0.0}}),
        Variant("taken out", edit=shared_for_routed),
    ],
    claim="shared < taken out",
    measures=[cache_bytes, specialisation],
)
'''
DIVERGED = 2  # exit status of a study with a variant that diverges
CLOCKS = ("per_second", "memory_bytes", "goodput")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    texts = [topics.topics[name] for name in sorted(topics.topics)[:20]]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "base.py").write_text(CONFIG.format(folder=folder))
    (folder / "studies").mkdir()
    (folder / "studies" / "shared.py").write_text(STUDY.format(folder=folder))
    return folder


def start(folder, root, verb="run", *options):
    command = [sys.executable, "-m", "deepseek_jax", "study", verb, f"{folder}/studies/shared.py", "--root", str(root)]
    return subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, status=0):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


def numbers(folder, root):
    """The results.json of a report, without times, memory and the path of the runs."""
    finish(start(folder, root, "report", "--output", str(root / "report")))
    found = json.loads((root / "report" / "results.json").read_text())
    assert found.pop("root") == str(root)
    for run in found["runs"]:
        run["scores"] = {name: score for name, score in run["scores"].items() if not name.endswith(CLOCKS)}
        del run["seconds"]
    return found


def killed_when(process, condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_study_killed_twice_and_resumed_has_the_unbroken_report(folder):
    error_summary = finish(start(folder, folder / "unbroken"), DIVERGED)
    assert error_summary.count("final/loss") == 6 and error_summary.count("failed: step") == 2
    unbroken = numbers(folder, folder / "unbroken")
    assert len(unbroken["runs"]) == 6 and {each["variant"] for each in unbroken["failed"]} == {"diverges"}

    broken = folder / "broken"

    def begun():
        return sum(len(path.read_text().splitlines()) for path in broken.glob("*/*/metrics.jsonl"))

    for rows in (6, 30):  # within the first run, within the second
        killed_when(start(folder, broken), lambda rows=rows: begun() >= rows)
        wait_for_worker(broken)
    finish(start(folder, broken), DIVERGED)
    assert numbers(folder, broken) == unbroken
    again = finish(start(folder, broken), DIVERGED)
    assert "2 runs failed, and none are left to do" in again and "final/loss" not in again, "nothing is trained again"


def wait_for_worker(root):
    """Waits until the worker of a killed parent has saved and ended, which it does by itself."""
    deadline = time.monotonic() + 120
    while any(map(held, (root / ".locks").glob("*"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def held(lock):
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
