"""Imports point one way, and importing the package changes nothing outside it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "pyro_vae"

# What each module or subpackage of pyro_vae may import of the others. A new one is placed here, in the order of design:
# distributions, nets -> likelihoods | priors | conditionals -> vae | hierarchical | conditional | semi_supervised
# -> evaluation -> lab -> cli. Siblings stay apart.
DENSITIES = {"distributions", "nets"}
FAMILIES = DENSITIES | {"family"}
PARTS = FAMILIES | {"likelihoods", "priors", "conditionals", "program"}
PROGRAMS = PARTS | {"vae", "hierarchical", "conditional", "semi_supervised"}
PUBLIC = PROGRAMS | {"elbo", "schedules", "svi", "training", "evaluation", "lab", "data", "plots", "checkpoint"}
MAY_IMPORT: dict[str, set[str]] = {
    "checks": set(),  # and everything may import it
    "distributions": set(),
    "nets": set(),
    "family": DENSITIES,
    "likelihoods": FAMILIES,
    "priors": FAMILIES,
    "conditionals": FAMILIES,
    "program": DENSITIES,
    "vae": PARTS,
    "hierarchical": PARTS,
    "conditional": PARTS,
    "semi_supervised": PARTS,
    # The objectives and the loop serve any Pyro model and guide, so they know none of ours.
    "elbo": set(),
    "compilation": {"elbo"},
    "svi": {"elbo", "compilation"},
    "schedules": set(),
    "training": {"program", "elbo", "compilation", "schedules", "svi", "data", "evaluation"},
    "evaluation": PROGRAMS | {"elbo", "compilation"},
    "lab": PROGRAMS | {"elbo", "compilation", "evaluation", "svi", "data"},
    "data": set(),
    "plots": {"training"},
    "checkpoint": set(),
    "testing": PARTS,
    "__init__": PUBLIC,
    "cli": PUBLIC | {"__init__"},
    "__main__": {"cli"},
}
# The third-party packages of the modules that are to be usable without the rest.
THIRD_PARTY = {"nets": {"torch"}, "elbo": {"pyro", "torch"}}


def imports(source: str, package: str) -> Iterator[str]:
    """The absolute dotted names that a module of ``package`` imports, at its top level or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong_imports(path: Path, source: str) -> list[str]:
    """What the file at ``path``, relative to the package, imports against the tables above."""
    importer = path.parts[0].removesuffix(".py")
    wrong = []
    for name in imports(source, ".".join(["pyro_vae", *path.parts[:-1]])):
        top, *rest = name.split(".")
        if top == "pyro_vae" and rest[:1] == ["checks"]:
            continue
        if top == "pyro_vae":
            # A name that is no module, such as __version__, belongs to the package itself.
            imported = rest[0] if rest and rest[0] in MAY_IMPORT else "__init__"
            refused = imported != importer and imported not in MAY_IMPORT[importer]
        else:
            refused = importer in THIRD_PARTY and top not in THIRD_PARTY[importer] | sys.stdlib_module_names
        if refused:
            wrong.append(name)
    return wrong


def test_every_module_has_its_place() -> None:
    modules = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert modules <= MAY_IMPORT.keys()


@pytest.mark.parametrize("path", sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py")), ids=str)
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_imports(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("nets.py", "from pyro_vae.vae import VAE", ["pyro_vae.vae.VAE"]),
        ("nets.py", "import pyro", ["pyro"]),
        ("nets.py", "def lazily():\n    from . import vae", ["pyro_vae.vae"]),
        ("vae.py", "from pyro_vae import nets, __version__", ["pyro_vae.__version__"]),
        ("likelihoods/base.py", "from ..priors import Prior", ["pyro_vae.priors.Prior"]),
        ("likelihoods/__init__.py", "from .base import Likelihood", []),
        ("likelihoods/__init__.py", "from ..vae import VAE", ["pyro_vae.vae.VAE"]),
        ("elbo/deep/er.py", "from ... import nets\nfrom .. import base", ["pyro_vae.nets"]),
        ("elbo/base.py", "import numpy.linalg\nimport math, torch.nn\nfrom pyro.infer import ELBO", ["numpy.linalg"]),
        ("__init__.py", "from . import cli", ["pyro_vae.cli"]),
    ],
)
def test_an_arrow_turned_round_is_seen(path: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(Path(path), source) == wrong


GLOBAL_STATE = """
import logging

import matplotlib
import pyro
import os
import warnings

import torch

def state():
    generators = pyro.util.get_rng_state()
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradient mode": torch.is_grad_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "CUDA context": torch.cuda.is_initialized(),
        "random state": (generators["torch"].tolist(), generators["random"], str(generators["numpy"])),
        "parameters in the store": list(pyro.get_param_store()),
        "Pyro settings": pyro.settings.get(),
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "matplotlib settings": dict(matplotlib.rcParams),
        "environment": dict(os.environ),
        "warning filters": list(map(str, warnings.filters)),
    }

before = state()
{statement}
after = state()
print(*(name for name in before if before[name] != after[name]), sep="\\n", end="")
"""


def changed_by(statement: str) -> list[str]:
    """Names of the global states that a statement changes in a fresh interpreter."""
    script = GLOBAL_STATE.replace("{statement}", statement)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


@pytest.mark.slow
def test_importing_changes_no_global_state() -> None:
    assert changed_by("import pyro_vae") == []


@pytest.mark.slow
def test_importing_waits_for_a_figure_to_import_matplotlib() -> None:
    script = "import sys, pyro_vae; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.slow
def test_a_changed_global_state_is_seen() -> None:
    statement = (
        "pyro.set_rng_seed(0); pyro.param('a', torch.zeros(1)); pyro.enable_validation(False); logging.basicConfig()"
    )
    assert changed_by(statement) == ["random state", "parameters in the store", "Pyro settings", "root logger"]
