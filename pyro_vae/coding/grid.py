"""Normal latents on a grid, so that they have masses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent

from pyro_vae.coding.stack import Stack

_SCALES = 7  # on either side of a posterior's loc; beyond are 3e-12 of its mass
_SHARPEST = 0.01  # quantile of the scales that the cells fit
_WIDEST, _FARTHEST = 2**20, 2**22  # in cells


def normal_of(part: nn.Module, distribution: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Loc and scale of independent Normals, (N, latents) each.

    Raises:
        TypeError: another family, which is named.
    """
    base = getattr(distribution, "base_dist", None)
    if not isinstance(distribution, Independent) or not isinstance(base, dist.Normal):
        raise TypeError(
            f"coding: expected latents that are independent Normals; got {type(part).__name__}. Build the program of "
            "priors.StandardNormal or priors.Normal and conditionals.DiagonalNormal."
        )
    return base.loc.flatten(1), base.scale.flatten(1)


@dataclass(frozen=True)
class Grid:
    """Values z = k 2^exponent of the latents of one site, abs(k) at most ``reach``.

    Attributes:
        reach: of the grid, in cells.
        window: of the widest posterior, in cells around its loc. Since every cell of a model has some mass, a posterior
            over the whole grid would now and then draw a z from nowhere near; so would a sharp one in the window of a
            wide one, and each has a power of 2 of its own.
        exponents: one for each dim, (latents,).
    """

    reach: int
    window: int
    exponents: Tensor

    @classmethod
    def fitting(cls, loc: Tensor, scale: Tensor) -> Grid:
        """The grid for posteriors of these, (N, latents) each.

        Raises:
            ValueError: infinite ones.
        """
        if not (loc.isfinite().all() and scale.isfinite().all()):
            raise ValueError(
                "coding.compress: expected a guide with finite loc and scale; got infinite ones. Look for weights that "
                "have diverged."
            )
        sharpest = scale.kthvalue(1 + int(_SHARPEST * len(scale)), 0).values
        exponents = (sharpest / 2).log2().floor().clamp(-128, 127)
        cell = exponents.exp2()
        window = min(int((_SCALES * scale / cell).max()) + 1, _WIDEST)
        reach = min(int((loc.abs() / cell).max()) + 2 * window, _FARTHEST)
        return cls(reach, window, exponents.to(torch.int8))

    @property
    def cell(self) -> Tensor:
        return self.exponents.double().exp2()

    def pop_posterior(self, stack: Stack, loc: Tensor, scale: Tensor) -> Tensor:
        """Draws z, (N, latents), from what the stack holds."""
        center, models = self._windows(loc, scale, 1, self.window)
        cells = center.flatten()
        for window, here, *model in models:
            cells[here] += stack.pop_normals(window, *model)
        return cells.reshape(loc.shape) * self.cell

    def push_posterior(self, stack: Stack, z: Tensor, loc: Tensor, scale: Tensor) -> None:
        """Gives back the bits of z."""
        center, models = self._windows(loc, scale, 1, self.window)
        cells = (z / self.cell - center).flatten()
        for window, here, *model in reversed(models):
            stack.push_normals(cells[here], window, *model)

    def pop_prior(self, stack: Stack, loc: Tensor, scale: Tensor) -> Tensor:
        """Decodes z, (N, latents)."""
        center, models = self._windows(loc, scale, self._least(), self.reach)
        cells = center.flatten()
        for window, here, *model in models:
            far = stack.pop_normals(self.reach // window + 1, *_of_far(model[0]))
            cells[here] += stack.pop_normals(window, *model) + 2 * window * far
        return cells.reshape(loc.shape) * self.cell

    def push_prior(self, stack: Stack, z: Tensor, loc: Tensor, scale: Tensor) -> None:
        """Encodes z: in which window around the prior's loc, nearly always the middle one, and where in it.

        In one alphabet of the whole grid a sharp p(z1|z2) would lose to the other cells' masses.
        """
        center, models = self._windows(loc, scale, self._least(), self.reach)
        cells = (z / self.cell - center).flatten()
        for window, here, *model in reversed(models):
            near = (cells[here] + window).remainder(2 * window) - window
            stack.push_normals(near, window, *model)
            stack.push_normals((cells[here] - near) / (2 * window), self.reach // window + 1, *_of_far(near))

    def _least(self) -> int:
        """The narrowest window of a prior: as many cells as there are windows, since all take 2^-24 of the mass."""
        return int(2 ** math.ceil(math.log2(self.reach) / 2))

    def _windows(
        self, loc: Tensor, scale: Tensor, least: int, most: int
    ) -> tuple[Tensor, list[tuple[int, Tensor, Tensor, Tensor]]]:
        """Cells in the middle, (N, latents), and of each window its place and the models of the distances to them."""
        inner = self.reach - 2 * self.window  # blocks may lead out of a window
        center = (loc / self.cell).round().clamp(-inner, inner)
        shift, width = (loc / self.cell - center).flatten(), (scale / self.cell).flatten()
        windows = (_SCALES * width).log2().ceil().exp2().clamp(least, max(least, most))
        found = [(int(window), windows == window) for window in windows.unique().tolist()]
        return center, [(window, here, shift[here], width[here]) for window, here in found]


def _of_far(like: Tensor) -> tuple[Tensor, Tensor]:
    """Loc and scale of the number of a window: the middle one, but for one in a million."""
    return torch.zeros_like(like), torch.full_like(like, 0.1)
