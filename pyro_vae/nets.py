"""Bodies: networks that turn inputs into features, and build the head that fits them.

A body knows nothing of distributions. A likelihood or a conditional (see :mod:`pyro_vae.family`) names the shapes of
the parameters it needs, and ``body.head(shapes)`` answers with a layer that makes them from the body's features: a
linear layer for a vector, a 1x1 convolution where features and parameters share their height and width. That is why a
family can be replaced without touching the network.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Size, Tensor, nn

from pyro_vae import checks
from pyro_vae.recorded import Recorded
from pyro_vae.tables import measured

Shape = int | Sequence[int]
InputTransform = Literal["log1p"] | Callable[[Tensor], Tensor]


def as_size(shape: Shape) -> Size:
    """``50`` -> ``Size([50])``, ``(1, 28, 28)`` -> ``Size([1, 28, 28])``; refuses sizes below 1."""
    sizes = [shape] if isinstance(shape, int) or not isinstance(shape, Sequence) else shape
    whole = [checks.whole("Shape", "every size", size, -sys.maxsize) for size in sizes]
    if any(size < 1 for size in whole):
        raise ValueError(f"Shape: expected every size at least 1; got {tuple(whole)}. Give positive sizes.")
    return Size(whole)


class Standardize(Recorded, nn.Module):
    """(x - mean) / deviation, elementwise: what a network is given of reals on any scale.

    Args:
        mean: in the units of x, of a shape that broadcasts with the event's.
        deviation: likewise; 0, of an element that never varies, counts as 1.

    Example:
        >>> x = torch.tensor([[1000.0, 7.0], [3000.0, 7.0]])
        >>> Standardize.of(x)(x)
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("deviation", torch.where(deviation > 0, deviation, 1.0).detach())

    @classmethod
    def of(cls, x: Tensor) -> Standardize:
        """For data x (N, \\*event_shape), of the values that are not NaN.

        Raises:
            TypeError: no tensor.
            ValueError: no datum, or infinite values.
        """
        checks.instance("Standardize.of", "x", x, Tensor, "Use data.as_dataset(x).tensor() for other data.")
        if x.dim() == 0 or not len(x) or bool(x.isinf().any()):
            raise ValueError(
                f"Standardize.of: expected finite data of shape (N, ...) or NaN for missing; got {tuple(x.shape)}"
                f"{' with infinite values' if x.numel() and bool(x.isinf().any()) else ''}. Give the training data."
            )
        x = x if x.is_floating_point() else x.float()
        observed = ~x.isnan()
        # What never varies has deviation 0, however its mean rounds.
        varies = x.nan_to_num(-math.inf).amax(0) > x.nan_to_num(math.inf).amin(0)
        count = observed.sum(0).clamp(min=1)
        mean = torch.where(observed, x.double(), 0.0).sum(0) / count
        variance = torch.where(observed, (x.double() - mean) ** 2, 0.0).sum(0) / count
        kept = torch.get_default_dtype()  # that of parameters; data are made float32 too
        return cls(mean.to(kept), torch.where(varies, variance.sqrt(), 0.0).to(kept))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


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
        self.transform = _input_transform(type(self).__name__, transform)
        self.input_shapes = tuple(as_size(shape) for shape in input_shapes)
        self.feature_shape = as_size(feature_shape)
        if isinstance(self.transform, Standardize):
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


class Head(nn.Module):
    """One layer from features to named parameters; ``forward(features) -> {name: (*lead, *shape)}``.

    Args:
        feature_shape: the event shape of the features.
        shapes: of the parameters, by name.
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
            layers += [nn.Linear(fan_in, fan_out), _layer(activation)]
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
        return self.layers(_concatenated(inputs))


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
        image = _image_shape("ConvEncoder", input_shape, channels)
        contexts = [as_size(shape) for shape in context_shapes]
        counts = [image[0] * (2 if masked else 1) + sum(shape.numel() for shape in contexts), *channels]
        spatial = _halvings(image, len(channels))[-1]
        super().__init__([image, *contexts], (channels[-1], *spatial), transform=transform, masked=masked)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(counts):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), _layer(activation)]
        self.layers = nn.Sequential(*layers)

    def features(self, *inputs: Tensor) -> Tensor:
        image, *contexts = inputs
        if contexts:
            maps = _concatenated(contexts)[..., None, None].expand(-1, -1, *image.shape[-2:])
            image = torch.cat([image, maps], 1)
        return self.layers(image)


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
        image = _image_shape("ConvDecoder", output_shape, channels)
        shapes = [as_size(input_shape), *map(as_size, context_shapes)]
        sizes = _halvings(image, len(channels))[::-1]
        super().__init__(shapes, (channels[-1], *image[1:]))
        self.coarsest = (channels[0], *sizes[0])
        self.linear = nn.Linear(sum(shape.numel() for shape in shapes), math.prod(self.coarsest))
        layers: list[nn.Module] = [_layer(activation)]
        for (fan_in, fan_out), small, large in zip(
            zip(channels, [*channels[1:], channels[-1]], strict=True), sizes, sizes[1:], strict=False
        ):
            # A transposed convolution of stride 2 yields 2n - 1 or 2n pixels; output_padding tells which.
            padding = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
            layers += [nn.ConvTranspose2d(fan_in, fan_out, 3, 2, 1, output_padding=padding), _layer(activation)]
        self.layers = nn.Sequential(*layers)

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(self.linear(_concatenated(inputs)).unflatten(-1, self.coarsest))


def broadcasts(shape: Size, event_shape: Size) -> bool:
    """Whether a tensor of a shape broadcasts to an event's without adding to it."""
    return len(shape) <= len(event_shape) and all(
        own in (1, size) for own, size in zip(reversed(shape), reversed(event_shape), strict=False)
    )


def _input_transform(name: str, transform: InputTransform | None) -> Callable[[Tensor], Tensor] | None:
    if transform == "log1p":
        return torch.log1p
    if transform is not None and not callable(transform):
        raise TypeError(
            f"{name}: expected transform 'log1p', a module or a function; got {transform!r}. Use nets.Standardize "
            "for reals."
        )
    return transform


def _layer(activation: Callable[[], nn.Module]) -> nn.Module:
    try:
        layer = activation()
    except TypeError:
        layer = None
    if not isinstance(layer, nn.Module):
        raise TypeError(
            f"Body: expected activation a class that makes a module; got {activation!r:.80}. Give a class, such as "
            "nn.ReLU."
        )
    return layer


def _image_shape(name: str, shape: Sequence[int], channels: Sequence[int]) -> Size:
    if len(shape) != 3:
        raise ValueError(
            f"{name}: expected an image shape (channels, height, width); got {tuple(shape)}. "
            "Reshape the data, or use MLP for vectors."
        )
    if not channels:
        raise ValueError(f"{name}: expected at least one layer in channels; got none. Give for example channels=[32].")
    as_size(channels)
    return as_size(shape)


def _concatenated(inputs: Sequence[Tensor]) -> Tensor:
    """Flattens inputs of shape (B, \\*shape), scalars among them, and joins them to (B, total)."""
    flat = [value.unsqueeze(-1).flatten(1) for value in inputs]
    return flat[0] if len(flat) == 1 else torch.cat(flat, -1)


def _halvings(image: Size, times: int) -> list[tuple[int, int]]:
    """Heights and widths from the full image down, each half of the one before, rounded up."""
    sizes = [(image[1], image[2])]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes
