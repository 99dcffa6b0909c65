"""The configs that ship are accepted by what they are for: pods by `plan`, the others by the trainer, up to a step."""

import re

import jax
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax import experiment_file
from deepseek_jax.train import setup
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.state import abstract_state
from deepseek_jax.train.step import make_step
from deepseek_jax.train.views import as_trained
from tests.paths import ROOT

CONFIGS = ROOT / "configs"
COMPILE = re.compile(r"deepseek-jax compile --config (configs/\w+\.py) (--topology .*(?:\\\n.*)?)")
PODS = [match for path in sorted(CONFIGS.glob("*.py")) for match in COMPILE.findall(path.read_text())]


@pytest.mark.parametrize("config, options", PODS)
def test_a_pod_config_fits_the_topology_in_its_docstring(run_command, config, options):
    words = options.replace("\\", " ").split()
    status, output, _ = run_command("plan", "--config", str(ROOT / config), *words)
    assert status == 0
    assert output.splitlines()[-1].startswith("fits: "), output[-500:]


def test_every_large_config_names_a_topology():
    large = {
        str(path.relative_to(ROOT)) for path in CONFIGS.glob("*.py") if re.search(r"_(\d+b|flash|pro)$", path.stem)
    }
    assert {config for config, _ in PODS} == large - {"configs/v3_1b.py"}, "which is for one GPU"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_tiny.py")), ids=lambda path: path.stem)
def test_the_step_of_a_tiny_config_traces(path):
    """Without its corpus and what it starts from, which a user makes first."""
    experiment = experiment_file.resolve(str(path))
    mesh, train = setup.check(experiment), experiment.train
    program = as_trained(language_model_program(experiment, np.array([4.0])), experiment)
    optimizer = make_optimizer(experiment.optimizer, train.steps, program.axes)
    state = abstract_state(program, optimizer, mesh, ema=train.ema_decay > 0)
    row = jax.ShapeDtypeStruct((1, train.batch_size, experiment.data.sequence_length), np.int32)
    batch = dict.fromkeys(("tokens", "segment_ids", "positions", "domain_ids"), row)
    check(make_step(program, optimizer, experiment), state, batch)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory for prepared data, as some configs share a set."""
    return tmp_path_factory.mktemp("prepared")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("hybrid_*.py")), ids=lambda path: path.stem)
def test_the_step_of_a_hybrid_config_traces_on_its_first_batch(path, monkeypatch, prepared):
    monkeypatch.setenv("DEEPSEEK_JAX_DATA", str(prepared))
    experiment = experiment_file.resolve(str(path))
    made = setup.prepare(experiment, Console(quiet=True))
    batch = made.place([next(made.train_batches())])
    check(make_step(made.program, made.optimizer, experiment), made.abstract, batch)


def check(step, state, batch):
    after, metrics = jax.eval_shape(step, state, batch)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each) for each in (state, after)]
    assert shapes[0] == shapes[1]
    assert metrics["loss/total"].shape == ()
