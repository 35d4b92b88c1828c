"""Sizes that a reader takes in: functions, methods, state; and the reasons of what is larger."""

from pathlib import Path

import structure

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
MOST_LINES, MOST_METHODS, MOST_ATTRIBUTES = 50, 12, 10
LONGEST_FILE = 400

REASONS = {
    "svi.SVI": "a drop-in for Pyro's class with its methods; a step may end anywhere, and one place undoes it",
    "estimators._Estimator": "scikit-learn has every argument of an estimator as an attribute",
    "estimator.Estimator": "what a bound may define, each a documented method of one line, and Pyro's methods",
    "dataset.Dataset": "the methods of a set, each of a few lines, that users look for on it",
    "parameters.Parameters": "what is registered and what modules hold, by name and by identity, and the averages",
    "folder.RunFolder": "each file of a run is written by a method of its own",
    "by_site.BySite": "asks the gradients of all sites what it is asked, a method of one line each",
    "run.Run": "all that changes in a run, so that all of it can be saved",
    "step.Step": "every kind of tensor that a step reads is a list of its own, compared at every step",
    "compiler.Compiler": "graphs by signature, and what is known of those that were refused",
    "moments.Moments": "sums of products of draws of several orders, each an attribute",
}

LONG_FILES = {
    "svi/svi.py": "one class, the step, and the documentation of its arguments",
}


def test_structure_picture_of_the_modules_is_true() -> None:
    assert f"```mermaid\n{structure.diagram()}\n```" in CONTRIBUTING.read_text(encoding="utf-8")


def test_structure_has_short_functions() -> None:
    every = [function for path in structure.ROOT.rglob("*.py") for function in structure.functions(path)]
    assert {f.name: f.lines for f in every if f.lines > MOST_LINES} == {}


def test_structure_large_classes_have_their_reasons() -> None:
    every = [one for path in structure.ROOT.rglob("*.py") for one in structure.classes(path)]
    large = {one.name for one in every if one.methods > MOST_METHODS or one.attributes > MOST_ATTRIBUTES}
    assert large == set(REASONS)


def test_structure_long_files_have_their_reasons() -> None:
    lines = {
        path.relative_to(structure.ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in structure.ROOT.rglob("*.py")
    }
    assert {name for name, length in lines.items() if length > LONGEST_FILE} <= set(LONG_FILES)
