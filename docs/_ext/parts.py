"""Sphinx extension: the pages of ``parts/``, made from the classes of likelihoods, priors and guides.

A page begins with ``parts/<name>.md.in``, and has a section for every class that its module exports: the head of the
class's docstring, what it accepts and makes, and code that trains and draws it, which is executed with the site.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pyro_vae import conditionals, likelihoods, nets, priors, tables

Example = tuple[str, ...]

# What is built, the data it is trained on, and three densities of one element, of parameters as the network makes them.
LIKELIHOODS: dict[str, Example] = {
    "Bernoulli": ("likelihoods.Bernoulli(body, 64)", "bits", "logits=three(-2, 0, 2)"),
    "ContinuousBernoulli": ("likelihoods.ContinuousBernoulli(body, 64)", "grays", "logits=three(-4, 0.5, 4)"),
    "Beta": ("likelihoods.Beta(body, 64)", "inside", "loc=three(-2, 0, 2)"),
    "LogitNormal": ("likelihoods.LogitNormal(body, 64)", "inside", "loc=three(-2, 0, 2)"),
    "Normal": ("likelihoods.Normal(body, 30)", "reals", "loc=three(-2, 0, 2)"),
    "SigmaNormal": ("likelihoods.SigmaNormal(body, 30)", "reals", "loc=three(-2, 0, 2)"),
    "Laplace": ("likelihoods.Laplace(body, 30)", "reals", "loc=three(-2, 0, 2)"),
    "Huber": ("likelihoods.Huber(body, 30)", "reals", "loc=three(-2, 0, 2)"),
    "StudentT": ("likelihoods.StudentT(body, 30)", "reals", "loc=three(-2, 0, 2)"),
    "Standardized": (
        "likelihoods.Standardized(likelihoods.Normal(body, 13), nets.Standardize.of(wine[0]))",
        "wine",
        "",
    ),
    "LogNormal": (
        "likelihoods.LogNormal(body, 13, standardize=nets.Standardize.of(wine[0].log()))",
        "wine",
        "",
    ),
    "Censored": ("likelihoods.Censored(likelihoods.LogNormal(body, 4))", "times", ""),
    "DiscretizedLogistic": (
        "likelihoods.DiscretizedLogistic(body, 64, levels=17)",
        "grays",
        "loc=three(0.1, 0.5, 0.9)",
    ),
    "MixtureOfDiscretizedLogistics": (
        "likelihoods.MixtureOfDiscretizedLogistics(\n    nets.ConvDecoder(2, (1, 8, 8), [16]), (1, 8, 8), levels=17, "
        "num_components=3\n)",
        "images",
        "",
    ),
    "Dequantized": ("likelihoods.Dequantized(likelihoods.Normal(body, 64), levels=17)", "grays", ""),
    "Poisson": ("likelihoods.Poisson(body, 64)", "counts", "logits=three(0, 1, 2)"),
    "NegativeBinomial": ("likelihoods.NegativeBinomial(body, 64)", "counts", "logits=three(0, 1, 2)"),
    "ZeroInflatedPoisson": (
        "likelihoods.ZeroInflatedPoisson(body, 64)",
        "counts",
        "logits=three(1, 1.5, 2), gate_logits=three(0, 0, 0)",
    ),
    "ZeroInflatedNegativeBinomial": (
        "likelihoods.ZeroInflatedNegativeBinomial(body, 64)",
        "counts",
        "logits=three(1, 1.5, 2), gate_logits=three(0, 0, 0)",
    ),
    "Binomial": ("likelihoods.Binomial(body, 64, total_count=16, spacing=1.0)", "counts", "logits=three(-2, 0, 2)"),
    "Multinomial": ("likelihoods.Multinomial(body, 64)", "words", ""),
    "Categorical": ("likelihoods.Categorical(17, body, 64, spacing=1 / 16)", "grays", ""),
    "OneHotCategorical": ("likelihoods.OneHotCategorical(body, 10)", "digits", ""),
    "Ordinal": ("likelihoods.Ordinal(4, body, 64)", "grades", "location=three(-2, 0, 2)"),
    "Mixed": (
        "likelihoods.Mixed(\n    body,\n    parts=[\n        (slice(0, 13), likelihoods.StudentT),\n"
        "        (13, partial(likelihoods.Categorical, 3)),\n    ],\n)",
        "mixed",
        "",
    ),
    "Tabular": ("likelihoods.Tabular.for_data(table, body)", "table", ""),
    "MissingAtRandom": ("likelihoods.MissingAtRandom(likelihoods.Normal(body, 30))", "holes", ""),
}

# What is built, a guide that suits it, the options of the bound, and the dims that are drawn.
PRIORS: dict[str, Example] = {
    "StandardNormal": ("priors.StandardNormal(2)", "conditionals.DiagonalNormal(encoder, 2)", ""),
    "Normal": ("priors.Normal(2)", "conditionals.DiagonalNormal(encoder, 2)", ""),
    "MixtureOfNormals": (
        "priors.MixtureOfNormals(2, num_components=10)",
        "conditionals.DiagonalNormal(encoder, 2)",
        "",
    ),
    "VampPrior": ("priors.VampPrior(pseudo_inputs=train[:50])", "conditionals.DiagonalNormal(encoder, 2)", ""),
    "RealNVP": ("priors.RealNVP(2, hidden=[32])", "conditionals.DiagonalNormal(encoder, 2)", ""),
    "NeuralSpline": (
        "priors.NeuralSpline(2, num_layers=2, hidden=[32])",
        "conditionals.DiagonalNormal(encoder, 2)",
        "",
    ),
    "MaskedAutoregressive": (
        "priors.MaskedAutoregressive(2, hidden=[32])",
        "conditionals.DiagonalNormal(encoder, 2)",
        "",
    ),
    "Laplace": ("priors.Laplace(2)", "conditionals.DiagonalNormal(encoder, 2)", ""),
    "Dirichlet": ("priors.Dirichlet(3, concentration=0.7)", "conditionals.Dirichlet(encoder, 3)", ""),
    "LogisticNormal": ("priors.LogisticNormal(3)", "conditionals.LogisticNormal(encoder, 3)", ""),
    "HypersphericalUniform": ("priors.HypersphericalUniform(2)", "conditionals.VonMisesFisher(encoder, 2)", ""),
    "Bernoulli": ("priors.Bernoulli(8)", "conditionals.Bernoulli(encoder, 8)", '8, gradient="vimco"'),
    "OneHotCategorical": (
        "priors.OneHotCategorical(10)",
        "conditionals.OneHotCategorical(encoder, 10)",
        'gradient="enumerate"',
    ),
    "RelaxedBernoulli": ("priors.RelaxedBernoulli(8)", "conditionals.RelaxedBernoulli(encoder, 8)", ""),
    "RelaxedOneHotCategorical": (
        "priors.RelaxedOneHotCategorical(10)",
        "conditionals.RelaxedOneHotCategorical(encoder, 10)",
        "8",
    ),
}

GUIDES: dict[str, Example] = {
    "DiagonalNormal": ("conditionals.DiagonalNormal(encoder, 2)", "priors.StandardNormal(2)", ""),
    "LowRankNormal": ("conditionals.LowRankNormal(encoder, 2, rank=1)", "priors.StandardNormal(2)", ""),
    "FullRankNormal": ("conditionals.FullRankNormal(encoder, 2)", "priors.StandardNormal(2)", ""),
    "MixtureOfNormals": (
        "conditionals.MixtureOfNormals(encoder, 2, num_components=2)",
        "priors.StandardNormal(2)",
        "",
    ),
    "InverseAutoregressiveFlow": (
        "conditionals.InverseAutoregressiveFlow(encoder, 2, hidden=[32])",
        "priors.StandardNormal(2)",
        "",
    ),
    "RealNVP": ("conditionals.RealNVP(encoder, 2, hidden=[32])", "priors.StandardNormal(2)", ""),
    "NeuralSpline": (
        "conditionals.NeuralSpline(encoder, 2, num_layers=2, hidden=[32])",
        "priors.StandardNormal(2)",
        "",
    ),
    "Householder": ("conditionals.Householder(encoder, 2)", "priors.StandardNormal(2)", ""),
    "Planar": ("conditionals.Planar(encoder, 2)", "priors.StandardNormal(2)", ""),
    "Sylvester": ("conditionals.Sylvester(encoder, 2, num_layers=2)", "priors.StandardNormal(2)", ""),
    "VonMisesFisher": ("conditionals.VonMisesFisher(encoder, 2)", "priors.HypersphericalUniform(2)", ""),
    "Dirichlet": ("conditionals.Dirichlet(encoder, 3)", "priors.Dirichlet(3, concentration=0.7)", ""),
    "LogisticNormal": ("conditionals.LogisticNormal(encoder, 3)", "priors.LogisticNormal(3)", ""),
    "Bernoulli": ("conditionals.Bernoulli(encoder, 8)", "priors.Bernoulli(8)", '8, gradient="vimco"'),
    "OneHotCategorical": (
        "conditionals.OneHotCategorical(encoder, 10)",
        "priors.OneHotCategorical(10)",
        'gradient="enumerate"',
    ),
    "RelaxedBernoulli": ("conditionals.RelaxedBernoulli(encoder, 8)", "priors.RelaxedBernoulli(8)", ""),
    "RelaxedOneHotCategorical": (
        "conditionals.RelaxedOneHotCategorical(encoder, 10)",
        "priors.RelaxedOneHotCategorical(10)",
        "8",
    ),
}


def summary(part: type) -> str:
    """The docstring up to its arguments, as reStructuredText."""
    text = inspect.getdoc(part) or ""
    for heading in ("Args:", "Raises:", "References:", "Example:"):
        text = text.split(f"\n{heading}\n")[0]
    return text.strip()


def section(part: type, facts: list[str], code: str) -> str:
    where = f"{part.__module__}.{part.__qualname__}"
    lines = [f"## {part.__name__}", f"````{{eval-rst}}\n.. currentmodule:: {part.__module__}\n\n{summary(part)}\n````"]
    lines.append("\n".join([*facts, f"- reference: {{py:class}}`~{where}`"]))
    lines.append(f"```{{code-cell}} python\n{code}\n```")
    return "\n\n".join(lines) + "\n"


def built(code: str) -> Any:
    """What the code of an example builds, for what it says of itself."""
    table = tables.Table([tables.Column("a", "real"), tables.Column("b", "category", values=("x", "y"))])
    names: dict[str, Any] = {
        "body": nets.MLP(2, [4]),
        "encoder": nets.MLP(64, [4]),
        "train": torch.ones(60, 64),
        "wine": [torch.rand(5, 13) + 1],
        "table": table,
    }
    exec("from functools import partial\nfrom pyro_vae import *\n", names)
    names |= {"likelihoods": likelihoods, "priors": priors, "conditionals": conditionals, "nets": nets}
    return eval(code.replace("Tabular.for_data(table, body)", "Tabular(body, table)"), names)


def likelihood_section(name: str, example: Example) -> str:
    code, data, parameters = example
    likelihood = built(code)
    makes = ", ".join(f"`{key}` {tuple(shape)}" for key, shape in likelihood.parameter_shapes().items())
    facts = [f"- data: {likelihood.accepts}", f"- the network makes: {makes}"]
    if likelihood.contexts:
        facts.append(f"- contexts: {', '.join(f'`{context}`' for context in likelihood.contexts)}")
    body = "" if "ConvDecoder" in code else "body = nets.MLP(2, [64])\n"
    lines = f'{body}likelihood = {code}\nvae = trained(likelihood, "{data}")\n'
    if not parameters:
        return section(getattr(likelihoods, name), facts, f'{lines}figure(vae, "{data}")')
    one = code.replace("body, 64", "nets.MLP(2, []), 1").replace("body, 30", "nets.MLP(2, []), 1")
    return section(
        getattr(likelihoods, name),
        facts,
        f'{lines}one = {one}\nfigure(vae, "{data}", one.distribution({parameters}))',
    )


def prior_section(name: str, example: Example) -> str:
    prior, guide, loss = example
    facts = [f"- latents: {support(built(guide).support)}", f"- a guide that suits it: `{guide}`"]
    options = f", {loss}" if loss else ""
    code = f"encoder = nets.MLP(64, [64])\nvae = trained({prior}, {guide}{options})\nfigure(vae)"
    return section(getattr(priors, name), facts, code)


def guide_section(name: str, example: Example) -> str:
    guide, prior, loss = example
    family = built(guide)
    makes = ", ".join(f"`{key}` {tuple(shape)}" for key, shape in family.parameter_shapes().items())
    facts = [
        f"- latents: {support(family.support)}",
        f"- the network makes: {makes}",
        f"- a prior that suits it: `{prior}`",
    ]
    options = f", {loss}" if loss else ""
    code = f"encoder = nets.MLP(64, [64])\nvae = trained({prior}, {guide}{options})\nfigure(vae)"
    return section(getattr(conditionals, name), facts, code)


def support(constraint: Any) -> str:
    return f"`{constraint}`"


def pages() -> dict[str, str]:
    """The pages by the name of their file."""
    made: dict[str, str] = {}
    kinds: list[tuple[str, ModuleType, dict[str, Example], Callable[[str, Example], str]]] = [
        ("likelihoods", likelihoods, LIKELIHOODS, likelihood_section),
        ("priors", priors, PRIORS, prior_section),
        ("guides", conditionals, GUIDES, guide_section),
    ]
    for name, module, examples, make in kinds:
        differ = set(module.__all__) - {"Likelihood", "Prior", "Conditional"} ^ examples.keys()
        if differ:
            raise ValueError(
                f"docs/_ext/parts.py: expected an example of each of {module.__name__}; {sorted(differ)} differ."
            )
        head = Path(__file__).parents[1] / "parts" / f"{name}.md.in"
        made[f"{name}.md"] = "\n".join([head.read_text(encoding="utf-8"), *(make(*item) for item in examples.items())])
    return made


def write(folder: Path) -> None:
    """Writes the pages that have changed."""
    for name, text in pages().items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir) / "parts"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
