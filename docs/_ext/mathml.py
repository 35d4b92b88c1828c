"""Formulas as MathML, which browsers draw themselves: no script, no font, nothing to fetch."""

from __future__ import annotations

from typing import Any

import latex2mathml.converter
from docutils.nodes import SkipNode
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number


def _converted(node: Any, display: str) -> str:
    # its names for what it knows under another, and would show as it is
    latex = node.astext().replace("{aligned}", "{align}").replace(r"\lVert", r"\Vert").replace(r"\rVert", r"\Vert")
    return latex2mathml.converter.convert(latex, display=display)


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(_converted(node, "inline"))
    raise SkipNode


def _block(translator: Any, node: Any) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})</span>')
    translator.body.append(f"{_converted(node, 'block')}</div>\n")
    raise SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
