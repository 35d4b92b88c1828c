"""Formulas as MathML, which browsers draw themselves: no script, no font, nothing to fetch."""

from __future__ import annotations

import re
from typing import Any

import latex2mathml.converter
from docutils.nodes import SkipNode
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number

# What the converter knows under another name only, and would show letter by letter.
_NAMES = {"{aligned}": "{align*}", r"\lVert": r"\Vert", r"\rVert": r"\Vert", r"\big\{": r"\{", r"\big\}": r"\}"}
_FUNCTION = re.compile(r"\\(log|exp|max|min)\s*(?=[A-Za-z\\])")


def mathml(latex: str, display: str) -> str:
    """The formula with TeX's thin space after the name of a function, as in log p."""
    for name, known in _NAMES.items():
        latex = latex.replace(name, known)
    return latex2mathml.converter.convert(_FUNCTION.sub(r"\\\1\\,", latex), display=display)


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def _block(translator: Any, node: Any) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})</span>')
    translator.body.append(f"{mathml(node.astext(), 'block')}</div>\n")
    raise SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
