"""Log-likelihoods of texts, and of every token that may follow them.

B batch  S row length  V vocabulary  N tokens of a row
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from deepseek_jax import compiling
from deepseek_jax.infer.prompts import power_of_two
from deepseek_jax.infer.sampling import best
from deepseek_jax.models.decoder import shift
from deepseek_jax.models.tree import Parts, merge

CHUNK_TOKENS = 512  # positions whose logits are in memory at once


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Of a row's tokens but the first: how likely each is after those before it, in nats, and whether none is likelier.

    `following`: how likely each token of the vocabulary is after the row.
    """

    tokens: Float[np.ndarray, " N-1"]
    likeliest: Bool[np.ndarray, " N-1"]
    following: Float[np.ndarray, " V"]

    def of_ending(self, tokens: Sequence[int]) -> tuple[float, bool]:
        """(log-likelihood of `tokens`, whether greedy decoding gives them), if the row ends with all but their last."""
        *inside, last = tokens
        start = len(self.tokens) - len(inside)
        nats = self.tokens[start:].sum(dtype=np.float64) + self.following[last]
        return float(nats), bool(self.likeliest[start:].all() and self.following.argmax() == last)


def likelihoods(model: Parts, rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[Likelihood]:
    """That of each row, in order.  Rows need at least one token; sorted by length, they need less padding.

    All batches have `batch_size` rows, and a power of two as length, so that few programs are compiled.
    """
    graphdef, params, buffers = model
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        lengths_B = np.ones(batch_size, np.int32)
        lengths_B[: len(batch)] = [len(row) for row in batch]
        tokens_BS = np.zeros((batch_size, power_of_two(lengths_B.max())), np.int32)
        for place, row in enumerate(batch):
            tokens_BS[place, : len(row)] = row
        found = jax.device_get(_likelihoods(graphdef, params, buffers, tokens_BS, lengths_B))
        for row, tokens_S, likeliest_S, following_V in zip(batch, *found):
            yield Likelihood(tokens_S[: len(row) - 1], likeliest_S[: len(row) - 1], following_V)


@compiling.jit(static_argnums=0)
def _likelihoods(graphdef, params, buffers, tokens_BS, lengths_B):
    """[B, S] nats of the token after each position, [B, S] whether it is the likeliest, [B, V] nats after the row."""
    model = merge(graphdef, params, buffers)
    places_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    inside_BS = (places_BS < lengths_B[:, None]).astype(jnp.int32)
    hidden_BSD = model(tokens_BS, places_BS, inside_BS).hidden

    def of_next(each):
        hidden_D, token = each
        logits_V = model.logits(hidden_D[None, None])[0, 0]
        return logits_V[token] - jax.nn.logsumexp(logits_V), best(logits_V) == token

    flat = hidden_BSD.reshape(-1, hidden_BSD.shape[-1]), shift(tokens_BS, 1).reshape(-1)
    nats, likeliest = jax.lax.map(of_next, flat, batch_size=CHUNK_TOKENS)
    last_B1D = jnp.take_along_axis(hidden_BSD, (lengths_B - 1)[:, None, None], axis=1)
    following_BV = jax.nn.log_softmax(model.logits(last_B1D)[:, 0])
    return nats.reshape(tokens_BS.shape), likeliest.reshape(tokens_BS.shape), following_BV
