"""How long work tells how far it has come."""

from collections.abc import Callable

Report = Callable[[str, int, int | None], None]  # (what is being done, how much is done, the total if known)


def no_report(stage: str, done: int, total: int | None):
    """A Report that does nothing."""
