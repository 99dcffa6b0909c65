"""What a batch, a loss and a metric are when the model predicts text.

A batch holds tokens, segment_ids (0 is padding, documents count from 1), positions and domain_ids, each int32 [B, S];
for conversations also answers, 1 for the tokens to be predicted (in other text, all are).
Every loss is a sum over tokens or sequences divided by a total of the whole batch, so that the shares of microbatches
and devices add up to exactly the loss of the large batch.

B batch  S sequence  E experts
"""

import jax
import jax.numpy as jnp

from deepseek_jax.config import LossConfig
from deepseek_jax.models.decoder import Decoder, same_document, shift
from deepseek_jax.models.moe.balance import all_reports, batch_balance, is_report, of_reports
from deepseek_jax.parallel.order import after
from deepseek_jax.tasks.cross_entropy import cross_entropy

OWN = "router/own/"  # prefix of metrics that a router defines itself


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
    router/load: assignments per expert, nested like the buffers; router/entropy: mean over tokens, nested likewise;
    router/own/NAME: metrics that routers define themselves (Routing.own), means over tokens, nested likewise;
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
    reports = all_reports(output.routers)
    parts["loss/balance"] = (
        sum(router.balance.sum() for router in reports) / totals["sequences"] if reports else jnp.zeros(())
    )
    value += config.sequence_balance * parts["loss/balance"]
    if config.batch_balance:
        parts["loss/batch_balance"] = _batch_balance(reports, batch, totals)
        value += config.batch_balance * parts["loss/batch_balance"]
    if reports and reports[0].dropped is not None:
        dropped = jax.tree.leaves(_a_token(of_reports(output.routers, "dropped"), totals))
        parts["router/dropped"] = _mean_over_layers(dropped) / model.config.num_experts_per_tok
    if output.indexers:
        parts["loss/indexer"], parts["indexer/recall"] = _indexers(output.indexers, totals)
        value += config.indexer_weight * parts["loss/indexer"]
    routers = {
        "router/load": of_reports(output.routers, "load_E"),
        "router/entropy": _a_token(of_reports(output.routers, "entropy"), totals),
    }
    return value, parts | routers | _own(output.routers, totals) | {"loss/total": value}


def next_token_nll(model: Decoder, batch: dict, chunk_tokens: int) -> tuple[jax.Array, jax.Array, dict]:
    """(negative log-likelihoods in nats, whether each counts, expert counts); the former [B, S], of token t + 1 at t.

    If experts have a capacity, the last holds how many assignments were "dropped" of those "assigned", in all layers
    but the MTP modules; else it is {}.
    """
    output = model(batch["tokens"], batch["positions"], batch["segment_ids"])
    counted = targets(batch, 1)
    next_tokens, ones = shift(batch["tokens"], 1), counted.astype(jnp.float32)
    _, nll = cross_entropy(output.hidden, model.head_weight(), next_tokens, ones, chunk_tokens=chunk_tokens)
    reports = all_reports(output.routers.get("layers", {}))
    if not reports or reports[0].dropped is None:
        return nll, counted, {}
    dropped, assigned = (sum(getattr(report, name).sum() for report in reports) for name in ("dropped", "load_E"))
    return nll, counted, {"dropped": dropped, "assigned": assigned}


def _predict(model, hidden, batch, depth, totals, config):
    """(loss, mean nll) of predicting `depth` tokens ahead, within documents."""
    weights = targets(batch, depth) / totals[f"targets_{depth}"]
    options = {"z_loss": config.z_loss, "chunk_tokens": config.chunk_tokens}
    value, nll = cross_entropy(hidden, model.head_weight(), shift(batch["tokens"], depth), weights, **options)
    return value, (nll * weights).sum()


def _batch_balance(reports: list, batch: dict, totals: dict) -> jax.Array:
    """The balance loss summed over layers, weighted by the microbatch's share of the batch's sequences."""
    layers = sum((batch_balance(router.load_E, router.share_E).sum() for router in reports), jnp.zeros(()))
    return layers * batch["tokens"].shape[0] / totals["sequences"]


def _indexers(reports: dict, totals: dict) -> tuple[jax.Array, jax.Array]:
    """(divergence, recall), means over the tokens that a layer counts and over layers.

    Indexers share no parameters, and AdamW ignores the scale of a gradient: a mean over layers trains them as a sum
    would, and adds less to the common norm by which gradients are clipped.
    """
    means = _a_token(reports, totals)
    layers = [means["layers"][name] for name in reports.get("layers", {})]
    layers += [means["mtp"][depth]["block"] for depth in reports.get("mtp", {})]
    divergence, recall = (
        _mean_over_layers([getattr(mean, name) for mean in layers]) for name in ("divergence", "recall")
    )
    return divergence, recall


def _a_token(sums: dict, totals: dict) -> dict:
    """Turns sums over tokens, nested by layer, into means over the tokens that each layer counts.

    An MTP module counts only tokens whose document also holds the later token that is the module's second input.
    """

    def mean(tree, count):
        return jax.tree.map(lambda total: total / count, tree)

    found = {part: mean(tree, totals["tokens"]) for part, tree in sums.items() if part != "mtp"}
    if "mtp" in sums:
        found["mtp"] = {depth: mean(tree, totals[f"seen_{int(depth) + 1}"]) for depth, tree in sums["mtp"].items()}
    return found


def _mean_over_layers(arrays: list) -> jax.Array:
    return jnp.concatenate([jnp.ravel(each) for each in arrays]).mean()


def _own(routers: dict, totals: dict) -> dict:
    """Means of the metrics that routers define themselves, nested like the routers that report them."""
    names = sorted({name for report in all_reports(routers) for name in report.own})
    return {f"{OWN}{name}": _a_token(_told(routers, name), totals) for name in names}


def _told(node, name: str):
    """The metric `name` of the routers that report it, nested like them; None if none does."""
    if is_report(node):
        return node.own.get(name)
    found = {key: _told(part, name) for key, part in node.items()}
    return {key: part for key, part in found.items() if part is not None} or None
