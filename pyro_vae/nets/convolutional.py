"""Convolutions between images and features: ConvEncoder, ConvDecoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyro_vae.nets.body import Body
from pyro_vae.nets.layers import concatenated, halvings, image_shape, layer, with_contexts
from pyro_vae.nets.shapes import Shape, as_size
from pyro_vae.nets.transforms import InputTransform


class ConvEncoder(Body):
    """Convolutions of stride 2 from an image to feature maps, for any image size and number of channels.

    Shapes: C channels, H rows, W columns.

    A context enters as constant feature maps beside the image's channels.

    Args:
        input_shape: (C, H, W).
        channels: output channels of each convolution; each halves height and width, rounding up.
        context_shapes: shape of each further input; flattened.
        activation: class of the non-linearity after every convolution.
        transform: of the image, see :class:`Body`.
        masked: whether NaN in the image stands for a missing value, see :class:`Body`.

    Example:
        >>> import torch
        >>> ConvEncoder((3, 29, 17), [16, 32])(torch.zeros(2, 3, 29, 17)).shape
        torch.Size([2, 32, 8, 5])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        context_shapes: Sequence[Shape] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
        transform: InputTransform | None = None,
        masked: bool = False,
    ) -> None:
        image = image_shape("ConvEncoder", input_shape, channels)
        contexts = [as_size(shape) for shape in context_shapes]
        counts = [image[0] * (2 if masked else 1) + sum(shape.numel() for shape in contexts), *channels]
        spatial = halvings(image, len(channels))[-1]
        super().__init__([image, *contexts], (channels[-1], *spatial), transform=transform, masked=masked)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(counts):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), layer(activation)]
        self.layers = nn.Sequential(*layers)

    def features(self, *inputs: Tensor) -> Tensor:
        image, *contexts = inputs
        return self.layers(with_contexts(image, contexts))


class ConvDecoder(Body):
    """A linear layer and transposed convolutions from z to feature maps of the image's height and width.

    Shapes: C channels, H rows, W columns.

    The mirror of :class:`ConvEncoder`. Its head is a 1x1 convolution, so that likelihoods with many parameters per
    pixel stay affordable: from 64x32x32 features to 100 parameters per pixel a linear layer would have 6.7e9 weights,
    the convolution has 6,400.

    Args:
        input_shape: shape of z.
        output_shape: (C, H, W) of the image; only H and W matter here.
        channels: channels of the feature maps, coarsest first; the last is the number of features per pixel.
        context_shapes: shape of each further input; flattened and concatenated to z.
        activation: class of the non-linearity.

    Example:
        >>> import torch
        >>> ConvDecoder(50, (3, 29, 17), [32, 16])(torch.zeros(2, 50)).shape
        torch.Size([2, 16, 29, 17])
    """

    def __init__(
        self,
        input_shape: Shape,
        output_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        context_shapes: Sequence[Shape] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        image = image_shape("ConvDecoder", output_shape, channels)
        shapes = [as_size(input_shape), *map(as_size, context_shapes)]
        sizes = halvings(image, len(channels))[::-1]
        super().__init__(shapes, (channels[-1], *image[1:]))
        self.coarsest = (channels[0], *sizes[0])
        self.linear = nn.Linear(sum(shape.numel() for shape in shapes), math.prod(self.coarsest))
        layers: list[nn.Module] = [layer(activation)]
        for (fan_in, fan_out), small, large in zip(
            zip(channels, [*channels[1:], channels[-1]], strict=True), sizes, sizes[1:], strict=False
        ):
            # A transposed convolution of stride 2 yields 2n - 1 or 2n pixels; output_padding tells which.
            padding = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
            layers += [nn.ConvTranspose2d(fan_in, fan_out, 3, 2, 1, output_padding=padding), layer(activation)]
        self.layers = nn.Sequential(*layers)

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(self.linear(concatenated(inputs)).unflatten(-1, self.coarsest))
