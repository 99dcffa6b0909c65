"""The figure of a sweep with `across`: one curve for each value of that key."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from deepseek_jax.figures import INK, PLAIN, STYLE, add_legend, png, tidy
from deepseek_jax.studies.pictures import colour


def across(table: Mapping[str, Mapping[str, float]], sweep) -> bytes:
    """Scores over the choices of the other keys, on a logarithmic axis if all of these are positive numbers.

    `table`: as Sweep.by_value.
    """
    labels = list(dict.fromkeys(label for of in table.values() for label in of))
    try:
        places = {label: float(label) for label in labels}
        numbers, logarithmic = True, min(places.values()) > 0
    except ValueError:
        places = {label: place for place, label in enumerate(labels)}
        numbers = logarithmic = False
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (value, of) in enumerate(table.items()):
        points = sorted((places[label], score) for label, score in of.items())
        x, y = [x for x, _ in points], [y for _, y in points]  # both empty if there is no score
        axes.plot(x, y, "o-", color=colour(place), markersize=4, linewidth=1.4, label=f"{sweep.across} {value}")
    if logarithmic:
        axes.set_xscale("log")
    if not numbers:
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", rotation_mode="anchor", **PLAIN)
    axes.set_xlabel(", ".join(key for key in sweep.search if key != sweep.across), **STYLE)
    axes.set_title(sweep.metric, loc="left", **STYLE)
    add_legend(axes, fontsize=8, labelcolor=INK)
    tidy(axes)
    return png(figure)
