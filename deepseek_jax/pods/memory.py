"""Bytes that a training step takes on each device, from shapes alone.

Exact: what lies there between steps, and the gradients.  Estimated: activations, whose peak the compiler decides.

D model  F width of a feed-forward  H heads  K experts a token  n streams  V vocabulary
"""

import dataclasses
import math

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh

from deepseek_jax.models.attention.costs import attention_cost
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.depth import stack_of
from deepseek_jax.models.schedule import LayerKind, layer_kinds, pipelined
from deepseek_jax.parallel.expert import rows_a_device
from deepseek_jax.parallel.pipeline import Schedule
from deepseek_jax.parallel.plan import Placement, everywhere, placements
from deepseek_jax.parallel.rules import PIPELINED, RULES, axis_size
from deepseek_jax.train.abstract import Abstract
from deepseek_jax.train.moments import map_moments

BYTES = {"float32": 4, "bfloat16": 2}

ACTIVATIONS = """\
activations, an estimate, of one microbatch on a device: what the backward pass keeps of every layer (remat full: its
input; dots: the results of its matrix products too; none: all its intermediates), twice the intermediates of the
widest layer while it is computed again, that layer's gathered weights and their gradient, one chunk of logits, and the
gathered head with its gradient.  Weights that adapters, masks or rounding change are there a second time, changed:
one layer's at a time, with remat none those of all.  A pipeline keeps what it does of its layers in every turn, idle
ones too, and has a stage's own layers and their gradients beside what is stored, changed ones twice.  Of V3 on
v5p:8x8x16 it gives three quarters of what the compiler takes; `deepseek-jax compile` says what that is."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a device."""

    parameters: int
    buffers: int  # frozen weights, masks and rounded matrices too
    moments: int
    averages: int  # train.ema_decay
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def of_step(abstract: Abstract, mesh: AbstractMesh) -> tuple[list[Placement], Memory]:
    """(the tensors of parameters and of what views keep of them, the bytes of a step) on each device of a mesh."""
    program, state = abstract.program, abstract.state
    params = placements(mesh, program.axes, state["params"])
    buffers = placements(mesh, program.buffer_axes, state["buffers"])
    own = program.own_buffers(buffers)
    moments = map_moments(
        lambda leaf, tensor: dataclasses.replace(tensor, itemsize=leaf.dtype.itemsize),
        state["opt_state"],
        state["params"],
        params,
        others=lambda leaf: everywhere(leaf) if leaf.shape else None,
    )
    size = _size(params)
    accumulated = abstract.batch["tokens"].shape[0] > 1  # then a sum over microbatches lies beside the newest gradient
    memory = Memory(
        parameters=size,
        buffers=_size(buffers),
        moments=_size(moments),
        averages=_size((params, own)) if "ema" in state else 0,
        gradients=size * (1 + accumulated),
        activations=_activations(abstract, mesh),
    )
    beside = flatten_dict(buffers)
    for path in flatten_dict(own):
        del beside[path]
    return jax.tree.leaves(params) + [_named(path, tensor) for path, tensor in beside.items()], memory


def _named(path, tensor):
    """By what a view calls it, and not by how many views lie around that one."""
    first = next(place for place, name in enumerate(path) if name != "model")
    return dataclasses.replace(tensor, name="/".join(path[first:]))


def _size(tree) -> int:
    return sum(tensor.bytes_a_device for tensor in jax.tree.leaves(tree))


def _activations(abstract: Abstract, mesh: AbstractMesh) -> int:
    tensors, from_views = _model(abstract, mesh)
    config, train = abstract.experiment.model, abstract.experiment.train
    _, sequences, length = abstract.batch["tokens"].shape
    shared = axis_size(mesh, RULES["batch"])
    tokens = -(-sequences // shared) * -(-length // axis_size(mesh, RULES["sequence"]))
    size, split = BYTES[train.dtype], mesh.shape["tensor"]
    room = _room(config, tokens, mesh.shape["expert"], abstract.experiment.router.capacity_factor)
    widths = [_width(config, kind, split, room) for kind in layer_kinds(config)]
    streams = (config.hc_mult or 1) * config.hidden_size
    kept = [{"full": 0, "dots": width // 2, "none": width}[train.remat] + streams for width in widths]
    if mesh.shape["stage"] == 1:
        numbers, copies = tokens * sum(kept), 0
    else:
        numbers, copies = _pipeline(abstract, mesh, tensors, tokens, kept)
        numbers += 2 * tokens * mesh.shape["stage"] * streams  # every stage has what enters, and its gradient
    logits = 2 * 4 * min(abstract.experiment.loss.chunk_tokens, tokens) * config.vocab_size // split
    head = config.hidden_size * config.vocab_size * (size + 4) // split
    working = tokens * size * 2 * max(widths)
    of_views = _changed(from_views, mesh, train.remat)
    return size * numbers + copies + working + _gathered(tensors, mesh, size) + logits + head + of_views


def _room(config: ModelConfig, tokens: int, devices: int, capacity_factor: float) -> float:
    """Rows of a device's buffer for routed tokens, by those that fill it where all experts are asked alike."""
    if devices == 1 or not config.n_routed_experts:
        return 1.0
    chosen = config.num_experts_per_tok
    rows, _ = rows_a_device(tokens, chosen, config.n_routed_experts // devices, devices, capacity_factor)
    return devices * rows / (tokens * chosen)


def _model(abstract: Abstract, mesh: AbstractMesh) -> tuple[list[Placement], list[Placement]]:
    """(the parameters that the model computes with, those of them that views make of what is trained and kept)."""
    program, state = abstract.program, abstract.state
    to_params = jax.make_jaxpr(lambda *given: program.to_model(*given)[0], return_shape=True)
    traced, shapes = to_params(state["params"], state["buffers"])
    tensors = jax.tree.leaves(placements(mesh, (program.model or program).axes, shapes))
    there = set(map(id, traced.jaxpr.invars))
    return tensors, [tensor for tensor, made in zip(tensors, traced.jaxpr.outvars) if id(made) not in there]


def _changed(tensors: list[Placement], mesh: AbstractMesh, remat: str) -> int:
    """Bytes of weights that views make, and of their gradients, for more than a layer's time (models/made.py)."""
    if mesh.shape["stage"] > 1:
        return 2 * _size(tensors)
    stacked = [tensor for tensor in tensors if stack_of(tensor.name)]
    others = [tensor for tensor in tensors if not stack_of(tensor.name)]
    return 2 * _size(others) + (_size(stacked) if remat == "none" else 0)


def _pipeline(abstract, mesh, tensors, tokens, kept) -> tuple[int, int]:
    """(numbers that a pipeline keeps for the backward pass, bytes of a stage's own layers and their gradients)."""
    train, stacks, stages = abstract.experiment.train, pipelined(abstract.experiment.model), mesh.shape["stage"]
    inside = [number for stack in stacks for number in stack.layers]
    outside = [layer for number, layer in enumerate(kept) if number not in inside]
    depth = len(stacks[0].layers)
    schedule = Schedule(depth, stages, train.pipeline_rounds, train.pipeline_microbatches or stages)
    each_turn = schedule.chunk * sum(kept[stack.layers[0]] for stack in stacks)
    numbers = tokens * sum(outside) + tokens * stages * schedule.turns * each_turn // schedule.microbatches
    stored = _size([tensor for tensor in tensors if PIPELINED in tensor.logical])
    return numbers, 2 * stored * schedule.filled // depth


def _width(config: ModelConfig, kind: LayerKind, split: int, room: float) -> int:
    """Numbers a token in one layer's intermediates, attention's scores not counted (none of them exists whole).

    Rows of experts exist as they are sent, received, sorted, and back again, with `room` to spare for each.
    """
    D, streams = config.hidden_size, config.hc_mult or 1
    cost = attention_cost(config, kind.attention)
    attention = cost.ranks + cost.heads // split
    if kind.feed_forward == "dense":
        feed_forward = 3 * config.intermediate_size // split
    else:
        K, F = config.num_experts_per_tok, config.moe_intermediate_size
        feed_forward = round(room * K) * (6 * D + 3 * F // split) + config.n_shared_experts * 3 * F // split
    return attention + feed_forward + 4 * D + (4 * streams * D if config.hc_mult else 0)


def _gathered(tensors: list[Placement], mesh: AbstractMesh, size: int) -> int:
    """The largest single layer, gathered over fsdp in the activations' type, and its gradient in float32."""
    layers = {}
    for tensor in tensors:
        part, _, rest = tensor.name.partition("/")
        if part != "layers":
            continue
        whole = math.prod(
            -(-length // axis_size(mesh, [name for name in names if name not in ("fsdp", "stage")]))
            for length, names in zip(tensor.shape[1:], tensor.mesh_axes[1:])
        )
        stack = rest.partition("/")[0]
        layers[stack] = layers.get(stack, 0) + whole
    return max(layers.values(), default=0) * (size + 4)
