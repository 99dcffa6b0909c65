"""What a person sees while a run goes on: one line that moves."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def preparing(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A line for each stage of preparing: gives `report(stage, done, total)`; none when nothing is prepared."""
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        tasks = {}

        def report(stage: str, done: int, total: int | None):
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield report
        for task in bar.tasks:
            bar.update(task.id, total=1, completed=1)


@contextlib.contextmanager
def training(console: Console, done: int, steps: int) -> Iterator[Callable[..., None]]:
    """The bar of a training run: gives `show(step, note)`, where `note` replaces what stands beside the bar."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task("compiling", total=steps, completed=done)

        def show(step: int, note: str | None = None):
            bar.update(task, completed=step, description=note)

        yield show
