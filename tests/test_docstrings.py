"""Docstrings name every argument of the constructors, and every letter of the shapes that they speak of."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pyro_vae

ROOT = Path(pyro_vae.__file__).parent
MODULES = [
    importlib.import_module(f"pyro_vae.{path.stem}")
    for path in sorted(ROOT.iterdir())
    if path.suffix == ".py" or (path / "__init__.py").is_file()
]
SHAPE = re.compile(r"(?<![\w`])\((\\*\*?\w+|\d+|\.\.\.)(, (\\*\*?\w+|\d+|\.\.\.))*,?\)")


def public_classes(module: ModuleType) -> Iterator[type]:
    """Those of ``__all__``, or where there is none, those that the module defines."""
    own = [n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", own):
        if inspect.isclass(value := getattr(module, name)):
            yield value


def ours(cls: type) -> bool:
    """Whether the constructor is this package's, as those of distributions that subclass Pyro's are not."""
    constructor = inspect.getattr_static(cls, "__init__")
    return issubclass(cls, tuple) or getattr(constructor, "__module__", "").startswith("pyro_vae")


CLASSES = sorted({cls for module in MODULES for cls in public_classes(module) if ours(cls)}, key=str)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_class_docstrings_name_every_argument_of_the_constructor(cls: type) -> None:
    arguments = set(inspect.signature(cls).parameters) - {"validate_args"}  # which torch explains
    assert arguments <= set(re.findall(r"^    (\w+):", inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE))


def unnamed(tree: ast.AST, legend: str = "") -> Iterator[tuple[str, set[str]]]:
    """Docstrings with shapes of two letters or more, and the letters that no legend about them names.

    A legend is a paragraph "Shapes: N data, K particles." of the docstring itself, of its class or of its module.
    """
    if isinstance(tree, ast.Module | ast.ClassDef | ast.FunctionDef):
        text = ast.get_docstring(tree) or ""
        legend += "".join(re.findall(r"^Shapes: .*?(?:\n\n|$)", text, re.MULTILINE | re.DOTALL))
        letters = {letter for shape in SHAPE.finditer(text) for letter in re.findall(r"\b[A-Z]\b", shape[0])}
        left = letters - set(re.findall(r"\b[A-Z]\b", legend))
        if len(letters) > 1 and left:
            yield getattr(tree, "name", "the module"), left
    for child in ast.iter_child_nodes(tree):
        yield from unnamed(child, legend)


@pytest.mark.parametrize("path", sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py")), ids=str)
def test_shapes_of_several_letters_have_a_legend(path: Path) -> None:
    assert dict(unnamed(ast.parse((ROOT / path).read_text(encoding="utf-8")))) == {}


def test_unnamed_sees_a_letter_without_legend() -> None:
    source = (
        '"""Sums.\n\nShapes: N data.\n"""\ndef f():\n    """(K, N) to (N,)."""\ndef g():\n    """F(K, N) of (N,)."""'
    )
    assert dict(unnamed(ast.parse(source))) == {"f": {"K"}}
