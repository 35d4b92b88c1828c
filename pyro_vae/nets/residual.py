"""Residual convolutions between images and features: ResidualEncoder, ResidualDecoder, ResidualMaps.

All are stages at one resolution each, of blocks h + f(h) with

    f(h) = conv(a(norm(conv(a(norm(h)))))),

group norm over at least 16 channels (or all, where there are fewer), an activation a, and 3x3 convolutions of which the
last is 0 at the start: every block begins as the identity, so that depth costs no signal (Kolesnikov et al., "Big
Transfer", 2020; Zhang, Dauphin, Ma, "Fixup Initialization", 2019, https://arxiv.org/abs/1901.09321). Group norm is over
one datum, so that data of a batch stay independent, in training as in evaluation (Wu, He, "Group Normalization", 2018,
https://arxiv.org/abs/1803.08494).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from pyro_vae import checks
from pyro_vae.nets.body import Body
from pyro_vae.nets.layers import concatenated, halvings, image_shape, layer, with_contexts
from pyro_vae.nets.shapes import Shape, as_size
from pyro_vae.nets.transforms import InputTransform

_GROUP = 16  # channels that are normalized together, at least
_FEWEST = 4  # fewer values than these, of one pixel, would be all but lost in a norm over them


class ResidualEncoder(Body):
    """Stages of residual blocks from an image to feature maps, for any image size and number of channels.

    Shapes: C channels, H rows, W columns.

    Each stage begins with a convolution of stride 2. A context enters as constant feature maps beside the image's
    channels.

    Args:
        input_shape: (C, H, W).
        channels: of each stage, at least 4; each halves height and width, rounding up.
        blocks: of each stage.
        context_shapes: shape of each further input; flattened.
        activation: class of the non-linearity.
        transform: of the image, see :class:`Body`.
        masked: whether NaN in the image stands for a missing value, see :class:`Body`.

    References:
        He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", 2016, https://arxiv.org/abs/1603.05027

    Example:
        >>> import torch
        >>> ResidualEncoder((3, 29, 17), [16, 32], blocks=2)(torch.zeros(2, 3, 29, 17)).shape
        torch.Size([2, 32, 8, 5])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int] = (64, 128, 256),
        *,
        blocks: int = 1,
        context_shapes: Sequence[Shape] = (),
        activation: Callable[[], nn.Module] = nn.SiLU,
        transform: InputTransform | None = None,
        masked: bool = False,
    ) -> None:
        image = image_shape("ResidualEncoder", input_shape, channels)
        _check("ResidualEncoder", channels, blocks)
        contexts = [as_size(shape) for shape in context_shapes]
        spatial = halvings(image, len(channels))[-1]
        super().__init__([image, *contexts], (channels[-1], *spatial), transform=transform, masked=masked)
        width = image[0] * (2 if masked else 1) + sum(shape.numel() for shape in contexts)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip([width, *channels], channels, strict=False):
            layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1))
            layers += [Block(fan_out, activation) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, _norm(channels[-1]), layer(activation))

    def features(self, *inputs: Tensor) -> Tensor:
        image, *contexts = inputs
        return self.layers(with_contexts(image, contexts))


class ResidualDecoder(Body):
    """A linear layer and stages of residual blocks from z to feature maps of the image's height and width.

    Shapes: C channels, H rows, W columns.

    The mirror of :class:`ResidualEncoder`: each stage ends with a doubling of height and width, to the nearest pixel,
    and a convolution. Its head is a 1x1 convolution, as that of :class:`ConvDecoder`.

    Args:
        input_shape: shape of z.
        output_shape: (C, H, W) of the image; only H and W matter here.
        channels: of each stage, coarsest first, at least 4; the last is also the number of features per pixel.
        blocks: of each stage.
        context_shapes: shape of each further input; flattened and concatenated to z.
        activation: class of the non-linearity.

    Example:
        >>> import torch
        >>> ResidualDecoder(50, (3, 29, 17), [32, 16])(torch.zeros(2, 50)).shape
        torch.Size([2, 16, 29, 17])
    """

    def __init__(
        self,
        input_shape: Shape,
        output_shape: Sequence[int],
        channels: Sequence[int] = (256, 128, 64),
        *,
        blocks: int = 1,
        context_shapes: Sequence[Shape] = (),
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        image = image_shape("ResidualDecoder", output_shape, channels)
        _check("ResidualDecoder", channels, blocks)
        shapes = [as_size(input_shape), *map(as_size, context_shapes)]
        sizes = halvings(image, len(channels))[::-1]
        super().__init__(shapes, (channels[-1], *image[1:]))
        self.coarsest = (channels[0], *sizes[0])
        self.linear = nn.Linear(sum(shape.numel() for shape in shapes), math.prod(self.coarsest))
        layers: list[nn.Module] = []
        for fan_in, fan_out, size in zip(channels, [*channels[1:], channels[-1]], sizes[1:], strict=True):
            layers += [Block(fan_in, activation) for _ in range(blocks)]
            layers += [Doubled(*size), nn.Conv2d(fan_in, fan_out, 3, padding=1)]
        self.layers = nn.Sequential(*layers, _norm(channels[-1]), layer(activation))

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(self.linear(concatenated(inputs)).unflatten(-1, self.coarsest))


class ResidualMaps(Body):
    """Residual blocks at one resolution: from feature maps to as many of the same height and width.

    For the likelihood of :class:`~pyro_vae.TopDownVAE`, whose path ends at the height and width of the image.

    Shapes: C channels, H rows, W columns.

    Args:
        input_shape: (C, H, W), with at least 4 channels.
        blocks: how many; 0 is a norm and an activation alone.
        context_shapes: shape of each further input; flattened, as constant feature maps.
        activation: class of the non-linearity.

    Example:
        >>> import torch
        >>> ResidualMaps((16, 4, 4))(torch.zeros(2, 16, 4, 4)).shape
        torch.Size([2, 16, 4, 4])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        blocks: int = 1,
        context_shapes: Sequence[Shape] = (),
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        image = image_shape("ResidualMaps", input_shape, input_shape[:1])
        checks.whole("ResidualMaps", "blocks", blocks, 0)
        checks.whole("ResidualMaps", "the number of channels", image[0], _FEWEST)
        contexts = [as_size(shape) for shape in context_shapes]
        super().__init__([image, *contexts], image)
        width = image[0] + sum(shape.numel() for shape in contexts)
        entry = [nn.Conv2d(width, image[0], 1)] if contexts else []
        self.layers = nn.Sequential(
            *entry, *(Block(image[0], activation) for _ in range(blocks)), _norm(image[0]), layer(activation)
        )

    def features(self, *inputs: Tensor) -> Tensor:
        image, *contexts = inputs
        return self.layers(with_contexts(image, contexts))


class Block(nn.Module):
    """h + f(h), where f is 0 at the start, or small.

    Args:
        channels: of h.
        activation: class of the non-linearity.
        scale: what the last convolution's weights are multiplied by at the start.
        kernel: height and width of the convolutions, odd.
    """

    def __init__(
        self, channels: int, activation: Callable[[], nn.Module], *, scale: float = 0.0, kernel: int = 3
    ) -> None:
        super().__init__()
        self.layers = two_convolutions(channels, channels, activation, scale=scale, kernel=kernel)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def two_convolutions(
    fan_in: int, fan_out: int, activation: Callable[[], nn.Module], *, scale: float, kernel: int = 3
) -> nn.Sequential:
    """Norm, activation and convolution, twice: from ``fan_in`` channels to ``fan_out``.

    Args:
        fan_in: channels of the input, and between the two.
        fan_out: channels of the result.
        activation: class of the non-linearity.
        scale: what the last convolution's weights are multiplied by at the start; its bias is 0.
        kernel: height and width of the convolutions, odd.
    """
    last = nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2)
    assert last.bias is not None
    with torch.no_grad():
        last.weight.mul_(scale)
        nn.init.zeros_(last.bias)
    first = [_norm(fan_in), layer(activation), nn.Conv2d(fan_in, fan_in, kernel, padding=kernel // 2)]
    return nn.Sequential(*first, _norm(fan_in), layer(activation), last)


class Halved(nn.Module):
    """Half the height and width, rounded up: the mean of each 2x2 pixels, or of those that there are at an odd end.

    As ``nn.AvgPool2d(2, ceil_mode=True)``, whose gradient at odd sizes Inductor gets wrong (torch 2.14); that of
    ``pad(mode="replicate")`` fails there where maps have their channels last in memory.
    """

    def forward(self, h: Tensor) -> Tensor:
        rows, columns = (size % 2 for size in h.shape[-2:])
        if rows:
            h = torch.cat([h, h[..., -1:, :]], -2)
        if columns:
            h = torch.cat([h, h[..., -1:]], -1)
        return avg_pool2d(h, 2)


class Doubled(nn.Module):
    """Twice the height and width, each pixel four times, without what an odd size has too many.

    Args:
        height: of the result.
        width: of the result.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.twice = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, h: Tensor) -> Tensor:
        return self.twice(h)[..., : self.height, : self.width]


def _norm(channels: int) -> nn.GroupNorm:
    """In as many groups as have at least 16 channels each."""
    groups = next(n for n in range(max(channels // _GROUP, 1), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels)


def _check(name: str, channels: Sequence[int], blocks: int) -> None:
    checks.whole(name, "blocks", blocks)
    for count in channels:
        checks.whole(name, "every number of channels", count, _FEWEST)
