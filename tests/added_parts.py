"""Parts that tests add, forgotten again: to the tests after them they are as unknown as to a new process."""

import contextlib
import sys

from deepseek_jax.config import OPTIMIZERS, SCHEDULES
from deepseek_jax.data.corpora import CORPORA
from deepseek_jax.data.sets.registry import SOURCES
from deepseek_jax.models import checks, feed_forward
from deepseek_jax.models.attention import costs, kinds
from deepseek_jax.models.moe import router
from deepseek_jax.part_settings import SETTINGS
from deepseek_jax.train.optim import optimizer, schedules

TABLES = (
    *(kinds.KINDS, costs.COSTS, feed_forward.FEED_FORWARDS, router.ROUTERS),
    *(checks.OF_ATTENTION, checks.OF_FEED_FORWARD, checks.LIKE, checks.ADDED_BY, CORPORA, SOURCES),
    *(OPTIMIZERS, SCHEDULES, optimizer.DIRECTIONS, schedules.SHAPES, SETTINGS),
)


@contextlib.contextmanager
def forgotten_after(packages: tuple[str, ...]):
    """Afterwards the tables are as before, and so are the loaded modules whose names begin with one of `packages`."""
    before, modules = [dict(table) for table in TABLES], set(sys.modules)
    try:
        yield
    finally:
        for table, entries in zip(TABLES, before, strict=True):
            table.clear()
            table.update(entries)
        for name in set(sys.modules) - modules:
            if name.startswith(packages):
                del sys.modules[name]


@contextlib.contextmanager
def as_in_a_new_process(packages: tuple[str, ...]):
    """As `forgotten_after`, and parts that were added before are not known inside either."""
    with forgotten_after(packages):
        added = set(checks.ADDED_BY)
        for table in TABLES:
            for name in added & table.keys():
                del table[name]
        yield
