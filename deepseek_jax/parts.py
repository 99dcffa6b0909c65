"""Adds parts of your own to the tables by which a config names parts: docs/architecture.md shows how they are used."""

import dataclasses
import keyword
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import optax
from flax import nnx

from deepseek_jax import fields
from deepseek_jax.config import NAMED, OPTIMIZERS, SCHEDULES, OptimizerConfig, ScheduleConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models import checks
from deepseek_jax.models.attention.costs import COSTS, AttentionCost
from deepseek_jax.models.attention.kinds import KINDS
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.feed_forward import FEED_FORWARDS
from deepseek_jax.models.moe.router import ROUTERS, Router
from deepseek_jax.part_settings import SETTINGS
from deepseek_jax.train.optim.optimizer import DIRECTIONS
from deepseek_jax.train.optim.schedules import SHAPES

if TYPE_CHECKING:
    from deepseek_jax.data.corpora import TextCorpus
    from deepseek_jax.data.sets.config import DatasetConfig
    from deepseek_jax.data.sets.source import Source


def add_attention(
    name: str,
    module: type[nnx.Module],
    *,
    like: str = "",
    sizes: Sequence[str] | None = None,
    cost: Callable[[ModelConfig], AttentionCost] | None = None,
    settings: type | None = None,
):
    """Makes `name` a kind of attention for model.layer_types; models/attention/kinds.py is `module`'s interface.

    like      a kind that is there already: yours needs the same sizes within the same limits, has rotary embeddings of
              the same width, and costs the same, unless the next two say otherwise
    sizes     the fields of ModelConfig that must be above 0; without `like`, the rotary width is qk_rope_head_dim
    cost      what a layer costs (models/attention/costs.py)
    settings  see `add_settings`; `module` finds them as config.parts.NAME
    """
    if like and like not in KINDS:
        raise UserError(f"the attention {name} is to be like {like!r}; choose one of {', '.join(KINDS)}.")
    if not like and (sizes is None or cost is None):
        raise UserError(f"the attention {name} is like no other: give add_attention its sizes and its cost.")
    sizes = checks.OF_ATTENTION[like] if sizes is None else sizes
    _check_fields(name, sizes, "sizes", ModelConfig)
    _claim(name, module, KINDS.get(name), settings)
    KINDS[name], checks.OF_ATTENTION[name], COSTS[name] = module, tuple(sizes), cost or COSTS[like]
    if like:
        checks.LIKE[name] = checks.like(like)


def add_feed_forward(
    name: str,
    module: type[nnx.Module],
    *,
    sizes: Sequence[str] = ("intermediate_size",),
    settings: type | None = None,
):
    """Makes `name` a kind of feed-forward for model.mlp_layer_types; models/feed_forward.py is `module`'s interface.

    `sizes`: the fields of ModelConfig that must be above 0; with moe_intermediate_size it has routed experts.
    `settings`: see `add_settings`; `module` finds them as config.parts.NAME.
    """
    _check_fields(name, sizes, "sizes", ModelConfig)
    _claim(name, module, FEED_FORWARDS.get(name), settings)
    FEED_FORWARDS[name], checks.OF_FEED_FORWARD[name] = module, tuple(sizes)


def add_router(name: str, module: type[Router], *, settings: type | None = None):
    """Makes `name` a mixture of experts for model.mlp_layer_types, whose experts the router `module` chooses.

    `settings`: see `add_settings`; `module` finds them as config.parts.NAME.
    """
    if not issubclass(module, Router):
        raise UserError(f"the router {name} is a {module.__name__}, which is no subclass of Router (moe/router.py).")
    _claim(name, module, ROUTERS.get(name), settings)
    ROUTERS[name], checks.OF_FEED_FORWARD[name] = module, checks.EXPERTS


def add_optimizer(
    name: str,
    direction: Callable[[OptimizerConfig, int, dict | None], optax.GradientTransformation],
    *,
    uses: Sequence[str] = (),
    settings: type | None = None,
):
    """Makes `name` an optimizer for optimizer.name: `direction` is called as those of train/optim/optimizer.py.

    `uses`: which of b1, b2, eps and nesterov of OptimizerConfig it uses; moments in bfloat16 need those they decay by.
    `settings`: see `add_settings`; `direction` finds them as config.parts.NAME.
    """
    _check_fields(name, uses, "settings", OptimizerConfig)
    _claim(name, direction, DIRECTIONS.get(name), settings)
    DIRECTIONS[name], OPTIMIZERS[name] = direction, tuple(uses)


def add_schedule(
    name: str,
    shape: Callable[[ScheduleConfig, float, int], tuple[list[optax.Schedule], list[int]]],
    *,
    uses: Sequence[str] = (),
    settings: type | None = None,
):
    """Makes `name` a schedule for optimizer.schedule.name: `shape` is called as those of train/optim/schedules.py.

    `uses`: which fields of ScheduleConfig it uses, of those that not all schedules use.
    `settings`: see `add_settings`; `shape` finds them as schedule.parts.NAME.
    """
    _check_fields(name, uses, "settings", ScheduleConfig)
    _claim(name, shape, SHAPES.get(name), settings)
    SHAPES[name], SCHEDULES[name] = shape, tuple(uses)


def add_corpus(name: str, corpus: "type[TextCorpus]", *, settings: type | None = None):
    """Makes `name` a corpus for data.source and data.weights.

    `settings`: see `add_settings`; `provenance` and the constructor of `corpus` are given each as an argument.
    """
    from deepseek_jax.data.corpora import CORPORA  # which takes a second to import

    _claim(name, corpus, CORPORA.get(name), settings)
    CORPORA[name] = corpus


def add_labelled_set(name: str, kind: str, read: "Callable[[DatasetConfig], Source]", *, settings: type | None = None):
    """Makes `name` a set for dataset.name, of records of this `kind`: image, text, table or series.

    `settings`: see `add_settings`; `read` finds them as config.parts.NAME.
    """
    from deepseek_jax.data.sets.registry import SOURCES  # likewise

    _claim(name, read, SOURCES.get(name, (None, None))[1], settings)
    SOURCES[name] = kind, read


def add_settings(name: str, settings: type):
    """Makes config.parts.NAME the settings of something else that a plugin adds, such as a term of the loss.

    `settings` is a frozen dataclass with a default for each field: numbers, text, booleans, tuples of these, or another
    such dataclass.  Experiments that name its module, or the package which contains that, in `plugins` have them.
    """
    where = f"the settings of {name}, {getattr(settings, '__name__', settings)}"
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"{name!r} has settings, so it is a part of keys; give it a name of letters, digits and _.")
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings) and settings.__dataclass_params__.frozen):
        raise UserError(f"{where}, must be a frozen dataclass: @dataclasses.dataclass(frozen=True).")
    if (before := SETTINGS.get(name)) is not None and not _same(before, settings):
        raise UserError(f"{name} has settings already, {before.__module__}.{before.__qualname__}; choose another name.")
    fields.check_defaults(settings, where)
    SETTINGS[name] = settings


def _claim(name: str, part: Callable, before: Callable | None, settings: type | None):
    """UserError if a part has this name already, unless it is this one, `before` its module was reloaded."""
    taken = before is not None or any(name in known for known in NAMED)
    if taken and not (before and _same(before, part)):
        raise UserError(f"{name} is the name of another part; give yours a name of its own.")
    if settings is not None:
        add_settings(name, settings)
    checks.ADDED_BY[name] = part.__module__


def _check_fields(name: str, given: Sequence[str], what: str, section: type):
    """UserError if a part is not given a list of fields of this section."""
    if isinstance(given, str) or (unknown := [field for field in given if field not in section.__dataclass_fields__]):
        wrong = given if isinstance(given, str) else unknown[0]
        raise UserError(f"{name} has the {what} {wrong!r}; give a list of fields of {section.__name__}.")


def _same(one: Callable, other: Callable) -> bool:
    """Whether these are equal, or one is the other one of a module that was reloaded."""
    return one is other or (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
