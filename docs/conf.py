"""Sphinx configuration: ``sphinx-build -M html docs docs/_build -W`` writes the site to docs/_build/html."""

from __future__ import annotations

import hashlib
import os
import sys
from importlib import metadata
from pathlib import Path

import pyro_vae

_DOCS = Path(__file__).parent
sys.path.insert(0, str(_DOCS / "_ext"))
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, in a kernel without widgets


def _inputs() -> str:
    """A hash of all that a page's figures depend on beside its own code, by which jupyter-cache tells pages apart."""
    package = Path(pyro_vae.__file__).parent
    found = hashlib.sha256(repr([metadata.version(name) for name in ("torch", "pyro-ppl", "matplotlib")]).encode())
    data = [path for kind in ("csv", "json") for path in _DOCS.glob(f"[!_]*/**/*.{kind}")]
    benchmarks = _DOCS.parent / "benchmarks"
    data += [*benchmarks.glob("*.py"), *benchmarks.glob("results/**/*.json")]
    for path in sorted([*package.rglob("*.py"), *data]):
        found.update(f"{path.name}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


project = "pyro_vae"
author = copyright = "the pyro_vae maintainers"
release = version = pyro_vae.__version__
extensions = [
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "myst_nb",
    "mathml",
    "notebooks",
    "parts",
    "gallery",
]
exclude_patterns = ["_*", "jupyter_execute"]
suppress_warnings = ["ref.python"]  # a family has one name as likelihood, conditional and distribution

apidoc_modules = [
    {
        "path": "../pyro_vae",
        "destination": "api",
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
# A re-exported name is documented once, where it is defined.
autodoc_default_options = {"ignore-module-all": True}
autodoc_typehints = "description"
toc_object_entries = False  # the side bar names modules, the search finds the rest
napoleon_use_ivar = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(_DOCS / "_build" / "cache" / _inputs())
nb_execution_timeout = 600  # seconds a cell
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # with tables, as those of scale and results
nb_output_stderr = "remove-warn"  # a page shows no warning that it does not speak of: with -W it fails the build
notebooks = ["reconstruction_loss", "from_pytorch"]

html_theme = "furo"
html_title = f"pyro_vae {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
html_copy_source = False
html_show_sourcelink = False
