"""Report blocks as Markdown and as HTML."""

from deepseek_jax.studies.page import Code, Paragraph, Picture, Table, markdown, page


def test_a_markdown_table_row_is_one_line():
    reason = "photos.csv has 2 faults:\n  line 2: kind is empty.\n  line 3: a|b is none."
    lines = markdown([Table(["failed", "reason"], [["low", reason], ["high", ""]])]).splitlines()
    assert lines[2:] == [
        "| low | photos.csv has 2 faults: line 2: kind is empty. line 3: a\\|b is none. |",
        "| high |  |",
    ]


def test_the_page_is_rendered_from_the_markdown_and_needs_no_other_file():
    blocks = [
        Paragraph("**Holds** by `loss`: <b>lr < 1</b>"),
        Table(["name", "why"], [["a|b", "x < y & z"], ["", "`k=1`"]]),
        Picture("loss.png", "the loss", b"png"),
        Code("run a\nreport a"),
    ]
    text = page("rate & co", blocks)
    assert "<title>rate &amp; co</title>" in text
    assert "<strong>Holds</strong> by <code>loss</code>: &lt;b&gt;lr &lt; 1&lt;/b&gt;" in text
    assert "<td>a|b</td>\n<td>x &lt; y &amp; z</td>" in text and "<td></td>\n<td><code>k=1</code></td>" in text
    assert 'src="data:image/png;base64,cG5n" alt="the loss"' in text and "loss.png" not in text
    assert "<pre><code>run a\nreport a\n</code></pre>" in text
