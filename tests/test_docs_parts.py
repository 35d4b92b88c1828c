"""The generated pages of the site, and the data that its pages read."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from test_docs import extension

from pyro_vae import conditionals, likelihoods, priors

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    made: dict[str, str] = extension("parts").pages()
    return made


@pytest.mark.parametrize(
    ("page", "module"), [("likelihoods.md", likelihoods), ("priors.md", priors), ("guides.md", conditionals)]
)
def test_docs_parts_have_a_section_for_every_class(pages: dict[str, str], page: str, module: ModuleType) -> None:
    sections = re.findall(r"^## (.*)$", pages[page], re.MULTILINE)
    assert sorted(sections) == sorted(set(module.__all__) - {"Likelihood", "Prior", "Conditional"})
    for section in pages[page].split("\n## ")[1:]:
        assert "{eval-rst}" in section, section[:40]
        assert "trained(" in section, section[:40]
        assert "figure(" in section, section[:40]


def test_docs_cells_are_python(pages: dict[str, str]) -> None:
    guides = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "guides").glob("*.md")}
    for name, text in {**guides, **pages}.items():
        cells = re.findall(r"^```\{code-cell\}.*\n((?:(?!```).*\n)*)```$", text, re.MULTILINE)
        assert cells, name
        for cell in cells:
            ast.parse(re.sub(r"^[:%!].*\n", "", cell, flags=re.MULTILINE), name)


def test_docs_gallery_has_every_example() -> None:
    gallery = extension("gallery")
    page = gallery.page()
    for path in gallery.examples():
        assert f"## {path.stem}\n" in page
        assert f"{{literalinclude}} ../examples/{path.name}" in page


@pytest.mark.parametrize("path", sorted((DOCS.parent / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_docs_gallery_shows_what_each_example_prints_now(path: Path) -> None:
    """After a change of an example: python docs/_ext/gallery.py."""
    gallery = extension("gallery")
    kept, *lines = (gallery.OUTPUTS / f"{path.stem}.txt").read_text(encoding="utf-8").splitlines()
    assert kept == gallery.digest(path)
    assert lines
    assert (gallery.OUTPUTS / f"{path.stem}.png").is_file() == bool(gallery.RUNS[path.stem][1])


def test_docs_estimators_are_measured_with_date_and_version() -> None:
    about = json.loads((DOCS / "data" / "estimators.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", about["made"])
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", about["version"])
    for comparison in about["comparisons"]:
        assert comparison["rows"], comparison["model"]
