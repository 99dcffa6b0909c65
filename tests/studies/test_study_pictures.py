"""The pictures of a report: variants of any number and name can be told apart."""

import pytest

from deepseek_jax.studies import pictures

NAMES = [f"variant {place}, whose name says at some length what it is" for place in range(12)]


@pytest.fixture
def results(monkeypatch):
    monkeypatch.setattr(pictures, "png", lambda figure: figure)
    curve = [[spent, 5 - 0.1 * spent] for spent in range(8)]
    runs = [{"variant": name, "seed": 0, "curve": curve, "shares": {"0": [0.1, 0.2, 0.3, 0.4]}} for name in NAMES]
    return {"family": "language_model", "runs": runs}


def test_no_two_of_twelve_curves_are_drawn_alike(results):
    left, right = pictures.losses(results, NAMES).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in left.lines}) == 12
    looks = [(line.get_color(), line.get_linestyle()) for line in left.lines]
    assert [(line.get_color(), line.get_linestyle()) for line in right.lines[:11]] == looks[1:]


def test_without_a_curve_of_the_first_variant_there_are_no_differences_to_it(results):
    results["runs"][0]["curve"] = results["runs"][0]["curve"][:2]
    (left,) = pictures.losses(results, NAMES).axes
    assert len(left.lines) == 11


def test_loads_have_whole_experts_and_titles_within_their_panels(results):
    figure = pictures.loads(results, NAMES)
    figure.draw_without_rendering()
    panels = figure.axes[:12]
    assert all(tick == int(tick) for tick in panels[0].get_xticks())
    titles = [axes._left_title.get_window_extent() for axes in panels[:3]]
    assert all(one.x1 < next_.x0 for one, next_ in zip(titles, titles[1:]))
