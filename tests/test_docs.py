"""The pages of the site: what they claim, whether their code runs, and whether the names in their tables exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import pytest

import pyro_vae

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("reconstruction_loss.md", "from_pytorch.md")
TABLES = ("from_pyro.md", "from_pythae_scvi.md", "glossary.md")


def extension(name: str) -> ModuleType:
    """A module of docs/_ext, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_ext" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cells = extension("cells")


@pytest.mark.parametrize("page", PAGES)
def test_docs_every_section_with_code_claims_something(page: str) -> None:
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    starts = [place for place, line in enumerate(lines, 1) if line.startswith("## ")]
    claimed = [line for line, _ in cells.claims(DOCS / page)]
    for first, last in zip(starts, [*starts[1:], len(lines) + 1], strict=True):
        section = lines[first - 1 : last - 1]
        if page == PAGES[0] and any(line.startswith("```{code-cell}") for line in section):
            assert any(first < line < last for line in claimed), section[0]
    assert len(claimed) == len({words for _, words in cells.claims(DOCS / page)}), "each claim is made once"


def test_docs_first_page_answers_each_part_of_the_question() -> None:
    claimed = " ".join(words for _, words in cells.claims(DOCS / PAGES[0]))
    for part in (
        "z is sampled, and tells several nats about which x",
        "with the z of another digit",
        "the ELBO, is below log p(x)",
        "x is the one observed site",
        "binary cross-entropy is -log p(x|z) of a Bernoulli",
        "half the squared error is -log p(x|z) of a Normal of scale 1",
        "the smaller sigma, the larger the KL",
        "exp(-BCE) is no density of gray values",
        "without the KL, reconstructions are better",
        "without the likelihood, the guide becomes the prior",
        "with z shuffled, z tells nothing",
        "the gradient through the draws has the right mean",
        "a posterior collapse",
    ):
        assert part in claimed, part


@pytest.mark.slow
@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("page", PAGES)
def test_docs_pages_run_and_their_claims_hold(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS)
    names: dict[str, Any] = {"__name__": "page"}
    with mpl.rc_context():
        mpl.use("Agg")
        exec(compile(cells.code(DOCS / page), page, "exec"), names)
    assert names["vae"].likelihood.event_shape == (1, 8, 8)


@pytest.mark.parametrize("page", TABLES)
def test_docs_names_in_tables_exist(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    column = 3 if page == "glossary.md" else 2
    own = "|".join(pyro_vae.__all__) + "|plots"
    found = set()
    for row in rows:
        cell = re.split(r"(?<!\\)\|", row)[column]
        found |= set(re.findall(rf"`(?:pyro_vae\.)?((?:{own})(?:\.\w+)?)", cell))
    assert len(found) > 3
    for name in found:
        value: Any = pyro_vae
        for part in name.split("."):
            value = getattr(value, part)


@pytest.mark.parametrize("page", PAGES)
def test_docs_notebooks_of_pages_are_plain_markdown_and_code(page: str) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("myst_nb")
    made = extension("notebooks").notebook((DOCS / page).read_text(encoding="utf-8"))
    nbformat.validate(made)
    code = "\n".join(cell.source for cell in made.cells if cell.cell_type == "code")
    words = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert code.count("assert ") == len(list(cells.claims(DOCS / page)))
    assert not re.search(r"\{\w+\}`|:::|\]\((?!https?:|#)", words)
