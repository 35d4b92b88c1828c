"""Pages as notebooks for Jupyter and Colab, made at each build: ``{download}`_notebooks/<page>.ipynb` ``."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from sphinx.application import Sphinx

# What MyST has and plain Markdown has not, and what stands for it.
_PLAIN = (
    (re.compile(r"^\([\w-]+\)=\n", re.MULTILINE), ""),  # a label
    (re.compile(r"^:::+\{admonition\} (.*)\n(?::\w+:.*\n)*", re.MULTILINE), r"**\1**\n\n"),
    (re.compile(r"^:::+\{(\w+)\} *\n(?::\w+:.*\n)*", re.MULTILINE), ""),
    (re.compile(r"^:::+ *$", re.MULTILINE), ""),
    (re.compile(r"^.*\{download\}.*$\n*", re.MULTILINE), ""),  # the line about this notebook itself
    (re.compile(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)"), r"\1"),  # a link into the site
)


def notebook(text: str) -> nbformat.NotebookNode:
    """The notebook of a page of MyST Markdown, without outputs."""
    made = read_myst_markdown_notebook(text, config=MdParserConfig(), add_source_map=False)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell in made.cells:
        hidden = {"hide-input", "hide-cell"} & set(cell.metadata.pop("tags", []))
        cell.metadata = nbformat.from_dict({"jupyter": {"source_hidden": True}} if hidden else {})
        if cell.cell_type == "markdown":
            for pattern, plain in _PLAIN:
                cell.source = pattern.sub(plain, cell.source)
    return made


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "_notebooks"
    folder.mkdir(exist_ok=True)
    for page in app.config.notebooks:
        text = (Path(app.srcdir) / f"{page}.md").read_text(encoding="utf-8")
        nbformat.write(notebook(text), folder / f"{page}.ipynb")


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes the notebooks before pages are read, so that their links are checked."""
    app.add_config_value("notebooks", [], "env", [list])
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
