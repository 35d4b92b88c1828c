"""What must be known of programs before they are run for several particles or per datum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Latent:
    """What gradients a latent of the guide may have.

    Attributes:
        distribution: its name.
        reparameterized: whether its draws can be differentiated.
        enumerable: whether it can list its support.
        num_samples: how many draws of it alone its site asks of ``pyro.infer.TraceEnum_ELBO``; mostly None.
    """

    distribution: str
    reparameterized: bool
    enumerable: bool
    num_samples: int | None

    @staticmethod
    def of(site: Any) -> Latent:
        """That of a site."""
        fn = site["fn"]
        return Latent(describe(fn), fn.has_rsample, fn.has_enumerate_support, site["infer"].get("num_samples"))

    def check_draws(self, name: str) -> None:
        """Raises for a site to be summed over that asks for draws in place of its support.

        Args:
            name: of the site.

        Raises:
            ValueError: a sum over the draws would be a wrong number.
        """
        if self.num_samples is not None:
            raise ValueError(
                f"Site {name!r}: expected a sum over the support, or one draw; got infer num_samples="
                f"{self.num_samples}. Leave it out and use num_particles, or pyro.infer.TraceEnum_ELBO, which has it."
            )


@dataclass(frozen=True)
class Structure:
    """What must be known of a program before it is run for several particles or per datum.

    Attributes:
        nesting: number of nested plates.
        enumerated: latents of the model that are not in the guide and are marked for parallel enumeration.
        outside: for every plate, a site that is not inside it; None for a plate that encloses all sites.
        guide: the guide's latents.
    """

    nesting: int
    enumerated: frozenset[str]
    outside: dict[str, str | None]
    guide: dict[str, Latent]


class PlateError(ValueError):
    """There is no plate over the data, or a site is outside of it."""


class UndrawnLatentError(ValueError):
    """The model has latents that the guide does not draw.

    Args:
        names: their sites.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__(
            f"Guide: expected a site for every latent of the model; got none for {names}. Sample them in the guide "
            "under the same names, observe them in the model with obs=..., or mark discrete ones with "
            'infer={"enumerate": "parallel"} to have them summed out.'
        )


def check_programs(subject: str, model: Any, guide: Any) -> None:
    """Raises for what cannot be run.

    Raises:
        TypeError: naming it.
    """
    for name, program in (("model", model), ("guide", guide)):
        if isinstance(program, type) or not callable(program):
            raise TypeError(
                f"{subject}: expected {name} a Pyro program; got {type(program).__name__}. Give a module or a function."
            )


def describe(distribution: Any) -> str:
    """The name of a distribution, beneath the wrappers that only reshape it."""
    while hasattr(distribution, "base_dist") and type(distribution).__name__ in ("Independent", "ExpandedDistribution"):
        distribution = distribution.base_dist
    return type(distribution).__name__
