"""Fully connected bodies: MLP."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_vae.nets.body import Body
from pyro_vae.nets.layers import concatenated, layer
from pyro_vae.nets.shapes import Shape, as_size
from pyro_vae.nets.transforms import InputTransform
from pyro_vae.tables import measured


class MLP(Body):
    """A multi-layer perceptron; inputs are flattened and concatenated.

    Args:
        input_shape: shape of z or x, an int or a tuple.
        hidden: width of each hidden layer; empty for none, where the head alone is the network.
        context_shapes: shape of each further input.
        activation: class of the non-linearity after every hidden layer.
        transform: of the first input, see :class:`Body`.
        masked: whether NaN in the first input stands for a missing value, see :class:`Body`.

    Example:
        >>> import torch
        >>> MLP(50, [200, 200])(torch.zeros(3, 50)).shape
        torch.Size([3, 200])
        >>> MLP((1, 28, 28), [64], context_shapes=[10])(torch.zeros(5, 3, 1, 28, 28), torch.zeros(3, 10)).shape
        torch.Size([5, 3, 64])
    """

    def __init__(
        self,
        input_shape: Shape,
        hidden: Sequence[int],
        *,
        context_shapes: Sequence[Shape] = (),
        activation: Callable[[], nn.Module] = nn.Tanh,
        transform: InputTransform | None = None,
        masked: bool = False,
    ) -> None:
        shapes = [as_size(input_shape), *map(as_size, context_shapes)]
        first = getattr(transform, "output_shape", shapes[0])
        inputs = first.numel() + sum(shape.numel() for shape in shapes[1:]) + (shapes[0].numel() if masked else 0)
        widths = [inputs, *(as_size(hidden) if len(hidden) else ())]
        super().__init__(shapes, widths[-1], transform=transform, masked=masked)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), layer(activation)]
        self.layers = nn.Sequential(*layers)

    @classmethod
    def for_data(cls, dataset: Any, hidden: Sequence[int], **options: Any) -> MLP:
        """An encoder of a table's rows: reals standardized, categories one-hot, and a mask where values are missing.

        Args:
            dataset: the training data, of ``data.as_dataset(frame)`` or ``data.load("x.csv")``.
            hidden: width of each hidden layer.
            options: as the constructor's ``context_shapes`` and ``activation``.

        Raises:
            TypeError: data that are no table of pandas.

        Example:
            >>> import pandas
            >>> from pyro_vae import data
            >>> frame = pandas.DataFrame({"m": [1.62, None, 1.88], "eyes": ["blue", "brown", "blue"]})
            >>> body = MLP.for_data(data.as_dataset(frame), [8])
            >>> body.layers[0]  # a real, a binary, and the mask of both
            Linear(in_features=4, out_features=8, bias=True)
        """
        table = measured("MLP.for_data", dataset)
        return cls(len(table), hidden, transform=table.inputs(), masked=table.missing, **options)

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(concatenated(inputs))
