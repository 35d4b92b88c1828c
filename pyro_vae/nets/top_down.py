"""The networks of a top-down hierarchy: features of an image at several resolutions, and the groups of latents.

Shapes: C channels, H rows, W columns, L latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_vae.nets.residual import Block, Doubled, two_convolutions

Activation = Callable[[], nn.Module]


class Features(nn.Module):
    """Feature maps of an image at every resolution, coarsest first.

    Args:
        image: (channels, H, W) of the image.
        sizes: heights and widths of the maps, coarsest first; the last are the image's own.
        channels: C of all maps.
        blocks: residual blocks of each resolution.
        activation: class of the non-linearity.
        checkpoint: compute activations anew when gradients are taken, in place of holding them.
    """

    def __init__(
        self,
        image: Size,
        sizes: Sequence[tuple[int, int]],
        channels: int,
        blocks: int,
        activation: Activation,
        *,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        scale = 1 / math.sqrt(blocks * len(sizes))
        self.entry = nn.Conv2d(image[0], channels, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *([] if size == sizes[-1] else [nn.AvgPool2d(2, ceil_mode=True)]),
                *(Block(channels, activation, scale=scale, kernel=_kernel(size)) for _ in range(blocks)),
            )
            for size in reversed(sizes)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (\\*lead, C, H, W) for an image (\\*lead, channels, H, W)."""
        h, maps = over_lead(self.entry, x), []
        for stage in self.stages:
            h = run(stage, h, again=self.checkpoint)
            maps.append(h)
        return maps[::-1]


class Group(nn.Module):
    """A group of latents (L, H, W), and what it makes of the path's state (C, H, W).

    The prior's last convolution is 0 at the start, so that p is a standard Normal, and what is added to the state
    shrinks with the number of groups, so that its size does not grow with depth.

    Args:
        channels: C.
        latent_channels: L.
        size: height and width.
        depth: number of groups.
        activation: class of the non-linearity.
        enlarge: whether the state comes from a coarser resolution.
    """

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        size: tuple[int, int],
        depth: int,
        activation: Activation,
        *,
        enlarge: bool,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.enlarge = Doubled(*size) if enlarge else None
        # What a resolution begins with: nearest neighbors tell nothing of where in the image a pixel is.
        self.start = nn.Parameter(torch.zeros(channels, *size)) if enlarge else None
        scale, kernel = 1 / math.sqrt(depth), _kernel(size)
        self.prior = two_convolutions(channels, 2 * latent_channels + channels, activation, scale=0.0, kernel=kernel)
        self.entry = nn.Conv2d(latent_channels, channels, 1)
        with torch.no_grad():
            self.entry.weight.mul_(scale)
            self.entry.bias.zero_()  # type: ignore[union-attr]
        self.block = Block(channels, activation, scale=scale, kernel=kernel)

    def enlarged(self, h: Tensor) -> Tensor:
        """The state at this group's resolution."""
        if self.enlarge is None:
            return h
        return over_lead(self.enlarge, h) + self.start

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Location and log-scale of p(z), (\\*lead, L, H, W) each, and the state that z is added to."""
        loc, log_scale, added = over_lead(self.prior, h).split(
            [self.latent_channels, self.latent_channels, h.shape[-3]], -3
        )
        return loc, log_scale, h + added

    def after(self, h: Tensor, z: Tensor) -> Tensor:
        """The state after z was drawn."""
        return over_lead(self.block, h + over_lead(self.entry, z))


def run(function: Callable[..., Tensor], *maps: Tensor, again: bool) -> Tensor:
    """What a function makes of maps; with ``again``, computed a second time when gradients are taken."""
    if again and torch.is_grad_enabled():
        return checkpoint(over_lead, function, *maps, use_reentrant=False)
    return over_lead(function, *maps)


def over_lead(function: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """What a function of (B, C, H, W) makes of maps of any leading dims, joined along their channels."""
    if len(maps) > 1:
        lead = torch.broadcast_shapes(*(each.shape[:-3] for each in maps))
        maps = (torch.cat([each.expand(lead + each.shape[-3:]) for each in maps], -3),)
    (h,) = maps
    if h.dim() == 4:
        return function(h)
    result = function(h.reshape(-1, *h.shape[-3:]))
    return result.reshape(h.shape[:-3] + result.shape[-3:])


def _kernel(size: tuple[int, int]) -> int:
    return 3 if min(size) > 2 else 1
