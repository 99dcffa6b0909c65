"""The step of each config lowers for a TPU, even without one: lowering fails for shapes that kernels do not support."""

import jax
import numpy as np
import pytest
from jax import export

from deepseek_jax import experiment_file
from deepseek_jax.config import MeshConfig
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.state import abstract_state
from deepseek_jax.train.step import make_step
from tests.paths import ROOT

CONFIGS = ROOT / "configs"
LONG = 1024  # tokens per row, enough for attention to use its kernel
OTHERS = ("v1", "moe", "v2", "v3", "v32", "v4")


@pytest.mark.parametrize("name", ["study", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_the_step_lowers_for_a_tpu(name):
    """In bfloat16, with kernels for attention and experts, some of them at widths that do not fill a tile."""
    experiment = experiment_file.resolve(str(CONFIGS / f"{name}_tiny.py"), {"train.dtype": "bfloat16"})
    mesh, train = make_mesh(MeshConfig(data=1), jax.devices()[:1]), experiment.train
    program = language_model_program(experiment, np.array([4.0]))
    optimizer = make_optimizer(experiment.optimizer, train.steps, program.axes)
    state = abstract_state(program, optimizer, mesh, ema=False)
    step = jax.jit(make_step(program, optimizer, experiment))  # under no mesh, which would say that this is a CPU
    names = "tokens", "segment_ids", "positions", "domain_ids"
    batch = {name: jax.ShapeDtypeStruct((1, 2, LONG), np.int32) for name in names}
    lowered = export.export(step, platforms=["tpu"])(state, batch).mlir_module()
    if name in ("study", "moe", "v2", "v3"):
        assert "tpu_custom_call" in lowered
