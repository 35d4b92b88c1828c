"""The code of pages, and what they claim: ``python docs/_ext/cells.py docs/*.md`` lists each claim with its place."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code(page: Path) -> str:
    """The code of a page, each line where it is on the page; options of cells and IPython's commands are left out."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for cell in _CELL.finditer(text):
        first = text[: cell.start(1)].count("\n")
        for place, line in enumerate(cell[1].splitlines(), first):
            lines[place] = "" if line.startswith((":", "%")) else line
    return "\n".join(lines)


def claims(page: Path) -> Iterator[tuple[int, str]]:
    """The line and the words of each assertion of a page.

    Raises:
        ValueError: an assertion without words.
    """
    for node in ast.walk(ast.parse(code(page), str(page))):
        if isinstance(node, ast.Assert):
            if not isinstance(node.msg, ast.Constant):
                raise ValueError(f"{page}:{node.lineno}: expected words in an assertion; got none. Say what it claims.")
            yield node.lineno, str(node.msg.value)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for line, words in sorted(claims(Path(name))):
            print(f"{name}:{line}: {words}")
