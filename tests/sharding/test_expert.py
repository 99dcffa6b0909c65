"""Expert parallelism gives the outputs and gradients of one device, and reports what it drops."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.parallel.expert import rows_a_device, slots_by_device

EIGHT = """
import functools
import jax, jax.numpy as jnp, numpy as np
from deepseek_jax.config import MeshConfig
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.moe.layer import MixtureOfExperts
from deepseek_jax.models.tree import merge, split
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import replicated
from deepseek_jax.tasks.language_model import next_token_nll
from deepseek_jax.compiling import under
from flax import nnx
from tests.sharding import curves
import dataclasses

B, S = 8, 64
graphdef, params, buffers = split(MixtureOfExperts(curves.V3, "moe", rngs=nnx.Rngs(params=jax.random.key(0))))
context = Decoder(curves.V3, rngs=nnx.Rngs(params=jax.random.key(1))).context(*jnp.ones((3, B, S), jnp.int32))
x_BSD, dy_BSD = jax.random.normal(jax.random.key(2), (2, B, S, curves.V3.hidden_size))

def outcome(params, buffers, x_BSD, factor):
    def run(params, x_BSD):
        module, limited = merge(graphdef, params, buffers), dataclasses.replace(context, capacity_factor=factor)
        y_BSD, routing = module(x_BSD, limited)
        return (y_BSD * dy_BSD).sum(), (y_BSD, module.report(routing, limited))
    return jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(params, x_BSD)

def run(mesh, bias_E, factor=0.0):
    compute = functools.partial(outcome, factor=factor)
    return jax.jit(under(mesh, compute))(*jax.device_put((params, skewed(buffers, bias_E), x_BSD), replicated(mesh)))

def skewed(buffers, bias_E):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(bias_E, jnp.float32), leaf.shape), buffers)

even, all_to_two = np.zeros(8), np.where(np.arange(8) < 2, 9.0, 0.0)  # both on the first device
for bias_E in even, all_to_two:
    expected = jax.device_get(run(make_mesh(MeshConfig(), jax.devices()[:1]), bias_E))
    for sizes in {"expert": 8}, {"fsdp": 2, "expert": 4}, {"data": 1, "expert": 2, "tensor": 4}:
        found = run(make_mesh(MeshConfig(**{"data": 1} | sizes)), bias_E)
        for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4 * float(jnp.abs(right).max()))

mesh = make_mesh(MeshConfig(data=2, expert=4))
(_, (y_BSD, report)), gradient = run(mesh, all_to_two, factor=1.0)
assert report.load_E.sum() == B * S * 2, "what is dropped was chosen all the same"
# A device's 64 tokens make 128 assignments, all to the first of four devices, which has room for 32 of them.
assert report.dropped == B * (128 - 32), report.dropped
assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
(_, (_, report)), _ = run(mesh, even, factor=4.0)
assert report.dropped == 0

model = Decoder(curves.V3, rngs=nnx.Rngs(params=jax.random.key(1)), capacity_factor=1.0)
graphdef, params, buffers = split(model)
batch = {"tokens": jnp.zeros((B, S), jnp.int32), "segment_ids": jnp.ones((B, S), jnp.int32)}
batch["positions"] = jnp.broadcast_to(jnp.arange(S), (B, S))
score = lambda *parts: next_token_nll(merge(graphdef, *parts), batch, chunk_tokens=64)[2]
score = jax.jit(under(mesh, score))(*jax.device_put((params, skewed(buffers, all_to_two)), replicated(mesh)))
assert score["dropped"] / score["assigned"] == 96 / 128, score
print("same")
"""


INT8 = """
import jax, jax.numpy as jnp, numpy as np
from deepseek_jax.views.arithmetic import Int8
from deepseek_jax.config import MeshConfig
from deepseek_jax.models.arithmetic import give
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.moe.layer import MixtureOfExperts
from deepseek_jax.models.tree import merge, split
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import replicated
from deepseek_jax.compiling import under
from flax import nnx
from tests.sharding import curves

module = give(MixtureOfExperts(curves.V3, "moe", rngs=nnx.Rngs(params=jax.random.key(0))), lambda path, rank: Int8())
graphdef, params, buffers = split(module)
context = Decoder(curves.V3, rngs=nnx.Rngs(params=jax.random.key(1))).context(*jnp.ones((3, 8, 64), jnp.int32))
x_BSD = jax.random.normal(jax.random.key(2), (8, 64, curves.V3.hidden_size))

def outcome(params, x_BSD):
    run = lambda params, x_BSD: jnp.square(merge(graphdef, params, buffers)(x_BSD, context)[0]).sum()
    return jax.value_and_grad(run, argnums=(0, 1))(params, x_BSD)

def run(mesh):
    return jax.tree.leaves(jax.jit(under(mesh, outcome))(*jax.device_put((params, x_BSD), replicated(mesh))))

one = run(make_mesh(MeshConfig(), jax.devices()[:1]))
for left, right in zip(run(make_mesh(MeshConfig(data=1, expert=2, tensor=2))), one, strict=True):
    # A number that is almost half-way between two steps may be rounded either way.
    error = jnp.linalg.norm(jax.device_get(left) - jax.device_get(right)) / jnp.linalg.norm(jax.device_get(right))
    print(float(error))
"""


RAGGED = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax import export
from jax.sharding import AxisType, PartitionSpec
from deepseek_jax.parallel import expert

P, C, D = 8, 5, 3
mesh = jax.make_mesh((P,), ("expert",), (AxisType.Auto,))
rng = np.random.default_rng(0)
sent_PP = rng.integers(0, C + 1, (P, P)).astype(np.int32)  # from, to
rows, weights = rng.normal(size=(2, P * P * C, D)).astype(np.float32)

def ragged_all_to_all(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    \"\"\"As documented: copies slices of any length to where their sender says.\"\"\"
    gather = lambda x: jax.lax.all_gather(x, axis_name)
    operands, starts, sizes, places = map(gather, (operand, input_offsets, send_sizes, output_offsets))
    here, row = jax.lax.axis_index(axis_name), jnp.arange(output.shape[0])
    for sender in range(P):
        behind = row - places[sender, here]
        found = jnp.take(operands[sender], starts[sender, here] + behind, axis=0, mode="clip")
        output = jnp.where(((behind >= 0) & (behind < sizes[sender, here]))[:, None], found, output)
    return output

def both(swap):
    def of_device(rows, weights, sent_1P, received_1P):
        def value(rows):
            filled = jnp.arange(C) < received_1P[0][:, None]
            received = jnp.where(filled.reshape(-1, 1), swap(rows, sent_1P[0], received_1P[0]), 0)
            return (received * weights).sum(), received
        gradient, received = jax.grad(value, has_aux=True)(rows)
        filled = jnp.arange(C) < sent_1P[0][:, None]
        return received, jnp.where(filled.reshape(-1, 1), gradient, 0)
    spec = PartitionSpec("expert")
    return jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))

arguments = rows, weights, sent_PP, sent_PP.T
expected = both(expert.swap)(*arguments)
allowed = [export.DisabledSafetyCheck.custom_call("ragged_all_to_all")]
expert.platform = lambda: "tpu"
module = export.export(both(expert.swap), platforms=("tpu",), disabled_checks=allowed)(*arguments).mlir_module()
jax.lax.ragged_all_to_all = ragged_all_to_all
found = both(expert._swap_filled)(*arguments)
print(json.dumps({
    "same": [bool((a == b).all()) for a, b in zip(found, expected)],
    "moved": float(abs(expected[0]).sum()),
    "on tpu": [module.count("custom_call @ragged_all_to_all"), module.count("stablehlo.all_to_all")],
}))
"""


def test_on_tpus_only_filled_rows_are_sent(run_python):
    """The ragged all-to-all of TPUs, emulated here, moves what the padded one does, and so does its gradient."""
    result = run_python("-c", RAGGED, devices=8)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["same"] == [True, True] and found["moved"] > 0
    assert found["on tpu"] == [2, 0], "there and back"


def test_experts_on_eight_devices_compute_what_one_does(run_python):
    result = run_python("-c", EIGHT, devices=8)
    assert result.stdout.strip() == "same", result.stderr


def test_int8_scales_are_of_whole_rows_when_rows_are_sharded(run_python):
    result = run_python("-c", INT8, devices=4)
    assert result.returncode == 0, result.stderr
    assert max(map(float, result.stdout.split())) < 1e-3


@pytest.mark.parametrize("factor, rows", [(0.0, (32, False)), (1.0, (17, True)), (9.0, (32, False))])
def test_rows_per_device_are_the_worst_case_or_a_multiple_of_the_mean(factor, rows):
    """16 tokens choose 4 of 8 experts, 2 on each of 4 devices.  Where rows may be dropped, one more row stays empty."""
    assert rows_a_device(16, 4, 2, 4, factor) == rows


def test_large_numbers_of_rows_are_whole_tiles():
    assert rows_a_device(4096, 8, 16, 16, 1.5) == (3072, True)


def test_assignments_are_grouped_in_order_by_device():
    slots = slots_by_device(jnp.array([[1, 0], [1, 1]]), devices=2, capacity=4, bounded=False)
    np.testing.assert_array_equal(slots.assignment_of_slot, [1, 4, 4, 4, 0, 2, 3, 4])
    np.testing.assert_array_equal(slots.slot_of_assignment, [[4, 0], [5, 6]])


def test_dropped_assignments_point_at_an_empty_slot():
    slots = slots_by_device(jnp.array([[1, 0], [1, 1]]), devices=2, capacity=3, bounded=True)
    np.testing.assert_array_equal(slots.assignment_of_slot, [1, 4, 4, 0, 2, 4])
    np.testing.assert_array_equal(slots.slot_of_assignment, [[3, 0], [4, 5]])
