"""Bytes that a training step needs on each device, from shapes alone.

State kept between steps and gradients are exact; activations are estimated, as the compiler decides their peak.

D model  F width of a feed-forward  H heads  n streams  V vocabulary
"""

import dataclasses
import math
from typing import NamedTuple

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh

from deepseek_jax.models.attention.costs import attention_cost
from deepseek_jax.models.checks import has_experts
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.depth import stack_of
from deepseek_jax.models.schedule import LayerKind, layer_kinds, pipelined
from deepseek_jax.parallel.expert import rows_a_device
from deepseek_jax.parallel.pipeline import Schedule
from deepseek_jax.parallel.plan import Placement, everywhere, placements
from deepseek_jax.parallel.rules import PIPELINED, RULES, axis_size
from deepseek_jax.train.abstract import Abstract
from deepseek_jax.train.optim.moments import map_moments

BYTES = {"float32": 4, "bfloat16": 2}

ACTIVATIONS = """\
activations, an estimate for one microbatch on one device, is the sum of: what the backward pass keeps of every layer
(remat full: its input; dots: also the results of its matrix products, but no attention scores and no outputs of
experts; none: all its intermediates), twice the intermediates of the widest layer while it is recomputed, the largest
layer's gathered weights and their gradient, one chunk of logits, and the gathered head with its gradient.  Weights that
adapters, masks or rounding change exist a second time in changed form: one layer's at a time, or with remat none those
of all layers.  A pipeline keeps activations for every turn, idle ones too, and holds a stage's own layers and their
gradients beside what is stored, changed ones twice.  For V3 on v5p:8x8x16 this estimate is three quarters of what the
compiler needs; `deepseek-jax compile` gives the exact size."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device."""

    parameters: int
    buffers: int  # including frozen weights, masks and rounded matrices
    moments: int  # of the optimizer
    averages: int  # of the parameters, if train.ema_decay is set
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def of_step(abstract: Abstract, mesh: AbstractMesh) -> tuple[list[Placement], Memory]:
    """(placements of the parameters and of the arrays that views keep beside them, a step's Memory), per device."""
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
    accumulated = abstract.batch["tokens"].shape[0] > 1  # if so, their sum exists beside the newest gradient
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
    """The tensor named as in its own view, without a leading "model" for each view around that one."""
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
    routed = _routed(config, tokens, mesh.shape["expert"], abstract.experiment.router.capacity_factor)
    kinds = layer_kinds(config)
    widths = [_width(config, kind, split, routed) for kind in kinds]
    products = [_products(config, kind, split, routed.rows) for kind in kinds]
    streams = (config.hc_mult or 1) * config.hidden_size
    kept = [streams + more for more in {"full": [0] * len(kinds), "dots": products, "none": widths}[train.remat]]
    if mesh.shape["stage"] == 1:
        numbers, copies = tokens * sum(kept), 0
    else:
        numbers, copies = _pipeline(abstract, mesh, tensors, tokens, kept)
        numbers += 2 * tokens * mesh.shape["stage"] * streams  # every stage holds the input and its gradient
    logits = 2 * 4 * min(abstract.experiment.loss.chunk_tokens, tokens) * config.vocab_size // split
    head = config.hidden_size * config.vocab_size * (size + 4) // split
    working = tokens * size * 2 * max(widths)
    of_views = _changed(from_views, mesh, train.remat)
    return size * numbers + copies + working + _gathered(tensors, mesh, size) + logits + head + of_views


class Routed(NamedTuple):
    """What a device holds in one layer for routed tokens, for each token of its own (parallel/expert.py)."""

    rows: float  # that its experts compute with
    moved: float  # inputs and outputs on their way between devices


def _routed(config: ModelConfig, tokens: int, devices: int, capacity_factor: float) -> Routed:
    chosen = config.num_experts_per_tok
    if devices == 1 or not config.n_routed_experts:
        return Routed(chosen, 4 * chosen)
    capacity, bounded = rows_a_device(tokens, chosen, config.n_routed_experts // devices, devices, capacity_factor)
    rows = devices * capacity / tokens
    return Routed(rows, 4 * rows if bounded else 2 * devices)  # all-to-alls of rows, or all devices' tokens gathered


def _model(abstract: Abstract, mesh: AbstractMesh) -> tuple[list[Placement], list[Placement]]:
    """(the parameters that the model computes with, those among them that views compute from what is stored)."""
    program, state = abstract.program, abstract.state
    to_params = jax.make_jaxpr(lambda *given: program.to_model(*given)[0], return_shape=True)
    traced, shapes = to_params(state["params"], state["buffers"])
    tensors = jax.tree.leaves(placements(mesh, (program.model or program).axes, shapes))
    there = set(map(id, traced.jaxpr.invars))
    return tensors, [tensor for tensor, made in zip(tensors, traced.jaxpr.outvars) if id(made) not in there]


def _changed(tensors: list[Placement], mesh: AbstractMesh, remat: str) -> int:
    """Bytes of weights computed by views, and of their gradients, that outlive one layer's turn (models/lazy.py)."""
    if mesh.shape["stage"] > 1:
        return 2 * _size(tensors)
    stacked = [tensor for tensor in tensors if stack_of(tensor.name)]
    others = [tensor for tensor in tensors if not stack_of(tensor.name)]
    return 2 * _size(others) + (_size(stacked) if remat == "none" else 0)


def _pipeline(abstract, mesh, tensors, tokens, kept) -> tuple[int, int]:
    """(numbers that a device keeps for the backward pass, bytes of its stage's own layers and their gradients)."""
    train, stacks, stages = abstract.experiment.train, pipelined(abstract.experiment.model), mesh.shape["stage"]
    inside = [number for stack in stacks for number in stack.layers]
    outside = [layer for number, layer in enumerate(kept) if number not in inside]
    depth = len(stacks[0].layers)
    schedule = Schedule(depth, stages, train.pipeline_rounds, train.pipeline_microbatches or stages)
    each_turn = schedule.chunk * sum(kept[stack.layers[0]] for stack in stacks)
    numbers = tokens * sum(outside) + tokens * stages * schedule.turns * each_turn // schedule.microbatches
    stored = _size([tensor for tensor in tensors if PIPELINED in tensor.logical])
    return numbers, 2 * stored * schedule.filled // depth


def _width(config: ModelConfig, kind: LayerKind, split: int, routed: Routed) -> int:
    """Numbers per token in one layer's intermediates, without attention scores (which are never materialised whole)."""
    D, streams = config.hidden_size, config.hc_mult or 1
    cost = attention_cost(config, kind.attention)
    attention = cost.ranks + cost.heads // split
    if has_experts(kind.feed_forward):
        F = config.moe_intermediate_size
        of_routed = routed.rows * (2 * D + 3 * F // split) + routed.moved * D
        feed_forward = round(of_routed) + config.n_shared_experts * 3 * F // split
    else:
        feed_forward = 3 * config.intermediate_size // split
    return attention + feed_forward + 4 * D + (4 * streams * D if config.hc_mult else 0)


def _products(config: ModelConfig, kind: LayerKind, split: int, rows: float) -> int:
    """Those of `_width` that are kept with remat dots (models/remat.py): attention's, and gate and up of experts."""
    cost = attention_cost(config, kind.attention)
    if has_experts(kind.feed_forward):
        width = (round(rows) + config.n_shared_experts) * config.moe_intermediate_size
    else:
        width = config.intermediate_size
    return cost.ranks + (cost.heads + 2 * width) // split + 2 * config.hidden_size


def _gathered(tensors: list[Placement], mesh: AbstractMesh, size: int) -> int:
    """Bytes of the largest single layer, gathered over fsdp in the activations' dtype, and its float32 gradient."""
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
