"""Programs for several devices, which compare expert parallelism with one device.

B batch  S sequence  D model  E experts  P devices  C capacity of a device for the rows of another
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jax.sharding import AxisType, PartitionSpec

from deepseek_jax.compiling import under
from deepseek_jax.config import MeshConfig
from deepseek_jax.models.arithmetic import give
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.moe.layer import MixtureOfExperts
from deepseek_jax.models.tree import merge, split
from deepseek_jax.parallel import expert
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import replicated
from deepseek_jax.tasks.language_model import next_token_nll
from deepseek_jax.views.arithmetic import Int8
from tests.parallel import curves

B, S = 8, 64


def on_eight_devices():
    """Outputs and gradients of a layer with even and uneven loads; what is dropped where capacity is bounded."""
    graphdef, params, buffers = split(_layer())
    context = _context()
    x_BSD, dy_BSD = jax.random.normal(jax.random.key(2), (2, B, S, curves.V3.hidden_size))

    def outcome(params, buffers, x_BSD, factor):
        def run(params, x_BSD):
            module, limited = merge(graphdef, params, buffers), dataclasses.replace(context, capacity_factor=factor)
            y_BSD, routing = module(x_BSD, limited)
            return (y_BSD * dy_BSD).sum(), (y_BSD, module.report(routing, limited))

        return jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(params, x_BSD)

    def run(mesh, bias_E, factor=0.0):
        compute = functools.partial(outcome, factor=factor)
        given = jax.device_put((params, skewed(buffers, bias_E), x_BSD), replicated(mesh))
        return jax.jit(under(mesh, compute))(*given)

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
    whole, params_of_all, buffers_of_all = split(model)
    batch = {"tokens": jnp.zeros((B, S), jnp.int32), "segment_ids": jnp.ones((B, S), jnp.int32)}
    batch["positions"] = jnp.broadcast_to(jnp.arange(S), (B, S))

    def score(*parts):
        return next_token_nll(merge(whole, *parts), batch, chunk_tokens=64)[2]

    parts = jax.device_put((params_of_all, skewed(buffers_of_all, all_to_two)), replicated(mesh))
    scores = jax.jit(under(mesh, score))(*parts)
    assert scores["dropped"] / scores["assigned"] == 96 / 128, scores


def int8_errors() -> list[float]:
    """Relative errors of an 8-bit layer's value and gradients on four devices."""
    graphdef, params, buffers = split(give(_layer(), lambda path, rank: Int8()))
    context = _context()
    x_BSD = jax.random.normal(jax.random.key(2), (B, S, curves.V3.hidden_size))

    def outcome(params, x_BSD):
        def value(params, x_BSD):
            return jnp.square(merge(graphdef, params, buffers)(x_BSD, context)[0]).sum()

        return jax.value_and_grad(value, argnums=(0, 1))(params, x_BSD)

    def run(mesh):
        return jax.tree.leaves(jax.jit(under(mesh, outcome))(*jax.device_put((params, x_BSD), replicated(mesh))))

    def error(left, right):
        # A number that is almost half-way between two steps may be rounded either way.
        return float(jnp.linalg.norm(left - right) / jnp.linalg.norm(right))

    found, one = run(make_mesh(MeshConfig(data=1, expert=2, tensor=2))), run(make_mesh(MeshConfig(), jax.devices()[:1]))
    return [error(*map(jax.device_get, pair)) for pair in zip(found, one, strict=True)]


def _layer() -> MixtureOfExperts:
    return MixtureOfExperts(curves.V3, "moe", rngs=nnx.Rngs(params=jax.random.key(0)))


def _context():
    return Decoder(curves.V3, rngs=nnx.Rngs(params=jax.random.key(1))).context(*jnp.ones((3, B, S), jnp.int32))


def ragged() -> dict:
    """TPUs' ragged all-to-all, emulated, beside the padded one: whether both give the same, and what runs on a TPU."""
    P, C, D = 8, 5, 3
    mesh = jax.make_mesh((P,), ("expert",), (AxisType.Auto,))
    rng = np.random.default_rng(0)
    sent_PP = rng.integers(0, C + 1, (P, P)).astype(np.int32)  # from, to
    rows, weights = rng.normal(size=(2, P * P * C, D)).astype(np.float32)

    def ragged_all_to_all(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
        """As documented: copies slices of any length to where their sender says."""
        given = operand, input_offsets, send_sizes, output_offsets
        operands, starts, sizes, places = (jax.lax.all_gather(x, axis_name) for x in given)
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
    return {
        "same": [bool((a == b).all()) for a, b in zip(found, expected, strict=True)],
        "moved": float(abs(expected[0]).sum()),
        "on tpu": [module.count("custom_call @ragged_all_to_all"), module.count("stablehlo.all_to_all")],
    }
