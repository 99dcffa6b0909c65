"""Muon's updates of matrices that are sharded over host devices, compared with those of one device."""

import jax
import numpy as np

from deepseek_jax.compiling import under
from deepseek_jax.config import MeshConfig
from deepseek_jax.parallel import rules
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train.optim import muon
from tests.parallel.curves import collectives

# Stacks of experts and of layers, more and fewer matrices than devices, heads on either side, one matrix per group of
# heads, a pipelined stack and a single matrix.
PARAMETERS = {
    "gate": (("layers", "experts", "embed", "expert_mlp"), (3, 8, 16, 8)),
    "q_up": (("layers", "rank", "heads", None), (7, 8, 4, 6)),
    "out": (("heads", None, "embed"), (4, 6, 8)),
    "out_down": (("layers", "heads", None, "rank"), (3, 4, 6, 8)),
    "up": (("pipelined_layers", "embed", "mlp"), (6, 16, 12)),
    "project": ((None, "embed"), (12, 8)),
}


def on_meshes(*meshes: dict[str, int]) -> list[dict]:
    """For each mesh, each update's largest error and the shapes of each kind of collective."""
    muon.AT_ONCE = 128  # of most parameters a single matrix a device, so that there are several turns
    axes = {name: names for name, (names, _) in PARAMETERS.items()}
    draws = np.random.default_rng(0)
    given = {name: draws.normal(size=shape).astype(np.float32) for name, (_, shape) in PARAMETERS.items()}
    dims = muon.dims_of(axes)

    def update(momenta):
        arguments = ([tree[name] for name in given] for tree in (momenta, dims, axes))
        return dict(zip(given, muon.orthogonal_updates(*arguments), strict=True))

    expected = {name: muon.orthogonal_update(given[name], dims[name]) for name in given}
    found = []
    for sizes in meshes:
        mesh = make_mesh(MeshConfig(**{"data": 1} | sizes))
        at = rules.shardings(mesh, axes, given)
        step = jax.jit(under(mesh, update), out_shardings=at).lower(jax.device_put(given, at)).compile()
        updates = step(jax.device_put(given, at))
        errors = {name: float(np.abs(updates[name] - expected[name]).max()) for name in given}
        found.append({"errors": errors, "collectives": collectives(step.as_text())})
    return found
