"""How figures look: colors that the color-blind tell apart, each with a marker and a line of its own; sizes for print.

No setting of matplotlib is changed. Its own sizes of letters are 10 points and more, and nothing here is under 8.

References:
    Okabe, Ito, "Color universal design", 2008, https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7B00")
"""Okabe's and Ito's, the yellow darkened, which is not seen on white; blue first, for what is well."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
LINES = ("-", "--", "-.", ":")
FAULT = COLORS[1]
SMALL = 8.0  # points
WIDTH = 5.5  # inches: letters of 9 points are then 8 pixels high on a phone of 400


def cycle(place: int) -> dict[str, Any]:
    """Color, marker and line of the entry at a place; 40 entries differ in one of them at least.

    Example:
        >>> cycle(1)
        {'color': '#D55E00', 'marker': 's', 'linestyle': '--'}
    """
    return {
        "color": COLORS[place % len(COLORS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
    }


def panels(number: int, columns: int = 2, *, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a page with so many axes in rows; ``height`` is that of a row, in inches."""
    columns = min(number, columns)
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(grid[divmod(place, columns)]) for place in range(number)]


def ticks_at(axis: Axis, values: Iterable[float]) -> None:
    """Ticks of an axis at some values and at no others, as plain numbers."""
    axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_PLAIN)


def plain_log(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers: 1, 2 and 5 of each decade of a few, powers of ten of many."""
    low, high = axis.get_view_interval()
    few = high / low < 30
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=6))
    axis.set_minor_formatter(NullFormatter())
    if few:
        axis.set_major_formatter(_PLAIN)


def whole_ticks(axis: Axis) -> None:
    """Ticks of an axis at whole numbers alone."""
    axis.set_major_locator(MaxNLocator("auto", integer=True))


_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
