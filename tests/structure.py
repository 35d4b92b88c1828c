"""Sizes of files, functions and classes, and the modules' imports: ``python tests/structure.py`` prints them."""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1] / "pyro_vae"
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Function(NamedTuple):
    """A function: its lines of code are those with a token that is neither a comment nor of its docstring."""

    name: str
    lines: int


class Class(NamedTuple):
    """A class: methods it defines, attributes of self it assigns."""

    name: str
    methods: int
    attributes: int


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code."""
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in empty:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | FunctionNode) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return lines


def functions(path: Path) -> Iterator[Function]:
    """All functions and methods of a file; those within others count as their lines too."""
    source = path.read_text(encoding="utf-8")
    code = code_lines(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FunctionNode):
            last = node.end_lineno or node.lineno
            yield Function(f"{path.stem}.{node.name}", len(code & set(range(node.lineno, last + 1))))


def classes(path: Path) -> Iterator[Class]:
    """All classes of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            methods = [child for child in node.body if isinstance(child, FunctionNode)]
            assigned = {
                target.attr
                for child in ast.walk(node)
                for target in ast.walk(child)
                if isinstance(target, ast.Attribute)
                and isinstance(target.ctx, ast.Store)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            }
            yield Class(f"{path.stem}.{node.name}", len(methods), len(assigned))


def packages() -> dict[str, set[str]]:
    """What each module or subpackage of the package imports of the others, but for what everything imports."""
    graph: dict[str, set[str]] = {}
    names = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("pyro_vae"):
                continue
            inner = (node.module or "").split(".")[1:]
            found = {inner[0]} if inner else {alias.name for alias in node.names}
            graph.setdefault(own, set()).update((found & names) - {own, "checks", "internals"})
    return {name: imported for name, imported in graph.items() if name != "__init__"}


def diagram() -> str:
    """The imports as a Mermaid diagram, without those that follow from others."""
    graph = packages()

    def reached(name: str) -> set[str]:
        direct = graph.get(name, set())
        return direct.union(*map(reached, direct))

    lines = ["graph BT"]
    for name in sorted(graph):
        direct = graph[name]
        indirect = set().union(*map(reached, direct)) if direct else set()
        lines += [f"    {imported} --> {name}" for imported in sorted(direct - indirect)]
    return "\n".join(lines)


def main() -> None:
    files = sorted(ROOT.rglob("*.py"))
    lines = {path.stem: len(code_lines(path.read_text(encoding="utf-8"))) for path in files if path.stem != "__init__"}
    every_function = [function for path in files for function in functions(path)]
    every_class = [one for path in files for one in classes(path)]
    sizes = [function.lines for function in every_function]
    tenth = statistics.quantiles(sizes, n=10)[-1]
    print(f"{len(files)} files; longest, in lines of code:", ", ".join(f"{name} {n}" for name, n in _largest(lines)))
    print(
        f"{len(sizes)} functions: median {statistics.median(sizes):.0f} lines, nine in ten under {tenth:.0f}; longest:"
    )
    print("   ", ", ".join(f"{name} {n}" for name, n in _largest(dict(every_function))))
    print(f"{len(every_class)} classes; most methods, and most attributes:")
    for sizes_of in ({c.name: c.methods for c in every_class}, {c.name: c.attributes for c in every_class}):
        print("   ", ", ".join(f"{name} {n}" for name, n in _largest(sizes_of)))
    print(diagram())


def _largest(sizes: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])[:8]


if __name__ == "__main__":
    main()
