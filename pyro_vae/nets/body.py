"""The base class of bodies: it checks and folds the inputs, and builds the head that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn

from pyro_vae import checks
from pyro_vae.nets.heads import ConvHead, Head, LinearHead
from pyro_vae.nets.shapes import Shape, as_size, broadcasts
from pyro_vae.nets.transforms import InputTransform, Standardize, StandardizeLog, input_transform
from pyro_vae.recorded import Recorded


class Body(Recorded, nn.Module):
    """A network from one or more inputs to features, over any number of leading dims.

    Subclasses implement :meth:`features` for exactly one leading dim.

    Args:
        input_shapes: the event shape of each input: z or x first, then the contexts.
        feature_shape: the event shape of the features.
        transform: what is done to the first input before the network sees it: ``"log1p"`` for counts,
            :class:`Standardize` for reals on any scale, a module or function that keeps its shape, or the inputs of a
            table, whose ``output_shape`` says what becomes of it.
        masked: whether NaN in the first input stands for a missing value. :meth:`features` is then given the values
            with 0 in their place, and beside them, along the first dim of the event, a mask that is 1 where one is
            observed.

    Example:
        >>> class Residual(Body):
        ...     def __init__(self, size: int, width: int) -> None:
        ...         super().__init__([size], width)  # a list of shapes, one of each input
        ...         self.first, self.second = nn.Linear(size, width), nn.Linear(width, width)
        ...
        ...     def features(self, x: Tensor) -> Tensor:
        ...         h = self.first(x).tanh()
        ...         return h + self.second(h).tanh()
        >>> Residual(64, 32)(torch.zeros(5, 3, 64)).shape
        torch.Size([5, 3, 32])
    """

    how_to_make = "Use nets.MLP, nets.ConvEncoder or nets.ConvDecoder, or subclass nets.Body."
    """What an error says to one who has none."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = checks.arguments(cls.__name__, cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self,
        input_shapes: Sequence[Shape],
        feature_shape: Shape,
        *,
        transform: InputTransform | None = None,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.masked = checks.flag(type(self).__name__, "masked", masked)
        self.transform = input_transform(type(self).__name__, transform)
        self.input_shapes = tuple(as_size(shape) for shape in input_shapes)
        self.feature_shape = as_size(feature_shape)
        if isinstance(self.transform, Standardize | StandardizeLog):
            for name, value in self.transform.named_buffers():
                if not broadcasts(value.shape, self.input_shapes[0]):
                    raise ValueError(
                        f"{type(self).__name__}: expected a transform with a {name} of shape "
                        f"{tuple(self.input_shapes[0])}; got {tuple(value.shape)}. Use nets.Standardize.of(x) of the "
                        "data that the network takes."
                    )

    def features(self, *inputs: Tensor) -> Tensor:
        """Maps inputs of shape (B, \\*input_shape) to features of shape (B, \\*feature_shape)."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps inputs of shape (\\*lead, \\*input_shape) to (\\*lead, \\*feature_shape); leading dims broadcast.

        Raises:
            TypeError: the number of inputs is not that of ``input_shapes``.
            ValueError: an input does not end in its shape, or the leading dims do not broadcast.
        """
        name = type(self).__name__
        if len(inputs) != len(self.input_shapes):
            raise TypeError(
                f"{name}: expected {len(self.input_shapes)} inputs of shapes {[tuple(s) for s in self.input_shapes]}; "
                f"got {len(inputs)}. Give the context's shape as context_shapes=..., or the missing context."
            )
        leads = []
        for value, shape in zip(inputs, self.input_shapes, strict=True):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name}: expected inputs that are tensors; got {type(value).__name__}. Use torch.as_tensor."
                )
            cut = value.dim() - len(shape)
            if cut < 0 or value.shape[cut:] != shape:
                raise ValueError(
                    f"{name}: expected an input of shape (..., {', '.join(map(str, shape))}); got "
                    f"{tuple(value.shape)}. Build the network for the shape of the data."
                )
            leads.append(value.shape[:cut])
        lead = leads[0]
        if len(lead) == 1 and all(other == lead for other in leads):
            return self._features(*inputs)  # the training step's case: nothing to fold
        try:
            lead = torch.broadcast_shapes(*leads)
        except RuntimeError as error:
            raise ValueError(
                f"{name}: expected inputs whose leading dims broadcast; got {', '.join(str(tuple(d)) for d in leads)}. "
                "Give one row of context per datum."
            ) from error
        folded = [
            value.expand(lead + shape).reshape(-1, *shape)
            for value, shape in zip(inputs, self.input_shapes, strict=True)
        ]
        return self._features(*folded).reshape(lead + self.feature_shape)

    def _features(self, *inputs: Tensor) -> Tensor:
        """The features, of the first input as the network is to see it."""
        first, *others = inputs
        observed = ~first.isnan() if self.masked else None  # before a transform, which may make NaN of its own
        if self.transform is not None:
            first = self.transform(first)
        if observed is not None:
            if first.shape == observed.shape:  # the inputs of a table have more columns, with 0 in place of NaN
                first = torch.where(observed, first, 0.0)
            first = torch.cat([first, observed.to(first.dtype)], 1)
        try:
            features = self.features(first, *others)
        except RuntimeError as error:  # torch's own tells of one layer
            own = next(self.parameters(), inputs[0])
            for value in inputs:
                if (value.dtype, value.device) != (own.dtype, own.device):
                    raise TypeError(
                        f"{type(self).__name__}: expected inputs of {own.dtype} on {own.device}, like the parameters; "
                        f"got {value.dtype} on {value.device}. Convert with .to({own.dtype}), or move one of them."
                    ) from error
            raise
        if features.shape[1:] != self.feature_shape:
            raise ValueError(
                f"{type(self).__name__}: expected features of shape (B, {', '.join(map(str, self.feature_shape))}), as "
                f"feature_shape says; got {tuple(features.shape)}. Make the two agree."
            )
        return features

    def head(self, shapes: Mapping[str, Size]) -> Head:
        """Builds the layer that makes parameters of these shapes from this body's features."""
        spatial = self.feature_shape[1:]
        if len(spatial) == 2 and all(len(shape) == 3 and shape[1:] == spatial for shape in shapes.values()):
            return ConvHead(self.feature_shape, shapes)
        return LinearHead(self.feature_shape, shapes)
