"""A slow reference of V4's attention over one document: the paper's formulas, token by token in float64.

S tokens  D model  H heads  d head width  E compressed entries  m compression rate
"""

import numpy as np

from deepseek_jax.models import rope


def attend(attention, x_SD):
    """(output [S D], KL divergence [S] in nats from each token's attention over picked entries to its indexer's)."""
    config, kind = attention.config, attention.kind
    q_SQ = rms(x_SD @ value(attention.q_down), config) * value(attention.q_norm.scale)
    q_SHd = turn(rms(np.einsum("SQ,QHd->SHd", q_SQ, value(attention.q_up)), config), attention)
    kv_Sd = turn(rms(x_SD @ value(attention.kv), config) * value(attention.kv_norm.scale), attention)
    entries_Ed = np.zeros((0, config.head_dim)) if kind == "window" else compress(attention.compressor, attention, x_SD)
    rate = {"window": 1, "csa": config.csa_rate, "hca": config.hca_rate}[kind]
    index_SE = index(attention, x_SD, q_SQ) if kind == "csa" else None
    mixed_SHd, divergence_S = np.zeros_like(q_SHd), np.zeros(len(x_SD))
    for t, q_Hd in enumerate(q_SHd):
        seen = np.arange(min((t + 1) // rate, len(entries_Ed)))
        if kind == "csa":
            seen = seen[np.argsort(-index_SE[t, seen])][: config.index_topk]
        near_Td = kv_Sd[max(0, t - config.sliding_window + 1) : t + 1]
        keys_Td = np.concatenate([near_Td, entries_Ed[seen]])
        scores_HT = np.exp(q_Hd @ keys_Td.T / np.sqrt(config.head_dim))
        share_HT = scores_HT / (scores_HT.sum(axis=1, keepdims=True) + np.exp(value(attention.sinks))[:, None])
        mixed_SHd[t] = share_HT @ keys_Td
        if kind == "csa" and len(seen):
            target, guess = share_HT[:, len(near_Td) :].sum(axis=0), np.exp(index_SE[t, seen])
            target, guess = target / target.sum(), guess / guess.sum()
            divergence_S[t] = (target * np.log(target / guess)).sum()
    mixed_SGe = turn(mixed_SHd, attention, back=True).reshape(len(x_SD), config.o_groups, -1)
    low_SGo = np.einsum("SGe,Geo->SGo", mixed_SGe, value(attention.out_down))
    return low_SGo.reshape(len(x_SD), -1) @ value(attention.out_up), divergence_S


def compress(compressor, attention, x_SD):
    """An entry [E d] for every full run of m tokens.  Entries of csa cover the run before too, but for the first."""
    m, d, two = compressor.rate, compressor.width, attention.kind == "csa"
    contents, gates = x_SD @ value(compressor.kv), x_SD @ value(compressor.gate)
    bias, entries = value(compressor.position_bias), []
    for first in range(0, len(x_SD) - m + 1, m):
        run, before = slice(first, first + m), slice(first - m, first)
        gate, content = gates[run, -d:] + bias[:, -d:], contents[run, -d:]
        if two and first:
            gate = np.concatenate([gates[before, :d] + bias[:, :d], gate])
            content = np.concatenate([contents[before, :d], content])
        share = np.exp(gate) / np.exp(gate).sum(axis=0)
        entries.append((share * content).sum(axis=0))
    normed = rms(np.array(entries).reshape(-1, d), attention.config) * value(compressor.norm.scale)
    return turn(normed, attention, positions=m * np.arange(len(entries)))


def index(attention, x_SD, q_SQ):
    """The score of every entry for every token [S E]."""
    indexer = attention.indexer
    keys_Ei = compress(indexer.compressor, attention, x_SD)
    q_Shi = turn(np.einsum("SQ,Qhi->Shi", q_SQ, value(indexer.q_up)), attention)
    weights_Sh = x_SD @ value(indexer.weights) / np.sqrt(np.prod(q_Shi.shape[1:]))
    return np.einsum("ShE,Sh->SE", np.maximum(q_Shi @ keys_Ei.T, 0), weights_Sh)


def turn(x, attention, *, back=False, positions=None):
    """Applies rotary embeddings: each pair of the last channels as a complex number, rotated by its angle."""
    config = attention.config
    plain = attention.kind == "window"
    theta, scaling = (
        (config.rope_theta, rope.RopeScaling()) if plain else (config.compress_rope_theta, config.rope_scaling)
    )
    positions = np.arange(len(x)) if positions is None else positions
    angles = positions[:, None] * rope.frequencies(config.qk_rope_head_dim, theta, scaling)
    angles = np.expand_dims(-angles if back else angles, axis=tuple(range(1, x.ndim - 1)))
    still, tail = np.split(x, [x.shape[-1] - config.qk_rope_head_dim], axis=-1)
    turned = (tail[..., 0::2] + 1j * tail[..., 1::2]) * np.exp(1j * angles)
    pairs = np.stack([turned.real, turned.imag], axis=-1).reshape(tail.shape)
    return np.concatenate([still, pairs], axis=-1)


def rms(x, config):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.rms_norm_eps)


def value(parameter):
    return np.asarray(parameter[...], np.float64)
