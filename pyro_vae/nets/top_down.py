"""The networks of a top-down hierarchy: features of an image at several resolutions, and the groups of latents.

Shapes: B data, C channels, H rows, W columns, L latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_vae.nets.residual import Block, Doubled, Halved, two_convolutions

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
                *([] if size == sizes[-1] else [Halved()]),
                *(Block(channels, activation, scale=scale, kernel=_kernel(size)) for _ in range(blocks)),
            )
            for size in reversed(sizes)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (\\*lead, C, H, W) for an image (\\*lead, channels, H, W)."""
        h, maps = run(self.entry, x), []
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
        sizes: heights and widths from that of the group above, which is left out, down to this group's; where the two
            are the same, this alone.
        depth: number of groups.
        activation: class of the non-linearity.
        enlarge: whether the state comes from a coarser resolution.
    """

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        sizes: Sequence[tuple[int, int]],
        depth: int,
        activation: Activation,
        *,
        enlarge: bool,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.enlarge = nn.Sequential(*(Doubled(*size) for size in sizes)) if enlarge else None
        # What a resolution begins with: nearest neighbors tell nothing of where in the image a pixel is.
        self.start = nn.Parameter(torch.zeros(channels, *sizes[-1])) if enlarge else None
        self.kernel = kernel = _kernel(sizes[-1])
        scale = 1 / math.sqrt(depth)
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
        assert self.start is not None
        return run(self.enlarge, h) + self.start

    def after(self, h: Tensor, z: Tensor) -> Tensor:
        """The state after z was drawn."""
        return self.block(h + self.entry(z))


class Posterior(nn.Module):
    """From the state and the features of the data, (C, H, W) each, to 2 L maps: location and log-scale of q(z).

    Args:
        group: of the latents.
        channels: C.
        scale: what the last convolution's weights are multiplied by at the start.
        activation: class of the non-linearity.
    """

    def __init__(self, group: Group, channels: int, scale: float, activation: Activation) -> None:
        super().__init__()
        self.layers = two_convolutions(
            2 * channels, 2 * group.latent_channels, activation, scale=scale, kernel=group.kernel
        )

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        return self.layers(torch.cat([h, features], -3))


def run(function: Callable[..., Tensor], *maps: Tensor, again: bool = False) -> Tensor:
    """What a function of maps (B, C, H, W) makes of maps of any leading dims, which broadcast.

    Args:
        function: of maps.
        maps: (\\*lead, C, H, W) each.
        again: compute it a second time when gradients are taken, with the same random numbers.
    """
    lead = torch.broadcast_shapes(*(each.shape[:-3] for each in maps))
    folded = [each.expand(lead + each.shape[-3:]).reshape(-1, *each.shape[-3:]) for each in maps]
    if again and torch.is_grad_enabled():
        result = checkpoint(function, *folded, use_reentrant=False)
    else:
        result = function(*folded)
    return result.reshape(lead + result.shape[-3:])


def _kernel(size: tuple[int, int]) -> int:
    return 3 if min(size) > 2 else 1
