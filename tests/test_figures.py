import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager

from deepseek_jax import figures


def test_installed_fonts_are_fallbacks_for_matplotlibs_own(monkeypatch):
    monkeypatch.setattr(fontManager, "ttflist", [FontEntry(name="NanumGothic"), FontEntry(name="SimHei")])
    assert figures.families() == ["DejaVu Sans", "SimHei", "NanumGothic"]
    monkeypatch.setattr(fontManager, "ttflist", [])
    assert figures.families() == ["DejaVu Sans"]


def test_a_legend_shows_names_with_dollars_and_underscores_verbatim():
    axes = Figure().subplots()
    axes.plot([0, 1], label="$10 or $20_")
    figures.add_legend(axes, fontsize=7)
    (text,) = axes.get_legend().get_texts()
    assert text.get_text() == "$10 or $20_" and not text.get_parse_math()


def test_a_legend_of_many_names_is_put_below_the_plot():
    """Inside the plot it would hide the lines."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for place in range(10):
        axes.plot([0, 1], [0, place], label=f"variant {place}, which has a name of some length")
    figures.add_legend(axes, fontsize=7)
    figures.png(figure)
    (legend,) = figure.legends
    bounds = legend.get_window_extent()
    assert len(legend.get_texts()) == 10 and axes.get_legend() is None
    assert bounds.y1 < axes.get_tightbbox().y0 and bounds.x1 <= figure.bbox.x1


def test_the_factor_above_an_axis_is_as_large_as_its_numbers():
    axes = Figure().subplots()
    axes.plot([0, 3e-6])
    figures.tidy(axes)
    figures.png(axes.figure)
    factor, number = axes.yaxis.get_offset_text(), axes.yaxis.get_majorticklabels()[0]
    assert factor.get_text() == "1e\N{MINUS SIGN}6" and factor.get_size() == number.get_size()


def test_letters_that_no_font_has_are_warned_of_once():
    figure = Figure()
    figure.text(0, 0.5, "\ue000\ue001 cat")  # from Unicode's private use area, which no font covers
    with pytest.warns(UserWarning) as said:
        assert figures.png(figure).startswith(b"\x89PNG")
    assert [str(each.message)[:33] for each in said] == ["a picture has boxes for letters t"]
