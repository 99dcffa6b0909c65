"""What a batch, a loss and a metric are when the model predicts text.

A batch holds tokens, segment_ids (0 is padding, documents count from 1), positions and domain_ids, each int32 [B, S];
for conversations also answers, 1 for the tokens to be predicted (in other text, all are).  weights, float32 [B, S], if
there are any, are factors of each target's term of the loss: those of a policy gradient may be negative.
Every loss is a sum over tokens or sequences divided by a total of the whole batch, so that the shares of microbatches
and devices add up to exactly the loss of the large batch.

B batch  S sequence  E experts
"""

import jax
import jax.numpy as jnp

from deepseek_jax.config import LossConfig
from deepseek_jax.models.attention.indexer import DIVERGENCE, RECALL
from deepseek_jax.models.decoder import Decoder, same_document, shift
from deepseek_jax.models.moe.balance import batch_balance
from deepseek_jax.parallel.order import after
from deepseek_jax.tasks.cross_entropy import cross_entropy

OF_ATTENTION, OF_ROUTER = OWN = "attention/own/", "router/own/"  # prefixes of metrics that a part defines itself


def totals(batch: dict, depths: int) -> dict[str, jax.Array]:
    """Counts over a whole batch [..., S], at least 1 each: tokens, sequences and, for each depth k up to `depths`,

    targets_k: targets k positions ahead (1: the next token);
    seen_k: tokens whose document has a token k positions ahead, whether it is a target or not.
    """
    rows = {
        name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("segment_ids", "answers") if name in batch
    }
    rows_BS, each = rows["segment_ids"], range(1, depths + 1)
    counts = {f"targets_{depth}": targets(rows, depth).sum() for depth in each}
    counts |= {f"seen_{depth}": same_document(rows_BS, depth).sum() for depth in each}
    counts |= {"tokens": (rows_BS > 0).sum(), "sequences": jnp.asarray(rows_BS.shape[0])}
    return {name: jnp.maximum(count, 1).astype(jnp.float32) for name, count in counts.items()}


def targets(batch: dict, ahead: int) -> jax.Array:
    """[B, S]: whether the token `ahead` positions on is a target: in the same document and, in chats, an answer."""
    within = same_document(batch["segment_ids"], ahead)
    return within & (shift(batch["answers"], ahead) > 0) if "answers" in batch else within


def loss(model: Decoder, batch: dict, totals: dict, scheduled: dict, config: LossConfig) -> tuple[jax.Array, dict]:
    """A microbatch's share of the batch's training loss, and a dict of its shares of the batch's metrics, which add up.

    loss/next, loss/mtp_k: mean nats per target; loss/balance: sequence-wise, mean over sequences, summed over layers;
    loss/batch_balance, if it has a weight: over each microbatch, mean over sequences, summed over layers;
    router/load: assignments per expert, keyed as Output.routers; router/entropy: mean over tokens, keyed likewise;
    router/own/NAME, attention/own/NAME: metrics that routers (Routing.own) and attentions (attention/kinds.py) define
    themselves, means over tokens, keyed likewise;
    router/dropped, if experts have a capacity: the share of assignments beyond it;
    loss/indexer (nats) and indexer/recall, with sparse attention: means over tokens and layers.
    `scheduled` holds "mtp", the weight of that loss; "index_warmup", whether indexers are still warming up (None: they
    never do); and "key", a random key, if a router draws random numbers.
    """
    given = scheduled["index_warmup"], scheduled.get("key")
    output = model(batch["tokens"], batch["positions"], batch["segment_ids"], *given)
    parts = {}
    hidden = after(output.hidden, *output.mtp)
    next_loss, parts["loss/next"] = _predict(model, hidden, batch, 1, totals, config)
    value = next_loss
    for depth, hidden in enumerate(output.mtp, start=2):
        hidden = after(hidden, value)
        further_loss, parts[f"loss/mtp_{depth - 1}"] = _predict(model, hidden, batch, depth, totals, config)
        value += scheduled["mtp"] / len(output.mtp) * further_loss
    reports = [report for _, report in sorted(output.routers.items())]
    parts["loss/balance"] = (
        sum(router.balance.sum() for router in reports) / totals["sequences"] if reports else jnp.zeros(())
    )
    value += config.sequence_balance * parts["loss/balance"]
    if config.batch_balance:
        parts["loss/batch_balance"] = _batch_balance(reports, batch, totals)
        value += config.batch_balance * parts["loss/batch_balance"]
    if reports and reports[0].dropped is not None:
        dropped = _a_token({block: report.dropped for block, report in sorted(output.routers.items())}, totals)
        parts["router/dropped"] = _mean_over_layers(dropped) / model.config.num_experts_per_tok
    told = _by_name(output.attentions, totals)
    if DIVERGENCE in told:
        # Indexers share no parameters, and AdamW ignores the scale of a gradient: a mean over layers trains them as a
        # sum would, and adds less to the common norm by which gradients are clipped.
        parts["loss/indexer"], parts["indexer/recall"] = (_mean_over_layers(told.pop(n)) for n in (DIVERGENCE, RECALL))
        value += config.indexer_weight * parts["loss/indexer"]
    entropies = {block: report.entropy for block, report in output.routers.items()}
    parts["router/load"] = {block: report.load_E for block, report in output.routers.items()}
    parts["router/entropy"] = _a_token(entropies, totals)
    parts |= {OF_ATTENTION + name: means for name, means in told.items()}
    told = _by_name({block: report.own for block, report in output.routers.items()}, totals)
    parts |= {OF_ROUTER + name: means for name, means in told.items()}
    return value, parts | {"loss/total": value}


def next_token_nll(model: Decoder, batch: dict, chunk_tokens: int) -> tuple[jax.Array, jax.Array, dict]:
    """(negative log-likelihoods in nats, whether each counts, expert counts); the former [B, S], of token t + 1 at t.

    If experts have a capacity, the last holds how many assignments were "dropped" of those "assigned", in all layers
    but the MTP modules; else it is {}.
    """
    output = model(batch["tokens"], batch["positions"], batch["segment_ids"])
    counted = targets(batch, 1)
    next_tokens, ones = shift(batch["tokens"], 1), counted.astype(jnp.float32)
    _, nll = cross_entropy(output.hidden, model.head_weight(), next_tokens, ones, chunk_tokens=chunk_tokens)
    reports = [report for block, report in sorted(output.routers.items()) if block.startswith("layers/")]
    if not reports or reports[0].dropped is None:
        return nll, counted, {}
    dropped, assigned = (sum(getattr(report, name).sum() for report in reports) for name in ("dropped", "load_E"))
    return nll, counted, {"dropped": dropped, "assigned": assigned}


def _predict(model, hidden, batch, depth, totals, config):
    """(loss, mean nll) of predicting `depth` tokens ahead, within documents."""
    shares = targets(batch, depth) / totals[f"targets_{depth}"]
    weights = shares * shift(batch["weights"], depth) if "weights" in batch else shares
    options = {"z_loss": config.z_loss, "chunk_tokens": config.chunk_tokens}
    value, nll = cross_entropy(hidden, model.head_weight(), shift(batch["tokens"], depth), weights, **options)
    return value, (nll * shares).sum()


def _batch_balance(reports: list, batch: dict, totals: dict) -> jax.Array:
    """The balance loss summed over layers, weighted by the microbatch's share of the batch's sequences."""
    layers = sum((batch_balance(router.load_E, router.share_E).sum() for router in reports), jnp.zeros(()))
    return layers * batch["tokens"].shape[0] / totals["sequences"]


def _a_token(sums: dict[str, jax.Array], totals: dict) -> dict[str, jax.Array]:
    """Turns sums over tokens, keyed as Output.routers, into means over the tokens that each layer counts.

    An MTP module counts only tokens whose document also holds the later token that is the module's second input.
    """

    def counted(block):
        part, name, *_ = block.split("/")
        return totals[f"seen_{int(name) + 1}" if part == "mtp" else "tokens"]

    return {block: total / counted(block) for block, total in sums.items()}


def _by_name(told: dict[str, dict[str, jax.Array]], totals: dict) -> dict[str, dict[str, jax.Array]]:
    """From sums by name, in each block that has them, to means a token by block, for each name."""
    names = sorted({name for sums in told.values() for name in sums})
    return {name: _a_token({block: own[name] for block, own in told.items() if name in own}, totals) for name in names}


def _mean_over_layers(arrays: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate([jnp.ravel(each) for each in arrays.values()]).mean()
