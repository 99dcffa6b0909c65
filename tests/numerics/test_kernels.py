"""Accelerator kernels: in interpret mode they agree with the plain paths, and each platform gets its own."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from deepseek_jax.models import gpu
from deepseek_jax.models.attention import core, indexer, kernels
from deepseek_jax.models.attention.index_kernels import index_scores
from deepseek_jax.models.moe import grouped

SCALE = 0.2
CUDNN = "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"


def value_and_gradients(f, *arguments):
    """Value and gradients of a sum of f's results in which each has a different weight."""

    def total(*arguments):
        out = f(*arguments)
        return (out * jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)).sum()

    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(arguments)))))(*arguments)


def agree(found, expected):
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


def attention_inputs(length, heads=2, key_heads=1, width=48, value_width=32, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = (heads, width), (key_heads, width), (key_heads, value_width)
    return [jnp.asarray(rng.normal(size=(1, length, *shape)), dtype) for shape in shapes]


def packed(length):
    """Segment ids of two documents and padding, which end inside the kernel's blocks."""
    return jnp.asarray(np.repeat([1, 2, 0], [100, length - 130, 30])[None], jnp.int32)


def test_splash_attention_is_causal_attention_within_documents():
    """With keys wider than values, one key head for two query heads, and padding, whose output must be 0."""
    inputs, segment_ids = attention_inputs(256), packed(256)

    def splash(*qkv):
        return kernels.on_tpu(*qkv, segment_ids, segment_ids, scale=SCALE, interpret=True)

    def plain(*qkv):
        return core.causal_attend_blockwise(*qkv, segment_ids, segment_ids, scale=SCALE)

    agree(value_and_gradients(splash, *inputs), value_and_gradients(plain, *inputs))
    assert not splash(*inputs)[0, -30:].any()


def test_splash_attention_for_queries_at_a_traced_offset():
    """For queries 128 to 255 of 512: on a sharded sequence, `first` is a traced value that depends on the device."""
    inputs, segment_ids = attention_inputs(512), packed(512)

    def of_some(attend, q, k, v, first):
        some = slice(128, 256)
        return attend(q[:, some], k, v, segment_ids[:, some], segment_ids, scale=SCALE, first=first)

    splash = functools.partial(of_some, functools.partial(kernels.on_tpu, interpret=True), first=jnp.int32(128))
    plain = functools.partial(of_some, core.causal_attend_blockwise, first=jnp.int32(128))
    found = value_and_gradients(splash, *inputs)
    agree(found, value_and_gradients(plain, *inputs))

    def whole(*qkv):
        return core.causal_attend_blockwise(*qkv, segment_ids, segment_ids, scale=SCALE)

    agree(splash(*inputs), whole(*inputs)[:, 128:256])


def test_the_indexers_kernels_score_as_one_head_at_a_time_does():
    rng = np.random.default_rng(0)
    shapes = (2, 256, 3, 16), (2, 256, 3), (2, 256, 16)
    queries, weights, keys = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)

    def plain(queries, weights, keys):
        return indexer.scores_of_all(indexer.IndexQueries(queries, weights), keys)

    kernel = functools.partial(index_scores, interpret=True)
    inputs = queries, weights, keys
    agree(value_and_gradients(kernel, *inputs), value_and_gradients(plain, *inputs))


@pytest.mark.parametrize("counts", [[100, 0, 120, 30], [0, 0, 0, 0], [300, 0, 0, 0]])
def test_megablox_is_ragged_dot(counts):
    """With empty groups, rows of no group, and numbers of rows that are not a multiple of a tile."""
    rng = np.random.default_rng(1)
    rows, matrices = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((300, 64), (4, 64, 32)))
    counts = jnp.asarray(counts, jnp.int32)

    def of_groups(product):
        """The product, with zeros for rows of no group."""
        real_Z1 = (jnp.arange(300) < counts.sum())[:, None]
        return lambda x, kernels: jnp.where(real_Z1, product(jnp.where(real_Z1, x, 0), kernels, counts), 0)

    megablox = of_groups(functools.partial(grouped.on_tpu, interpret=True))
    plain = of_groups(jax.lax.ragged_dot)
    agree(value_and_gradients(megablox, rows, matrices), value_and_gradients(plain, rows, matrices))


def lowered(f, platform, *arguments) -> str:
    """The program text of f and its gradients, lowered for a platform that need not be present."""
    gradients = functools.partial(value_and_gradients, f)
    allowed = [export.DisabledSafetyCheck.custom_call(name) for name in CUDNN]
    return export.export(jax.jit(gradients), platforms=(platform,), disabled_checks=allowed)(*arguments).mlir_module()


def attend(q, k, v):
    return core.causal_attend(q, k, v, packed(q.shape[1]), SCALE)


def test_each_platform_gets_its_attention_kernel(monkeypatch):
    inputs = attention_inputs(512, dtype=jnp.bfloat16)
    assert "splash" in lowered(attend, "tpu", *inputs)
    assert "custom_call" not in lowered(attend, "cpu", *inputs)
    # cuDNN attention is chosen only where a GPU and its versions allow it; pretend that they do.
    monkeypatch.setattr(gpu, "kernels_available", lambda dtype: True)
    monkeypatch.setattr(gpu, "_tokamax", lambda: None)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    jax.clear_caches()
    q, k, v = inputs
    for given in (inputs, (q, k, jnp.concatenate([v, v, v], axis=-1))):  # values narrower than keys, and wider
        program = lowered(attend, "cuda", *given)
        assert all(name in program for name in CUDNN)


def test_short_sequences_use_no_attention_kernel():
    assert "custom_call" not in lowered(attend, "tpu", *attention_inputs(256))


@pytest.mark.parametrize("features, out", [(128, 128), (96, 48), (7168, 2048)])
def test_each_platform_gets_its_grouped_product(features, out):
    """Also for widths that are not multiples of a TPU's 128 lanes."""
    arguments = jnp.zeros((512, features), jnp.bfloat16), jnp.zeros((4, features, out), jnp.bfloat16)
    counts = jnp.full((4,), 128, jnp.int32)
    product = functools.partial(grouped.grouped_matmul, counts_E=counts)
    assert "tpu_custom_call" in lowered(product, "tpu", *arguments)
    assert "chlo.ragged_dot" in lowered(product, "cuda", *arguments), "left to XLA's GPU compiler"


class Library:
    """Plain versions of the tokamax functions that are used; tokamax itself can be traced only on a GPU machine."""

    def __init__(self):
        self.asked = []

    def ragged_dot(self, x_ZD, kernel_EDF, counts_E):
        self.asked.append("ragged_dot")
        return jax.lax.ragged_dot(x_ZD, kernel_EDF, counts_E)

    def dot_product_attention(self, q_BSHK, k_BTGK, v_BTGV, *, mask, scale, is_causal):
        self.asked.append("attention")
        length, total, each = q_BSHK.shape[1], k_BTGK.shape[1], q_BSHK.shape[2] // k_BTGK.shape[2]
        k_BTHK, v_BTHV = (jnp.repeat(x, each, axis=2) for x in (k_BTGK, v_BTGV))
        if is_causal:
            mask = mask & (jnp.arange(total) <= jnp.arange(length)[:, None])
        scores_BHST = jnp.where(mask, jnp.einsum("BSHK,BTHK->BHST", q_BSHK, k_BTHK) * scale, -1e30)
        return jnp.einsum("BHST,BTHV->BSHV", jax.nn.softmax(scores_BHST), v_BTHV)


@pytest.fixture
def library(monkeypatch):
    there = Library()
    monkeypatch.setattr(gpu, "library", lambda dtype: there)
    jax.clear_caches()
    yield there
    jax.clear_caches()


def test_gpus_use_tokamax_attention_where_it_is_installed(library):
    """The mask that it is given means causal attention within documents, without padding."""
    inputs, segment_ids = attention_inputs(512), packed(512)
    found = kernels.on_gpu(*inputs, segment_ids, segment_ids, scale=SCALE)
    expected = core.causal_attend_blockwise(*inputs, segment_ids, segment_ids, scale=SCALE)
    agree(found, expected)
    some = slice(128, 256)
    spread = inputs[0][:, some], *inputs[1:], segment_ids[:, some], segment_ids
    agree(kernels.on_gpu(*spread, scale=SCALE, first=jnp.int32(128)), expected[:, some])
    assert library.asked == ["attention"] * 2


def test_gpus_use_tokamax_ragged_dot_where_it_is_installed(library):
    arguments = jnp.zeros((512, 128), jnp.bfloat16), jnp.zeros((4, 128, 128), jnp.bfloat16)
    product = functools.partial(grouped.grouped_matmul, counts_E=jnp.full((4,), 128, jnp.int32))
    lowered(product, "cuda", *arguments)
    assert "ragged_dot" in library.asked


@pytest.mark.parametrize(
    "backend, dtype, installed, there",
    [
        ("gpu", jnp.bfloat16, True, True),
        ("gpu", jnp.float32, True, False),
        ("cpu", jnp.bfloat16, True, False),
        ("gpu", jnp.bfloat16, False, False),
    ],
)
def test_tokamax_is_used_only_for_16_bits_on_a_gpu(monkeypatch, backend, dtype, installed, there):
    module = types.ModuleType("tokamax")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(gpu.importlib, "import_module", lambda name: module)
    gpu._tokamax.cache_clear()
    assert gpu.library(dtype) is (module if there else None)
    gpu._tokamax.cache_clear()
