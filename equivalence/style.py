"""How every figure looks: one palette, one typography, labels at the end of their lines.

Figures are built from `matplotlib.figure.Figure` and drawn inside `rc_context`, so that neither the
backend nor the settings of a program that imports this package are touched.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..mixers import registry

INK, GREY, FAINT = "#1b1f24", "#6a737d", "#dfe3e8"

# Paul Tol's "bright" and "vibrant" hues, darkened where needed for thin lines on white: distinct under
# the common colour deficiencies. Softmax attention, the yardstick, is ink.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#aa3377", "#b8860b", "#5a4fcf", "#4d4d4d", "#117733")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))

RC: dict[str, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "svg.hashsalt": "mixerzoo",  # the same figure is the same file
}


class Drawn(NamedTuple):
    """A finished figure and the data that it shows."""

    name: str
    title: str  # the finding, computed from the data
    caption: str
    data: dict[str, Any]
    figure: Figure


@contextmanager
def style() -> Iterator[None]:
    """The settings above, for the length of a with block."""
    settings: Any = RC  # newer stubs list every key as a literal
    with matplotlib.rc_context(settings):
        yield


def colour(name: str) -> str:
    """The colour of a mixer: that of its family."""
    families = list(dict.fromkeys(entry.family for entry in registry.REGISTRY.values()))
    family = registry.REGISTRY[name].family
    if "softmax" in family:
        return INK
    others = [f for f in families if "softmax" not in f]
    return PALETTE[others.index(family) % len(PALETTE)]


def dashes(name: str) -> Any:
    """The line style of a mixer: tells apart the members of a family."""
    family = registry.REGISTRY[name].family
    members = [n for n, entry in registry.REGISTRY.items() if entry.family == family]
    return DASHES[members.index(name) % len(DASHES)]


TITLE_LINE, SUBTITLE_LINE = 0.245, 0.165  # inches


def _wrap(title: str, subtitle: str, width: float) -> tuple[list[str], list[str]]:
    return textwrap.wrap(title, int(width * 9.2)), textwrap.wrap(subtitle, int(width * 13.0))


def headroom(title: str, subtitle: str, width: float) -> float:
    """Inches that the headline takes when it may be `width` inches wide, with some air below."""
    bold, plain = _wrap(title, subtitle, width)
    return 0.18 + TITLE_LINE * len(bold) + 0.06 + SUBTITLE_LINE * len(plain) + 0.2


def headline(figure: Figure, title: str, subtitle: str, left: float) -> None:
    """The finding in bold and what is shown below it, flush with the left edge of the axes (inches)."""
    width, height = figure.get_size_inches()
    bold, plain = _wrap(title, subtitle, width - left)
    x, y = left / width, 1 - 0.18 / height
    figure.text(x, y, powers("\n".join(bold), bold=True), weight="bold", size=13, va="top")
    y -= (TITLE_LINE * len(bold) + 0.06) / height
    figure.text(x, y, "\n".join(plain), color=GREY, size=9, va="top")


def framed(
    title: str,
    subtitle: str,
    left: float,
    right: float,
    height: float,
    width: float = 9.6,
    bottom: float = 0.6,
) -> tuple[Figure, Axes]:
    """A figure of one pair of axes below its headline. All in inches; `height` is that of the axes."""
    top = headroom(title, subtitle, width - left)
    whole = top + height + bottom
    figure = Figure(figsize=(width, whole))
    axes = figure.add_axes((left / width, bottom / whole, (width - left - right) / width, height / whole))
    headline(figure, title, subtitle, left)
    return figure, axes


def powers(text: str, bold: bool = False) -> str:
    """N^1.2 as mathematics."""
    return re.sub(r"N\^([\d.]+\d)", r"$\\mathbf{N^{\1}}$" if bold else r"$\\mathregular{N^{\1}}$", text)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions nearest to the wanted ones that lie `gap` apart, in the same order, inside [low, high].

    Overlapping neighbours are pooled into blocks centred on their mean, as in isotonic regression.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # [sum of (wanted - rank·gap), count]
    for rank, i in enumerate(order):
        blocks.append([wanted[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    ceiling = high - (len(wanted) - 1) * gap
    result, rank = [0.0] * len(wanted), 0
    for total, count in blocks:
        base = max(min(total / count, ceiling), low)
        for _ in range(int(count)):
            result[order[rank]] = base + rank * gap
            rank += 1
    return result


def label_ends(axes: Axes, ends: Iterable[tuple[float, float, str, str]], size: float = 9) -> None:
    """Direct labels right of the axes, one for each (x, y, text, colour) end of a line, never overlapping.

    Call it when the limits of the axes are final.
    """
    ends = list(ends)
    if not ends:
        return
    figure: Any = axes.figure
    to_axes = axes.transData + axes.transAxes.inverted()
    height = axes.get_window_extent().height / figure.dpi * 72  # points
    points = [to_axes.transform((x, y)) for x, y, _, _ in ends]
    ys = spread([float(p[1]) for p in points], 1.35 * size / height, 0.0, 1.0)
    for (_, _, text, tint), (px, py), y in zip(ends, points, ys, strict=True):
        axes.annotate(
            text,
            xy=(px, py),
            xytext=(1.045, y),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=tint,
            size=size,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": tint,
                "lw": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),  # from the middle of the text's left edge
            },
        )


def save(drawn: Drawn, directory: Path) -> list[Path]:
    """NAME.svg, NAME.png and the data, NAME.json."""
    directory.mkdir(parents=True, exist_ok=True)
    svg, png, data = (directory / f"{drawn.name}.{kind}" for kind in ("svg", "png", "json"))
    with style():
        drawn.figure.savefig(svg, metadata={"Date": None})
        drawn.figure.savefig(png, dpi=150)
    content = {"figure": drawn.name, "title": drawn.title, "caption": drawn.caption, **drawn.data}
    data.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return [svg, png, data]
