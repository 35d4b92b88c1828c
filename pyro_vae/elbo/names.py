"""Gradients by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from pyro_vae.elbo.by_site import BySite, Enumerate
from pyro_vae.elbo.covariance import Covariance
from pyro_vae.elbo.gradients import STL, DReG, Gradient, GradientName, Pathwise
from pyro_vae.elbo.score import OVIS, VIMCO, Score

GradientChoice: TypeAlias = Gradient | GradientName | Mapping[str, Gradient | GradientName]


def gradient_of(gradient: GradientChoice) -> Gradient:
    """The gradient estimator of a name, that of a mapping from sites, or the object itself.

    Raises:
        ValueError: an unknown name; a gradient that no single site can have.
    """
    if isinstance(gradient, Gradient):
        return gradient
    if isinstance(gradient, Mapping):
        return BySite(gradient)

    named: dict[str, type[Gradient]] = {
        "pathwise": Pathwise,
        "stl": STL,
        "dreg": DReG,
        "score": Score,
        "vimco": VIMCO,
        "ovis": OVIS,
        "enumerate": Enumerate,
        "covariance": Covariance,
    }
    if not isinstance(gradient, str) or gradient not in named:
        raise ValueError(
            f"gradient: expected one of {', '.join(named)}, a Gradient, or a mapping from sites to these; got "
            f"{gradient!r}. Use one of these."
        )
    return named[gradient]()
