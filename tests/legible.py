"""What holds of every figure: letters that can be read, names on the axes, and nothing cut off."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

SMALLEST = 8.0  # points


def faults(figure: Figure) -> list[str]:
    """What a reader would complain of."""
    figure.savefig(io.BytesIO(), format="png")  # which lays it out
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    found = [] if figure.axes else ["no axes"]
    hidden = {
        id(text)
        for axes in figure.axes
        if not axes.axison
        for axis in (axes.xaxis, axes.yaxis)
        for text in axis.findobj(Text)
    }
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_visible() or not text.get_text().strip() or id(text) in hidden:
            continue
        box = text.get_window_extent(renderer)
        if float(text.get_fontsize()) < SMALLEST:
            found.append(f"{text.get_text()!r} of {text.get_fontsize()} points")
        if _is_tick_out_of_view(text, figure):
            continue
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            found.append(f"{text.get_text()!r} cut off")
    for axes in figure.axes:
        if not (axes.lines or axes.patches or axes.images or axes.collections):
            found.append("empty axes")
        named = axes.get_xlabel() or not axes.get_xticks().size or axes.images
        if axes.axison and not named:
            found.append(f"no name of the horizontal axis at {axes.get_title()!r}")
    return found


def _is_tick_out_of_view(text: Text, figure: Figure) -> bool:
    """Whether a text is of a tick beyond the limits, which matplotlib does not draw."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if text in (tick.label1, tick.label2):
                    margin = 1e-6 * (high - low)
                    return not low - margin <= tick.get_loc() <= high + margin
    return False
