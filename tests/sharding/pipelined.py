"""What tests of the pipeline measure on host devices.  Each prints JSON.

python -m tests.sharding.pipelined schedule      turns, and how far results are from those of plain layers
python -m tests.sharding.pipelined curves v3     loss curves on one device and on meshes with stages
python -m tests.sharding.pipelined layout        where parameters lie, what is sent, what checkpoints hold
"""

import dataclasses
import json
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.config import CheckpointConfig, Experiment, MeshConfig
from deepseek_jax.parallel import pipeline
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import batch_sharding
from deepseek_jax.train.checkpoint import Checkpoints, Progress
from deepseek_jax.train.compiling import under
from tests.sharding import curves

V3 = dataclasses.replace(curves.V3, num_hidden_layers=5)  # one dense, four with experts
V4 = dataclasses.replace(
    curves.V4,
    num_hidden_layers=4,
    layer_types=("csa", "hca") * 2,
    mlp_layer_types=("hash_moe", "moe") * 2,  # what the hash is of travels with the microbatch
)
MESHES = {  # mesh, pipeline microbatches
    "v3": (V3, [("one", 0), ("stage=2,data=2,expert=2", 0)]),
    "v3-four": (V3, [("one", 0), ("stage=4,data=2", 0)]),
    "v4": (V4, [("one", 0), ("stage=2,fsdp=2,tensor=2", 4)]),
}


def experiment(model, microbatches: int) -> Experiment:
    config = curves.experiment(model)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, pipeline_microbatches=microbatches))


def schedule(layers: int = 4, batch: int = 8, length: int = 3, width: int = 4) -> list[dict]:
    """Of layers that have no gradient at zero: the turns, and the worst error beside plain layers."""
    keys = jax.random.split(jax.random.key(0), 3)
    kernels = jax.random.normal(keys[0], (layers, width, width))
    x_BSD, shift_BS = jax.random.normal(keys[1], (batch, length, width)), jax.random.normal(keys[2], (batch, length))

    def stack(kernels, x_BSD, context):
        def layer(x_BSD, kernel):
            x_BSD = x_BSD / jnp.linalg.norm(x_BSD, axis=-1, keepdims=True) @ kernel
            return x_BSD + context["shift"][..., None] * context["scale"], jnp.exp(x_BSD).sum()

        return jax.lax.scan(layer, x_BSD, kernels)

    def loss(kernels, x_BSD, microbatches):
        context = {"shift": shift_BS, "scale": jnp.float32(2)}
        y_BSD, sums_L = pipeline.run(stack, kernels, x_BSD, context, microbatches)
        return (y_BSD * shift_BS[..., None]).sum() + (sums_L**2).sum(), (y_BSD, sums_L)

    def measure(stages, microbatches):
        mesh = make_mesh(MeshConfig(stage=stages, data=1), jax.devices()[:stages])
        value = under(mesh, lambda *arguments: loss(*arguments, microbatches))
        gradients = jax.grad(value, argnums=(0, 1), has_aux=True)
        turns = _turns(jax.make_jaxpr(value)(kernels, x_BSD).jaxpr)
        with jax.set_mesh(mesh):
            return turns, jax.device_get(jax.jit(gradients)(kernels, x_BSD))

    _, expected = measure(1, 0)
    found = []
    for stages, microbatches in ((2, 0), (2, 8), (4, 4), (4, 8)):
        turns, got = measure(stages, microbatches)
        errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), got, expected)
        found.append({"stages": stages, "microbatches": microbatches or stages, "turns": turns})
        found[-1]["error"] = float(np.max(jax.tree.leaves(errors)))  # of which NaN is the largest
    return found


def _turns(jaxpr) -> int | None:
    """Length of the loop in which states are passed on."""
    for equation in jaxpr.eqns:
        body = equation.params.get("jaxpr")
        if body is not None:
            body = getattr(body, "jaxpr", body)
            if equation.primitive.name == "scan" and any(each.primitive.name == "ppermute" for each in body.eqns):
                return equation.params["length"]
            if (found := _turns(body)) is not None:
                return found
    return None


def loss_curves(name: str) -> dict[str, dict]:
    model, meshes = MESHES[name]
    return {mesh: curves.curve(experiment(model, count), curves.read(mesh)) for mesh, count in meshes}


def layout() -> dict:
    """Of V3 over two stages, and of the checkpoints that it and one device save and the other restores."""
    config = experiment(V3, 0)
    (state, step, mesh), (alone, _, _) = curves.start(config, {"stage": 2, "data": 4}), curves.start(config, {})
    rows = {name: rows[None] for name, rows in curves.packed(0).items()}
    hlo = step.lower(state, jax.device_put(rows, batch_sharding(mesh, leading=1))).compile().as_text()
    moved, pipelined = curves.collectives(hlo), jax.tree.leaves(state["params"]["layers"]["1-4"])
    return {
        "parameters": _layers_held(state["params"]["layers"]),
        "moments": _layers_held(state["opt_state"][1].mu["layers"]),
        "passed on": sorted(set(moved["collective-permute"])),
        "parameters gathered": sorted(set(moved["all-gather"]) & {_spell(leaf) for leaf in pipelined}),
        "restored": [_same_after(state, alone), _same_after(alone, state)],
    }


def _layers_held(stacks: dict) -> dict[str, list[int]]:
    """How many layers of each stack a device has; one number unless its arrays differ."""
    return {
        name: sorted({leaf.addressable_shards[0].data.shape[0] for leaf in jax.tree.leaves(stack)})
        for name, stack in stacks.items()
    }


def _spell(array) -> str:
    return f"f32[{','.join(map(str, array.shape))}]"


def _same_after(saved, like) -> bool:
    """Whether a state is what it was when it has been restored to where the arrays of another lie."""
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
    with tempfile.TemporaryDirectory() as directory:
        with Checkpoints(directory, CheckpointConfig(), say=print) as checkpoints:
            checkpoints.save(saved, Progress(step=1))
            checkpoints.wait()
            restored, _ = checkpoints.restore(abstract)
    lie = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), restored, like)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), jax.device_get(restored), jax.device_get(saved))
    return all(jax.tree.leaves((lie, same)))


if __name__ == "__main__":
    print(json.dumps({"schedule": schedule, "curves": loss_curves, "layout": layout}[sys.argv[1]](*sys.argv[2:])))
