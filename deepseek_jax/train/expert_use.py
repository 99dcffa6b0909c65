"""How much each routed expert of a model contributes to a task, measured on the task's training text.

E experts
"""

import itertools

import jax
import numpy as np
from rich.console import Console

from deepseek_jax.compiling import compiler_options, under
from deepseek_jax.config import Experiment
from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.train.metrics import by_layer
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import first_state


def expert_use(experiment: Experiment, batches: int, console: Console) -> dict[str, dict[int, np.ndarray]]:
    """{"token": {layer: shares [E]}, "gate": ...} for the initial model on the first `batches` microbatches.

    token: shares of the assignments; gate: of the routing weights, normalised to sum to 1 per token (ESFT,
    arXiv:2407.01906, section 3.2).  MTP modules are left out.  UserError if the model has no routed experts.
    """
    setup = prepare(experiment, console)
    state, graphdef = first_state(setup, console.print), setup.program.graphdef
    params, buffers = setup.program.to_model(state["params"], state["buffers"])

    def use(params, buffers, batch):
        model = tree.merge(graphdef, params, buffers)
        routers = model(batch["tokens"], batch["positions"], batch["segment_ids"]).routers.items()
        return {"token": {block: r.load_E for block, r in routers}, "gate": {block: r.gate_E for block, r in routers}}

    use = jax.jit(under(setup.mesh, use), compiler_options=compiler_options(setup.mesh))
    total = None
    for microbatch in itertools.islice(setup.train_batches(), batches):
        batch = jax.tree.map(lambda array: array[0], setup.place([microbatch]))
        found = jax.device_get(use(params, buffers, batch))
        total = found if total is None else jax.tree.map(np.add, total, found)
    layers = {name: by_layer(of) for name, of in total.items()}
    if not layers["token"]:
        raise UserError("the model has no routed experts to choose from; name a config of one that has.")
    return {
        name: {int(layer): use_E / use_E.sum() for layer, use_E in of.items() if layer.isdigit()}
        for name, of in layers.items()
    }
