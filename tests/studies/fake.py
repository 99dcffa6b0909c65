"""A fake trainer that takes no time: its losses are computed from the experiment, so reports can be compared."""

import json
import random

from deepseek_jax import record
from deepseek_jax.config import DataConfig, Experiment, OptimizerConfig, TrainConfig
from deepseek_jax.errors import UserError
from deepseek_jax.studies.runs import identity
from tests.user_files import write_jsonl

STUDY = '''"""Is a higher rate better?"""

from experiments import Study, Variant

study = Study(
    base="{base}",
    budget=2_560,
    seeds=3,
    metric="final/loss",
    margin=0.05,
    variants=[
        Variant("low"),
        Variant("high", {{"optimizer.peak_lr": 0.2}}),
        {further}
    ],
    claim="high < low",
)
'''
CANDIDATES = '''"""Which batch, and which rise?"""

from experiments import Sweep

study = Sweep(
    base="{base}",
    budget=2_560,
    search={{"optimizer.schedule.warmup_steps": (0, 11), "train.batch_size": (2, 4, 99)}},
)
'''
BASE = Experiment(
    data=DataConfig(sequence_length=64),
    optimizer=OptimizerConfig(peak_lr=0.1),
    train=TrainConfig(steps=1, batch_size=4),
)


class Killed(BaseException):
    """Stands for SIGKILL: not an Exception, so nothing in the package catches it."""


class Trainer:
    """Stands for deepseek_jax.train.loop.train.  After `kill_at` more runs it raises Killed in the middle of one."""

    def __init__(self):
        self.kill_at, self.trained = None, []

    def __call__(self, experiment, workdir, console=None, profile=range(0), until=None, programs=None):
        if experiment.optimizer.peak_lr > 1:
            raise UserError("step 3 is not finite; it began in the parameter head[0].")
        if experiment.optimizer.peak_lr == 0.9:
            raise MemoryError("RESOURCE_EXHAUSTED: 1 TiB")
        record.claim(workdir, experiment)
        steps = experiment.train.steps
        rows = [row(experiment, step) for step in range(1, (until or steps) + 1)]
        if self.kill_at == 0:  # killed in the middle: half of the rows are written
            write(workdir, rows[: len(rows) // 2])
            raise Killed
        if until is not None:
            write(workdir, rows)
            (workdir / "checkpoints" / str(until)).mkdir(parents=True, exist_ok=True)
            return {}
        self.kill_at = self.kill_at and self.kill_at - 1
        self.trained.append(workdir.name)
        loss = rows[-1]["loss/next"]
        write(workdir, [*rows, {"step": steps, "final/loss": loss}])
        return {"final/loss": loss}


def row(experiment, step):
    of_data = f"{experiment.train.seed} {step}"  # noise that all variants share, as if from the data
    noise = random.Random(of_data).gauss(0, 0.1)
    own = random.Random(f"{identity(experiment)} {step}").gauss(0, 0.005)
    loss = 5 - 0.2 * step - 2 * experiment.optimizer.peak_lr + noise + own
    return {"step": step, "loss/next": loss, "val/loss": loss, "tokens_per_second": 1000.0, "memory_bytes": 1}


def write(workdir, rows):
    write_jsonl(workdir / "metrics.jsonl", rows)


def files_of(folder, *, but=()) -> dict[str, bytes]:
    """The content of each file in a folder, `but` for those named."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in but}


def write_speed(path):
    """As if the trial of a variant's speed had been made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"per_second": 2560.0}))


def quiet(text: str):
    """For tests that do not look at what a study tells."""
