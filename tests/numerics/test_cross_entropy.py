"""The chunked cross-entropy, which computes gradients in its forward pass, against plain log-softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.tasks.cross_entropy import cross_entropy

B, S, D, V = 2, 7, 5, 11


def _plain(hidden, head, targets, weights, z_loss):
    logits = hidden @ head
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return (weights * (nll + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2)).sum(), nll


@pytest.mark.parametrize("chunk_tokens", [1, 6, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_chunked_cross_entropy_has_the_plain_value_and_gradients(chunk_tokens, z_loss):
    """With chunks of one position, chunks that do not divide the sequence, and a single chunk."""
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((B, S, D), (D, V)))
    targets, weights = jnp.asarray(rng.integers(0, V, (B, S))), jnp.asarray(rng.integers(0, 2, (B, S)), jnp.float32)

    def ours(hidden, head):
        loss, nll = cross_entropy(hidden, head, targets, weights, z_loss=z_loss, chunk_tokens=chunk_tokens)
        return 3.0 * loss, nll

    def plain(hidden, head):
        loss, nll = _plain(hidden, head, targets, weights, z_loss)
        return 3.0 * loss, nll

    got, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(hidden, head) for f in (ours, plain))
    for ours_leaf, plain_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours_leaf, plain_leaf, rtol=1e-4, atol=1e-5)
