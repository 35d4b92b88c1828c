"""Sphinx configuration: `sphinx-build docs docs/_build` writes the site."""

import pyro_vae

project = "pyro_vae"
release = pyro_vae.__version__
extensions = ["sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
apidoc_modules = [
    {
        "path": "../pyro_vae",
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
# A re-exported name is documented once, where it is defined.
autodoc_default_options = {"ignore-module-all": True}
autodoc_typehints = "description"
napoleon_use_ivar = True
exclude_patterns = ["_build"]
html_theme = "furo"
