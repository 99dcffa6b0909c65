"""Progress bars in a log, which is not a terminal: active bars are printed once a minute, and all at the end."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from deepseek_jax.train.reporting import bars


@pytest.fixture
def log(monkeypatch):
    """(a console that is no terminal, a function that returns its lines so far, pass_seconds(n) to move the clock)."""
    now = [1000.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=100)

    def pass_seconds(seconds):
        now[0] += seconds

    return console, lambda: console.file.getvalue().splitlines(), pass_seconds


def test_training_is_logged_once_a_minute(log):
    console, lines, pass_seconds = log
    with bars.training(console, 3, 20) as show:
        show(4, "loss 8.000")
        assert "4/20 loss 8.000" in lines()[0]
        for step in range(5, 11):
            pass_seconds(20)
            show(step, f"loss {step}.000")
        assert [line.split("loss ")[1][0] for line in lines()] == ["8", "7", "1"]
        console.print("saved")
        show(20)
    assert lines()[3] == "saved" and "20/20" in lines()[4]


def test_a_stage_counts_as_done_when_the_next_begins(log):
    console, lines, pass_seconds = log
    with bars.stages(console) as report:
        report("reading", 0, None)
        assert "reading" in lines()[0]
        pass_seconds(60)
        report("storing", 10, 40)
        assert len(lines()) == 2 and "storing" in lines()[1] and " 25% " in lines()[1]
    assert [line.split()[0] for line in lines()[2:]] == ["reading", "storing"]


def test_a_conversion_shows_its_share_once_its_total_is_known(capsys):
    with bars.stages(Console()) as report:
        report("IN[1] to OUT", 30, 40)
        assert "IN[1] to OUT" in (out := capsys.readouterr().out) and "75%" in out.splitlines()[-1]


def test_nothing_is_printed_where_nothing_is_prepared(log):
    console, lines, _ = log
    with bars.stages(console):
        pass
    assert lines() == []


def test_a_terminal_gets_no_logged_lines(monkeypatch):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, force_interactive=True)
    printed = []
    monkeypatch.setattr(console, "print", lambda *args, **kwargs: printed.append(args))
    with bars.training(console, 0, 20) as show:
        show(1, "loss 8.000")
    assert not [each for each in printed if isinstance(each[0], Table)]
