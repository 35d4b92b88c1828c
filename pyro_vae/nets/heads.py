"""Layers from features to the parameters of a distribution."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Size, Tensor, nn


class Head(nn.Module):
    """One layer from features to named parameters; ``forward(features) -> {name: (*lead, *shape)}``.

    Args:
        feature_shape: the event shape of the features.
        shapes: of the parameters, by name.

    Example:
        >>> head = LinearHead(Size([8]), {"logits": Size([2]), "log_scale": Size([1])})
        >>> head.set_bias("logits", torch.tensor([1.0, 2.0]))
        >>> head.bias("logits").detach()
        tensor([1., 2.])
    """

    layer: nn.Linear | nn.Conv2d

    def __init__(self, feature_shape: Size, shapes: Mapping[str, Size]) -> None:
        super().__init__()
        self.feature_shape = feature_shape
        self.shapes = dict(shapes)

    def bias(self, name: str) -> Tensor:
        """The part of the layer's bias that belongs to the parameter ``name``, as a view one may write to."""
        assert self.layer.bias is not None
        per_output = [
            shape.numel() if isinstance(self.layer, nn.Linear) else shape[0] for shape in self.shapes.values()
        ]
        return self.layer.bias.split(per_output)[list(self.shapes).index(name)]

    def set_bias(self, name: str, value: Tensor) -> None:
        """Sets the bias of a parameter; ``value`` broadcasts to its shape, and a convolution takes channel means."""
        try:
            value = value.to(self.layer.weight.dtype).expand(self.shapes[name])
        except RuntimeError as error:
            raise ValueError(
                f"Head: expected a bias that broadcasts to {tuple(self.shapes[name])}; got shape {tuple(value.shape)}. "
                "Give the mean of one datum."
            ) from error
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"Head: expected a finite bias for {name!r}; got {int((~value.isfinite()).sum())} values that are not. "
                "Give another mean where no value was observed."
            )
        with torch.no_grad():
            self.bias(name).copy_(value.flatten() if isinstance(self.layer, nn.Linear) else value.mean((-2, -1)))


class LinearHead(Head):
    """A linear layer from the flattened features to all parameters at once.

    Args:
        feature_shape: the event shape of the features.
        shapes: of the parameters, by name.

    Example:
        >>> parameters = LinearHead(Size([8]), {"loc": Size([2]), "log_scale": Size([2])})(torch.zeros(5, 8))
        >>> {name: tuple(value.shape) for name, value in parameters.items()}
        {'loc': (5, 2), 'log_scale': (5, 2)}
    """

    def __init__(self, feature_shape: Size, shapes: Mapping[str, Size]) -> None:
        super().__init__(feature_shape, shapes)
        self.layer = nn.Linear(feature_shape.numel(), sum(shape.numel() for shape in shapes.values()))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        flat = self.layer(features.flatten(-len(self.feature_shape)))
        flat = flat.to(self.layer.weight.dtype)  # under autocast too: densities are not for eight bits
        parts = flat.split([shape.numel() for shape in self.shapes.values()], -1)
        lead = flat.shape[:-1]
        return {
            name: part.reshape(lead + shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


class ConvHead(Head):
    """A 1x1 convolution from features (C, H, W) to parameters (c, H, W): its size does not grow with the image.

    Shapes: C channels, H rows, W columns.

    Args:
        feature_shape: (C, H, W).
        shapes: of the parameters, by name, (c, H, W) each.

    Example:
        >>> head = ConvHead(Size([8, 5, 5]), {"logits": Size([3, 5, 5])})
        >>> head.set_bias("logits", torch.tensor([1.0, 2.0, 3.0])[:, None, None])
        >>> head(torch.zeros(1, 8, 5, 5))["logits"].detach().mean((0, 2, 3))
        tensor([1., 2., 3.])
        >>> sum(parameter.numel() for parameter in head.parameters())  # 8 * 3 + 3, for 5 x 5 pixels or any others
        27
    """

    def __init__(self, feature_shape: Size, shapes: Mapping[str, Size]) -> None:
        super().__init__(feature_shape, shapes)
        self.layer = nn.Conv2d(feature_shape[0], sum(shape[0] for shape in shapes.values()), 1)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        lead = features.shape[:-3]
        maps = self.layer(features.reshape(-1, *self.feature_shape)).to(self.layer.weight.dtype)
        parts = maps.split([shape[0] for shape in self.shapes.values()], -3)
        return {
            name: part.reshape(lead + shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
