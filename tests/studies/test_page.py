"""Report blocks as Markdown."""

from deepseek_jax.studies.page import Table, markdown


def test_a_markdown_table_row_is_one_line():
    reason = "photos.csv has 2 faults:\n  line 2: kind is empty.\n  line 3: a|b is none."
    lines = markdown([Table(["failed", "reason"], [["low", reason], ["high", ""]])]).splitlines()
    assert lines[2:] == [
        "| low | photos.csv has 2 faults: line 2: kind is empty. line 3: a\\|b is none. |",
        "| high |  |",
    ]
