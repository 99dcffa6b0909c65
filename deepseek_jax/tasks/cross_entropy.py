"""Cross-entropy through the output head, a chunk of the sequence at a time, so that [B, S, V] never exists whole.

The loss is a scalar, so its gradients are proportional to the cotangent that the backward pass supplies.  The forward
pass computes them for a cotangent of 1, chunk by chunk, and the backward pass scales them: nothing is computed twice.

On a mesh every device does this for its own tokens and its own part of the vocabulary.  Devices exchange a few numbers
per token, and sums of gradients once, not once per chunk.

B batch  S sequence  D model  V vocabulary  c positions per chunk
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.parallel import vocabulary
from deepseek_jax.parallel.local import BY_TOKEN
from deepseek_jax.parallel.vocabulary import (
    HEAD,
    SUM,
    highest,
    local_targets,
    over_tokens,
    over_vocabulary,
    reduce_head_gradient,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """See `cross_entropy`, which takes them as arguments."""

    z_loss: float
    chunk_tokens: int


def cross_entropy(
    hidden_BSD: Float[Array, "B S D"],
    head_DV: Float[Array, "D V"],
    targets_BS: Int[Array, "B S"],
    weights_BS: Float[Array, "B S"],
    *,
    z_loss: float = 0.0,
    chunk_tokens: int = 2048,
) -> tuple[Float[Array, ""], Float[Array, "B S"]]:
    """(loss to differentiate, each token's negative log-likelihood in nats, which carries no gradient).

    loss = sum of weights * (nll + z_loss * logsumexp^2), logits and sums in float32.  A device holds the logits of
    `chunk_tokens` tokens at a time.
    """
    options = Options(z_loss, chunk_tokens)
    loss, nll_BS = _cross_entropy(hidden_BSD, head_DV, targets_BS, weights_BS, options)
    return loss, jax.lax.stop_gradient(nll_BS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(hidden_BSD, head_DV, targets_BS, weights_BS, options):
    value = vocabulary.on_vocabulary_shards(functools.partial(_value, options), (SUM, BY_TOKEN))
    return value(hidden_BSD, head_DV, targets_BS, weights_BS)


def _forward(hidden_BSD, head_DV, targets_BS, weights_BS, options):
    both = vocabulary.on_vocabulary_shards(
        functools.partial(_value_and_gradients, options), (SUM, BY_TOKEN, BY_TOKEN, HEAD)
    )
    total, nll_BS, dhidden_BSD, dhead_DV = both(hidden_BSD, head_DV, targets_BS, weights_BS)
    return (total, nll_BS), (dhidden_BSD, dhead_DV)


def _value(options, hidden_BSD, head_DV, targets_BS, weights_BS):
    def chunk(total, each):
        hidden, targets, weights = each
        nll, normaliser, _ = _likelihood(hidden, head_DV, targets)
        return total + _loss(options, weights, nll, normaliser), nll

    total, nll = jax.lax.scan(chunk, jnp.zeros(()), _chunks(options.chunk_tokens, hidden_BSD, targets_BS, weights_BS))
    return over_tokens(total), _unchunked(nll, targets_BS.shape[1])


def _value_and_gradients(options, hidden_BSD, head_DV, targets_BS, weights_BS):
    vocabulary_V = jnp.arange(head_DV.shape[1])

    def chunk(carry, each):
        total, dhead_DV = carry
        hidden, targets, weights = each
        nll, normaliser, probabilities = _likelihood(hidden, head_DV, targets)
        total += _loss(options, weights, nll, normaliser)
        dlogits = probabilities * (weights * (1 + 2 * options.z_loss * normaliser))[..., None]
        here, _ = local_targets(targets, head_DV.shape[1])
        dlogits -= jnp.where(vocabulary_V == here[..., None], weights[..., None], 0.0)
        dlogits = dlogits.astype(hidden.dtype)
        dhead_DV += jnp.einsum("BcD,BcV->DV", hidden, dlogits, preferred_element_type=jnp.float32)
        return (total, dhead_DV), (nll, jnp.einsum("BcV,DV->BcD", dlogits, head_DV))

    start = jnp.zeros(()), jnp.zeros(head_DV.shape, jnp.float32)
    (total, dhead_DV), (nll, dhidden) = jax.lax.scan(
        chunk, start, _chunks(options.chunk_tokens, hidden_BSD, targets_BS, weights_BS)
    )
    length = targets_BS.shape[1]
    dhidden_BSD = over_vocabulary(_unchunked(dhidden, length))
    return (
        over_tokens(total),
        _unchunked(nll, length),
        dhidden_BSD,
        reduce_head_gradient(dhead_DV).astype(head_DV.dtype),
    )


def _backward(options, gradients, cotangents):
    dhidden_BSD, dhead_DV = gradients
    dloss = cotangents[0]
    return (dloss * dhidden_BSD).astype(dhidden_BSD.dtype), (dloss * dhead_DV).astype(dhead_DV.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _loss(options, weights, nll, normaliser):
    """Of one chunk; `_value_and_gradients` has its gradient by the logits."""
    return (weights * (nll + options.z_loss * jnp.square(normaliser))).sum()


def _likelihood(hidden, head_DV, targets):
    """(negative log-likelihood, logsumexp, probabilities) of one chunk, float32."""
    logits = jnp.einsum("BcD,DV->BcV", hidden, head_DV, preferred_element_type=jnp.float32)
    top = highest(logits.max(axis=-1, keepdims=True))
    exponents = jnp.exp(logits - top)
    total = over_vocabulary(exponents.sum(axis=-1, keepdims=True))
    normaliser = (top + jnp.log(total))[..., 0]
    return normaliser - _chosen(logits, targets), normaliser, exponents / total


def _chosen(logits, targets):
    """The logits of the targets, one of which may lie in another device's part of the vocabulary."""
    here, inside = local_targets(targets, logits.shape[-1])
    chosen = jnp.take_along_axis(logits, here[..., None], axis=-1, mode=None if inside is None else "clip")[..., 0]
    return chosen if inside is None else over_vocabulary(jnp.where(inside, chosen, 0.0))


def _chunks(chunk_tokens: int, *arrays):
    """[B, S, ...] as [chunks, B, c, ...] of at most `chunk_tokens` tokens (c at least 1), padded with zeros."""
    positions = max(1, min(arrays[0].shape[1], chunk_tokens // arrays[0].shape[0]))

    def cut(array):
        batch, length, *rest = array.shape
        count = -(-length // positions)
        padded = jnp.pad(array, ((0, 0), (0, count * positions - length), *((0, 0) for _ in rest)))
        return jnp.moveaxis(padded.reshape(batch, count, positions, *rest), 1, 0)

    return tuple(cut(array) for array in arrays)


def _unchunked(chunks, length: int):
    """The inverse of `_chunks`: [B, length, ...]."""
    count, batch, positions, *rest = chunks.shape
    return jnp.moveaxis(chunks, 0, 1).reshape(batch, count * positions, *rest)[:, :length]
