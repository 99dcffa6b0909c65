"""What all plots share: style, PNG export, and names from users (classes, runs, columns) shown exactly as written."""

import io
import math
import warnings

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

# matplotlib's own font has no Chinese, Japanese or Korean; each character is taken from the first of these that has it.
FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS",
    "Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "Yu Gothic", "Hiragino Sans",
    "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo",
)  # fmt: skip


def families() -> list[str]:
    """matplotlib's own font and those of FAMILIES that this machine has."""
    here = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FAMILIES if name in here)]


PLAIN = {"parse_math": False, "family": families()}  # for matplotlib's Text: a "$" in a name starts no formula
INK, FAINT, BLUE, ORANGE, GREEN = "#24292f", "#d0d7de", "#2563a8", "#d9730d", "#3c8c5a"
MOST_INSIDE = 7  # longest legend drawn inside the axes
MARK, LETTER, ROW = 0.55, 0.065, 0.18  # inches: a line's sample, a character, a row
STYLE = {"size": 9, "color": INK} | PLAIN


def tidy(axes: Axes):
    """The common style: a faint grid, no frame."""
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8, colors=INK, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set(size=8, color=INK)  # the "1e-3" above the axis, which tick_params leaves large
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def add_legend(axes: Axes, **settings):
    """A legend whose labels are names from users, shown as written; a long one goes below the axes, off the lines."""
    lines, names = axes.get_legend_handles_labels()
    if len(names) <= MOST_INSIDE:
        legend = axes.legend(frameon=False, **settings)
    else:
        figure, wide = axes.figure, MARK + LETTER * max(map(len, names))
        columns = max(int(axes.figure.get_figwidth() / wide), 1)
        figure.set_figheight(figure.get_figheight() + ROW * math.ceil(len(names) / columns))
        legend = figure.legend(lines, names, loc="outside lower left", ncols=columns, frameon=False, **settings)
    for text in legend.get_texts():
        text.set(**PLAIN)


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as the bytes of a PNG file; warns once about all characters that no installed font has."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:  # matplotlib warns about each character
        figure.savefig(buffer, format="png", dpi=dpi)
    if any("missing from font" in str(warning.message) for warning in caught):
        text = "a picture has boxes for letters that no font here has; install one with them, such as Noto Sans CJK."
        warnings.warn(text, stacklevel=2)
    return buffer.getvalue()
