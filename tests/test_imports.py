"""Imports point one way, and importing the package changes nothing outside it."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "pyro_vae"

# What each module or subpackage of pyro_vae may import of the others. A new one is placed here, in the order of design:
# distributions, nets -> likelihoods | priors | conditionals -> models -> evaluation, lab;
# traces -> elbo -> compilation -> svi -> training. Siblings stay apart.
DENSITIES = {"distributions", "nets"}
FAMILIES = DENSITIES | {"family"}
PARTS = FAMILIES | {"likelihoods", "priors", "conditionals"}
MODELS = PARTS | {"models"}
STEPS = {"traces", "elbo", "graphs", "compilation", "svi", "distributed"}
PUBLIC = MODELS | {
    "losses",
    "elbo",
    "schedules",
    "svi",
    "training",
    "evaluation",
    "lab",
    "data",
    "defaults",
    "plots",
    "checkpoint",
}
MAY_IMPORT: dict[str, set[str]] = {
    "checks": set(),  # everything may import it, and internals
    "internals": set(),
    "recorded": set(),
    "tables": set(),  # everything that meets a table may import it
    "version": set(),
    "distributions": set(),
    "nets": set(),
    "family": DENSITIES,
    "likelihoods": FAMILIES,
    "priors": FAMILIES,
    "conditionals": FAMILIES,
    "losses": DENSITIES | {"likelihoods"},
    "models": PARTS,
    # The objectives and the loop serve any Pyro model and guide, so they know none of ours.
    "distributed": set(),
    "traces": set(),
    "elbo": {"traces"},
    "graphs": set(),
    "compilation": {"traces", "elbo", "graphs"},
    "svi": STEPS,
    "schedules": set(),
    "training": STEPS | {"models", "schedules", "data", "checkpoint"},
    "evaluation": MODELS | {"traces", "elbo", "graphs", "data", "distributed"},
    "style": set(),  # of all figures
    "lab": MODELS | STEPS | {"evaluation", "data", "style"},
    "data": set(),
    "defaults": MODELS | {"data"},
    "plots": MODELS | {"traces", "graphs", "training", "evaluation", "lab", "data", "checkpoint", "style"},
    "trackers": STEPS | {"models", "training", "evaluation"},
    "export": MODELS,
    "coding": MODELS | {"evaluation", "checkpoint"},
    "lightning": STEPS | {"models", "training"},
    "checkpoint": MODELS | {"schedules", "distributed"},
    "sklearn": MODELS | {"traces", "schedules", "training"},
    "testing": PARTS,
    "cli": PUBLIC | {"trackers", "__init__"},
    "__main__": {"cli"},
    "__init__": PUBLIC,
}
# The third-party packages of the modules that are to be usable without the rest.
THIRD_PARTY = {"nets": {"torch"}, "traces": {"pyro", "torch"}, "elbo": {"pyro", "torch"}, "graphs": {"torch"}}


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
        if top == "pyro_vae" and rest[:1] in (["checks"], ["internals"], ["recorded"], ["tables"], ["version"]):
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


def test_imports_give_every_module_its_place() -> None:
    modules = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert modules <= MAY_IMPORT.keys()


@pytest.mark.parametrize("path", sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py")), ids=str)
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_imports(path, (ROOT / path).read_text(encoding="utf-8")) == []


def circles(modules: dict[str, str]) -> list[set[str]]:
    """Groups of modules that import each other, lazily or for types alone too.

    Args:
        modules: the source of each, by its dotted name.
    """
    graph: dict[str, set[str]] = {}
    for module, source in modules.items():
        for name in imports(source, module.rpartition(".")[0]):
            # The module itself, or the one that has the name; the package alone counts as its __init__.
            parent = name.rpartition(".")[0]
            graph.setdefault(module, set()).update({name, parent} & (modules.keys() - {module}))

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        ahead = [start]
        while ahead:
            new = graph.get(ahead.pop(), set()) - found
            found |= new
            ahead += new
        return found

    everywhere = {module: reached(module) for module in modules}
    groups = {frozenset({m, *(n for n in everywhere[m] if m in everywhere[n])}) for m in modules if m in everywhere[m]}
    return [set(group) for group in groups]


def test_imports_make_no_circle() -> None:
    sources = {
        ".".join(["pyro_vae", *path.relative_to(ROOT).with_suffix("").parts]): path.read_text(encoding="utf-8")
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert circles(sources) == []


def test_circles_sees_one() -> None:
    sources = {
        "p.a": "from p.b import f",
        "p.b": "def g():\n    from p import c",
        "p.c": "if TYPE_CHECKING:\n    from p.a import h",
        "p.d": "from p.a import f",
    }
    assert circles(sources) == [{"p.a", "p.b", "p.c"}]


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("nets/mlp.py", "from pyro_vae.models import VAE", ["pyro_vae.models.VAE"]),
        ("nets/mlp.py", "import pyro", ["pyro"]),
        ("nets/mlp.py", "def lazily():\n    from .. import models", ["pyro_vae.models"]),
        ("family.py", "from pyro_vae import nets, __version__", ["pyro_vae.__version__"]),
        ("likelihoods/base.py", "from ..priors import Prior", ["pyro_vae.priors.Prior"]),
        ("likelihoods/__init__.py", "from .base import Likelihood", []),
        ("likelihoods/__init__.py", "from ..models import VAE", ["pyro_vae.models.VAE"]),
        ("elbo/deep/er.py", "from ... import nets\nfrom .. import base", ["pyro_vae.nets"]),
        ("elbo/base.py", "import numpy.linalg\nimport math, torch.nn\nfrom pyro.infer import ELBO", ["numpy.linalg"]),
        ("priors/base.py", "from pyro_vae.testing import check_prior", ["pyro_vae.testing.check_prior"]),
    ],
)
def test_wrong_imports_sees_an_arrow_turned_round(path: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(Path(path), source) == wrong


# What comes with a declared package, and what a contender of a benchmark needs, which is left out where it is missing.
BROUGHT = {"PIL": "torchvision", "joblib": "scikit-learn", "xarray": "arviz"}
CONTENDERS = {"jax", "numpyro"}


def packages(lines: str) -> set[str]:
    """Names of the requirements, a line each."""
    return {re.split(r"[^\w-]", line)[0] for line in lines.split()}


def undeclared(folder: Path, declared: set[str]) -> set[str]:
    """Third-party modules that a folder's files import, of packages that are not ``declared``."""
    distributions = packages_distributions()
    known = sys.stdlib_module_names | {"pyro_vae"} | {path.stem for path in folder.rglob("*.py")}
    names = {name for path in folder.rglob("*.py") for name in imports(path.read_text(encoding="utf-8"), path.stem)}
    tops = {name.split(".")[0] for name in names} - known
    return {top for top in tops if not declared & {BROUGHT.get(top), *distributions.get(top, [top])}}


@pytest.mark.parametrize("folder", ["pyro_vae", "tests", "benchmarks", "examples"])
def test_imports_are_of_packages_that_the_test_environment_has(folder: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT.parent / "setup.cfg", encoding="utf-8")
    declared = packages(setup["options"]["install_requires"] + setup["options.extras_require"]["test"])
    assert undeclared(ROOT.parent / folder, declared) == (CONTENDERS if folder == "benchmarks" else set())


def test_undeclared_sees_an_import_within_a_function(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "import os, torch, two\ndef f():\n    import zstandard.backend\n", encoding="utf-8"
    )
    (tmp_path / "two.py").write_text("from PIL import Image\n", encoding="utf-8")
    assert undeclared(tmp_path, {"torch", "torchvision"}) == {"zstandard"}


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
def test_importing_waits_for_an_estimator_to_import_scikit_learn() -> None:
    script = "import sys, pyro_vae; early = 'sklearn' in sys.modules; pyro_vae.sklearn.VAEDensity; sys.exit(early)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.slow
def test_changed_by_sees_a_changed_global_state() -> None:
    statement = (
        "pyro.set_rng_seed(0); pyro.param('a', torch.zeros(1)); pyro.enable_validation(False); logging.basicConfig()"
    )
    assert changed_by(statement) == ["random state", "parameters in the store", "Pyro settings", "root logger"]
