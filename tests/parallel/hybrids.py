"""Programs for several devices, which compare the hybrid network with one device."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from deepseek_jax.config import MeshConfig
from deepseek_jax.models import tree
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.models.hybrid.feature_norms import updated_buffers
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.parallel import rules
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.state import make_state
from tests.train.digits import experiment

IMAGE = HybridConfig(
    height=8,
    width=8,
    outputs=3,
    dropout=0.1,
    drop_path=0.1,
    convolution=ConvolutionConfig((8,), convs_per_block=2, norm="batch", residual=True),
    recurrent=RecurrentConfig("lstm", 8, bidirectional=True),
    attention=AttentionConfig(4, 8),
)
TEXT = HybridConfig(
    input="text",
    vocab_size=24,
    embed_dim=8,
    length=12,
    outputs=3,
    readout="mean",
    convolution=ConvolutionConfig((8,), norm="batch"),
    recurrent=RecurrentConfig("gru", 8),
    attention=AttentionConfig(4, 8, residual=True, norm=True),
)
TABLE = HybridConfig(
    input="table",
    channels=3,
    outputs=3,
    convolution=ConvolutionConfig((8,)),
    recurrent=RecurrentConfig("gru", 8),
    attention=AttentionConfig(2, 8, residual=True),
)


def on_several_devices():
    """Outputs, gradients and batch norms of networks on eight devices, or of one network on four."""
    # Records differ more between devices than on one, so batch norms that saw only one device would be far off.
    shift = jnp.arange(16.0)
    images = jax.random.normal(jax.random.key(0), (16, 8, 8, 1)) + shift[:, None, None, None]
    texts = jax.random.randint(jax.random.key(0), (16, 12), 0, 24) * (shift[:, None] > 4)
    rows = jax.random.normal(jax.random.key(0), (16, 3))
    lengths = 1 + jnp.arange(16) % 12
    if len(jax.devices()) == 4:
        return _compare(TABLE, (rows, None), {"data": 1, "fsdp": 2, "tensor": 2})
    assert len(jax.devices()) == 8
    _compare(IMAGE, (images, None), {"data": 8}, {"data": 2, "tensor": 4})
    _compare(TEXT, (texts, lengths), {"data": 1, "fsdp": 4, "tensor": 2})
    _compare(TABLE, (rows, None), {"data": 2, "fsdp": 2, "tensor": 2})  # few steps: see gathered in rules.py


def _compare(config: HybridConfig, batch: tuple, *meshes: dict[str, int]):
    def make():
        return Hybrid(config, rngs=nnx.Rngs(params=0))

    abstract = jax.eval_shape(make)
    graphdef, axes = tree.split(abstract)[0], tree.logical_axes(abstract)[0]
    params, buffers = jax.jit(lambda: tree.split(make())[1:])()

    def loss(params, buffers, inputs, lengths):
        outputs, seen = tree.merge(graphdef, params, buffers)(inputs, lengths, key=jax.random.key(1))
        probabilities = jax.nn.log_softmax(outputs)
        return -probabilities[jnp.arange(16), jnp.arange(16) % 3].mean(), (outputs, updated_buffers(buffers, seen, 0.1))

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    expected = run(params, buffers, *batch)
    for sizes in meshes:
        mesh = make_mesh(MeshConfig(**sizes))
        with jax.set_mesh(mesh):
            spread = jax.device_put(params, rules.shardings(mesh, axes, params))
            kernel = spread["recurrent"]["layers"]["0"]["forwards"]["state"]
            assert kernel.addressable_shards[0].data.shape[2] == 8 // mesh.shape["tensor"], kernel.sharding
            lies = jax.tree.map(lambda x, mesh=mesh: rules.batch_sharding(mesh, dims=x.ndim), batch)
            sharded = jax.tree.map(jax.device_put, batch, lies)
            found = run(spread, jax.device_put(buffers, rules.replicated(mesh)), *sharded)
        for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * max(1, np.abs(right).max()))


def losses(sizes: dict[str, int]) -> list[float]:
    """Twenty steps on digits with augmentation, dropout, batch norm and two microbatches, on this mesh."""
    setup = prepare(experiment(mesh=MeshConfig(**sizes)), Console(quiet=True))
    run = setup.compiled_step()
    state, batches, losses = make_state(setup.program, setup.optimizer, setup.abstract), setup.train_batches(), []
    for _ in range(20):
        state, measured = run(state, setup.place([next(batches), next(batches)]))
        losses.append(float(measured["loss/total"]))
    kernel = state["params"]["recurrent"]["layers"]["0"]["forwards"]["state"]
    assert len(kernel.sharding.device_set) == len(jax.devices()), kernel.sharding
    return losses
