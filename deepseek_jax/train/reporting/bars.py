"""Progress bars: updated in place on a terminal, printed once a minute into a job's log."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from deepseek_jax.reporting import Report

LOG_SECONDS = 60.0


class Bars(Progress):
    """Bars updated in place on a terminal.  Elsewhere the unfinished ones are printed once a minute."""

    _printed = -math.inf

    def update(self, *args, **changes):
        super().update(*args, **changes)
        if self.console.is_interactive or time.monotonic() - self._printed < LOG_SECONDS:
            return
        if under_way := [task for task in self.tasks if not task.finished]:
            self._printed = time.monotonic()
            self.console.print(self.make_tasks_table(under_way))


@contextlib.contextmanager
def stages(console: Console) -> Iterator[Report]:
    """A bar for each stage of long work, shown from its first report on."""
    named = TextColumn("{task.description}", markup=False)
    left = TimeRemainingColumn(elapsed_when_finished=True)
    bar, tasks = Bars(SpinnerColumn(), named, BarColumn(), TaskProgressColumn(), left, console=console), {}

    def finish():
        for task in tasks.values():
            bar.update(task, total=1, completed=1)

    def report(stage: str, done: int, total: int | None):
        if not tasks:
            bar.start()  # not before: a log would get an empty line for bars that never show
        if stage not in tasks:
            finish()  # stages run one after another
            tasks[stage] = bar.add_task(stage, total=total)
        bar.update(tasks[stage], completed=done, total=total)

    try:
        yield report
        finish()
    finally:
        if tasks:
            bar.stop()


@contextlib.contextmanager
def training(console: Console, done: int, steps: int) -> Iterator[Callable[..., None]]:
    """The bar of a training run: yields `show(step, note)`, where `note` replaces the text beside the bar."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task("compiling", total=steps, completed=done)

        def show(step: int, note: str | None = None):
            bar.update(task, completed=step, description=note)

        yield show
