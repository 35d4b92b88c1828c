"""The order in which a program's densities are pushed and popped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.models import VAE, HierarchicalVAE
from pyro_vae.models.hierarchical import BottomUpGuide

Move = tuple[str, str]
"""A density, "q" of the guide or "p" of the model, and a site. The sender pops a q and pushes a p, in this order; the
receiver goes through the moves backwards and does the reverse."""


class Moves:
    """The densities of a program and their order.

    Args:
        program: of which class others are refused.

    Raises:
        TypeError: no VAE or HierarchicalVAE.
    """

    def __init__(self, program: Any) -> None:
        if not isinstance(program, VAE | HierarchicalVAE):
            raise TypeError(
                f"coding: expected a VAE or a HierarchicalVAE; got {type(program).__name__}. Contexts and labels would "
                "have to be sent too: give their model as one of these."
            )
        self.program = program
        sites = [*program.latents]
        drawn = [("q", site) for site in sites]
        given = [("p", site) for site in ("x", *sites)]  # each given the next
        if isinstance(program, VAE) or isinstance(program.guide, BottomUpGuide):
            self.order = [move for pair in zip(drawn, given, strict=False) for move in pair] + given[-1:]
        else:
            self.order = drawn[::-1] + given

    def part(self, move: Move) -> nn.Module:
        """The prior, conditional or likelihood of a move."""
        kind, site = move
        program, place = self.program, self._place(site)
        if site == "x":
            return program.likelihood
        if kind == "p" and site == program.latents[-1]:
            return program.prior
        if isinstance(program, VAE):
            return program.posterior
        return program.guide.parts[place] if kind == "q" else program.model.conditionals[place]

    def density(self, move: Move, values: Mapping[str, Tensor], size: int) -> TorchDistribution:
        """The density of a move given the values that it depends on.

        Args:
            move: the move.
            values: by site; of those above and below, which both sides have when the move comes.
            size: number of data.
        """
        kind, site = move
        part: Any = self.part(move)
        sites = ("x", *self.program.latents)
        if kind == "p":
            above = sites[sites.index(site) + 1 :][:1]
            return part(values[above[0]]) if above else part().expand([size])
        if isinstance(self.program, VAE) or isinstance(self.program.guide, BottomUpGuide):
            return part(values[sites[sites.index(site) - 1]])
        found: dict[str, TorchDistribution] = {}

        def draw(name: str, distribution: TorchDistribution) -> Tensor:
            found[name] = distribution
            return values.get(name, distribution.mean)

        self.program.guide.infer(values["x"], draw)
        return found[site]

    def _place(self, site: str) -> int:
        return self.program.latents.index(site) if site != "x" else -1
