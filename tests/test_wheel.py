"""The wheel, from outside of the checkout: it has all of the package, and nothing else, and trains."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pyro_vae

ROOT = Path(__file__).parents[1]
# Not the folder build, whose stale copies would come into the wheel.
SOURCES = ["pyproject.toml", "setup.cfg", "MANIFEST.in", "LICENSE", "README.md"]
FOLDERS = ["pyro_vae", "tests", "benchmarks", "examples", "docs"]
USE = """
import importlib, importlib.metadata, sys
from pathlib import Path

site, *modules = sys.argv[1:]
sys.path.insert(0, site)
for module in modules:
    file = importlib.import_module(module).__file__
    assert Path(site) in Path(file).parents, f"{module} is not from the wheel but from {file}"

from pyro_vae import VAE, conditionals, data, fit, likelihoods, nets, priors

train, _, test = data.load("digits", binarize="dynamic")
vae = VAE(
    prior=priors.StandardNormal(2),
    likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), event_shape=(1, 8, 8)),
    posterior=conditionals.DiagonalNormal(nets.MLP((1, 8, 8), [8]), 2),
)
history = fit(vae, train, steps=2, progress=False)
assert len(history) == 1
print(importlib.metadata.version("pyro-vae"))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="no setuptools: install .[test]"),
]


def modules() -> list[str]:
    """The modules and packages of the checkout."""
    paths = sorted((ROOT / "pyro_vae").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def use(site: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Imports every module and trains two steps, in another folder and with the wheel's folder before all others."""
    command = [sys.executable, "-I", "-c", USE, str(site), *modules()]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])"  # as pip calls it
    built = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_wheel_has_the_package_and_nothing_else(site: Path) -> None:
    version = pyro_vae.__version__
    assert {path.name for path in site.iterdir()} == {"pyro_vae", f"pyro_vae-{version}.dist-info"}
    packed = {path.relative_to(site) for path in (site / "pyro_vae").rglob("*") if path.is_file()}
    sources = [*(ROOT / "pyro_vae").rglob("*.py"), ROOT / "pyro_vae" / "py.typed"]
    assert packed == {path.relative_to(ROOT) for path in sources}


def test_wheel_trains_outside_of_the_checkout(site: Path, tmp_path: Path) -> None:
    used = use(site, tmp_path)
    assert (used.returncode, used.stdout.strip()) == (0, pyro_vae.__version__), used.stderr


def test_wheel_without_a_subpackage_is_seen(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns("lab"))
    used = use(tmp_path / "site", tmp_path)
    assert used.returncode == 1
    assert "pyro_vae.lab" in used.stderr
