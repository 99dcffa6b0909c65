"""Adds parts of your own to the tables by which a config names parts: docs/architecture.md shows how they are used."""

from collections.abc import Callable, Sequence

from flax import nnx

from deepseek_jax.errors import UserError
from deepseek_jax.models import checks
from deepseek_jax.models.attention.costs import COSTS, AttentionCost
from deepseek_jax.models.attention.kinds import KINDS
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.feed_forward import FEED_FORWARDS
from deepseek_jax.models.moe.router import ROUTERS, Router


def add_attention(
    name: str,
    module: type[nnx.Module],
    *,
    like: str = "",
    sizes: Sequence[str] | None = None,
    cost: Callable[[ModelConfig], AttentionCost] | None = None,
):
    """Makes `name` a kind of attention for model.layer_types; models/attention/kinds.py is `module`'s interface.

    like    a kind that is there already: yours needs the same sizes within the same limits, has rotary embeddings of
            the same width, and costs the same, unless the next two say otherwise
    sizes   the fields of ModelConfig that must be above 0; without `like`, the rotary width is qk_rope_head_dim
    cost    what a layer costs (models/attention/costs.py)
    """
    if like and like not in KINDS:
        raise UserError(f"the attention {name} is to be like {like!r}; choose one of {', '.join(KINDS)}.")
    if not like and (sizes is None or cost is None):
        raise UserError(f"the attention {name} is like no other: give add_attention its sizes and its cost.")
    sizes = checks.OF_ATTENTION[like] if sizes is None else sizes
    _check(name, module, KINDS, checks.OF_ATTENTION, sizes)
    KINDS[name], checks.OF_ATTENTION[name], COSTS[name] = module, tuple(sizes), cost or COSTS[like]
    if like:
        checks.LIKE[name] = checks.like(like)


def add_feed_forward(name: str, module: type[nnx.Module], *, sizes: Sequence[str] = ("intermediate_size",)):
    """Makes `name` a kind of feed-forward for model.mlp_layer_types; models/feed_forward.py is `module`'s interface.

    `sizes`: the fields of ModelConfig that must be above 0; with moe_intermediate_size it has routed experts.
    """
    _check(name, module, FEED_FORWARDS, checks.OF_FEED_FORWARD, sizes)
    FEED_FORWARDS[name], checks.OF_FEED_FORWARD[name] = module, tuple(sizes)


def add_router(name: str, module: type[Router]):
    """Makes `name` a mixture of experts for model.mlp_layer_types, whose experts the router `module` chooses."""
    if not issubclass(module, Router):
        raise UserError(f"the router {name} is a {module.__name__}, which is no subclass of Router (moe/router.py).")
    _check(name, module, ROUTERS, checks.OF_FEED_FORWARD, checks.EXPERTS)
    ROUTERS[name], checks.OF_FEED_FORWARD[name] = module, checks.EXPERTS


def _check(name: str, module: type, table: dict, known: dict, sizes: Sequence[str]):
    """UserError if another part has this name, or a size is not one of ModelConfig; notes where the part is from."""
    if isinstance(sizes, str) or (unknown := [size for size in sizes if size not in ModelConfig.__dataclass_fields__]):
        wrong = sizes if isinstance(sizes, str) else unknown[0]
        raise UserError(f"{name} has the sizes {wrong!r}; give a list of fields of ModelConfig.")
    before = table.get(name)
    same = before is not None and (before.__module__, before.__qualname__) == (module.__module__, module.__qualname__)
    if name in known and not same:  # the same one again: its module is reloaded
        raise UserError(f"{name} is the name of another part; give yours a name of its own.")
    checks.ADDED_BY[name] = module.__module__
