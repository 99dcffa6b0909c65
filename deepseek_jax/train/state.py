"""The train state: one plain dict of arrays, created directly on the devices that will hold them.

step       [] int32   steps taken
skipped    [] int32   steps whose update was dropped because it was not finite
params     float32    nested dicts, like the model's tree
buffers               state without a gradient: routers' biases and batch norms' averages (float32), tables (int32)
opt_state             of the Optax chain
ema                   {"params", "buffers"}: moving averages of the parameters and of the model's own buffers, only
                      where train.ema_decay > 0
"""

import math

import jax
import jax.numpy as jnp
import optax
import psutil
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from deepseek_jax.compiling import compiler_options
from deepseek_jax.errors import UserError
from deepseek_jax.parallel import rules
from deepseek_jax.train.optim.moments import map_moments
from deepseek_jax.train.program import Program

State = dict[str, object]


def initial_state(program: Program, params, buffers, optimizer: optax.GradientTransformation, ema: bool) -> State:
    state = {
        "step": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
        "params": params,
        "buffers": buffers,
        "opt_state": optimizer.init(params),
    }
    if ema:
        state["ema"] = initial_averages(program, params, buffers)
    return state


def initial_averages(program: Program, params, buffers) -> dict:
    """The moving averages before the first step to which they apply.  Copies, as the step donates every array."""
    return jax.tree.map(jnp.copy, {"params": params, "buffers": program.own_buffers(buffers)})


def scored_model(state: State) -> tuple[dict, dict]:
    """(params, buffers) for evaluations, samples and readers of a checkpoint: moving averages if there are any."""
    if "ema" not in state:
        return state["params"], state["buffers"]
    buffers, averages = (flatten_dict(each["buffers"], keep_empty_nodes=True) for each in (state, state["ema"]))
    return state["ema"]["params"], unflatten_dict(buffers | averages)


def abstract_state(program: Program, optimizer: optax.GradientTransformation, mesh: Mesh, ema: bool) -> State:
    """Shapes, dtypes and shardings of the state, without making an array; a checkpoint is restored into these.

    Parameters and buffers are sharded by the program's axes, optimizer moments like their parameters; the rest is
    replicated, including optimizer state of any other shape.
    """
    shapes = jax.eval_shape(lambda: initial_state(program, *program.make_parameters(), optimizer, ema))
    everywhere = rules.replicated(mesh)
    params = rules.shardings(mesh, program.axes, shapes["params"])
    buffers = rules.shardings(mesh, program.buffer_axes, shapes["buffers"])
    shardings = jax.tree.map(lambda _: everywhere, shapes) | {"params": params, "buffers": buffers}
    shardings["opt_state"] = map_moments(
        lambda _, at: at, shapes["opt_state"], shapes["params"], params, others=lambda _: everywhere
    )
    if ema:
        shardings["ema"] = {"params": params, "buffers": program.own_buffers(buffers)}
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, shardings)


def make_state(program: Program, optimizer: optax.GradientTransformation, abstract: State, model=None) -> State:
    """The state before the first step; each device makes only its own shards.

    `model`: (params, buffers) of a model to begin from, on the devices; None: those that the program makes.

    Raises UserError if CPU devices would have to hold more than this machine's memory.
    """
    check_memory(abstract)
    shardings = shardings_of(abstract)

    def make(model):
        params, buffers = program.from_model(*model) if model else program.make_parameters()
        return initial_state(program, params, buffers, optimizer, "ema" in abstract)

    options = {"out_shardings": shardings, "compiler_options": compiler_options(shardings["step"].mesh)}
    return jax.jit(make, **options)(model)


def check_memory(abstract: State, of_a_step: int = 0, smaller: str = ""):
    """UserError if CPU devices would have to hold more than this machine's memory.

    XLA reports when other devices are full; with an array too large for a CPU's memory it hangs.  `of_a_step`: bytes
    that a step takes here beside the state, at least; `smaller`: settings that would lower this, for the message.
    """
    needed = 0
    for leaf in jax.tree.leaves(abstract):
        holders = [device for device in leaf.sharding.addressable_devices if device.platform == "cpu"]
        needed += len(holders) * math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    memory = psutil.virtual_memory().total
    there = f"this machine has {_gib(memory)} of memory"
    if needed > memory:
        raise UserError(
            f"parameters and optimizer take {_gib(needed)}, and {there}; make the model smaller, or train it on larger "
            "devices or more of them."
        )
    if needed + of_a_step > memory:
        raise UserError(
            f"a step takes at least {_gib(of_a_step)} beside the {_gib(needed)} of parameters and optimizer, and "
            f"{there}; lower {smaller}."
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def shardings_of(abstract: State):
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
