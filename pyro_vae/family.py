"""What a likelihood p(x|z) and a conditional q(z|x) share: a body, a head that fits, a distribution.

Both are conditional densities p(y | parents). The body turns the parents into features, the head turns the features
into the family's parameters, and :meth:`Family.distribution` turns those into a distribution over y.
"""

from __future__ import annotations

from typing import Any

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn

from pyro_vae import checks
from pyro_vae.nets import Body, Shape, as_size
from pyro_vae.recorded import Recorded


def positive(log_scale: Tensor) -> Tensor:
    """exp(log_scale), for any number that a network may make of data on any scale.

    Beyond 16 in absolute value the logarithm l grows as a logarithm itself, 16 + log(abs(l) - 15): the scale stays a
    finite positive number, and its gradient does not vanish. Within, nothing is changed.

    Example:
        >>> import torch
        >>> positive(torch.tensor([-200.0, 1.0, 200.0])).log().round()
        tensor([-21.,   1.,  21.])
    """
    beyond = log_scale.abs().sub(16).clamp(min=0).log1p()
    return (log_scale.clamp(-16, 16) + log_scale.sign() * beyond).exp()


class Family(Recorded, nn.Module):
    """A conditional density p(y | parents), one distribution per row of the parents.

    ``forward(*parents)`` returns a ``TorchDistribution`` whose ``batch_shape`` is the parents' leading dims, however
    many, and whose ``event_shape`` is fixed. A new family overrides :meth:`parameter_shapes` and :meth:`distribution`;
    a plain attribute that ``parameter_shapes`` reads is set before ``super().__init__``, which builds the head.

    Args:
        body: the network; see :mod:`pyro_vae.nets`.
        event_shape: the shape of one datum y.

    Raises:
        TypeError: ``body`` is not a :class:`~pyro_vae.nets.Body`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = checks.arguments(cls.__name__, cls.__init__)  # type: ignore[method-assign]

    def __init__(self, body: Body, event_shape: Shape) -> None:
        super().__init__()
        if not isinstance(body, Body):
            raise TypeError(
                f"{type(self).__name__}: expected body to be a pyro_vae.nets.Body; got {type(body).__name__}. "
                "Use nets.MLP, nets.ConvEncoder or nets.ConvDecoder, or subclass nets.Body."
            )
        self.event_shape = as_size(event_shape)
        self.body = body
        self.head = body.head(self.parameter_shapes())

    def parameter_shapes(self) -> dict[str, Size]:
        """Shapes of the unconstrained parameters the network makes, per datum."""
        raise NotImplementedError

    def distribution(self, **parameters: Tensor) -> TorchDistribution:
        """The distribution over y for parameters of shape (\\*lead, \\*shape)."""
        raise NotImplementedError

    def forward(self, *parents: Tensor) -> TorchDistribution:
        """The distribution over y given the parents."""
        return self.made(parents[0], **self.head(self.body(*parents)))

    def made(self, seen: Tensor, **parameters: Tensor) -> TorchDistribution:
        """:meth:`distribution`, with an error of ours for parameters that a network has made of unusable inputs."""
        try:
            return self.distribution(**parameters)
        except ValueError as error:
            if "Expected parameter" not in str(error):  # torch's words, with all the values
                raise
            finite = seen[seen.isfinite()]
            span = f"[{finite.min():.4g}, {finite.max():.4g}]" if finite.numel() else "no finite value"
            raise ValueError(
                f"{type(self).__name__}: expected a network with finite outputs; got NaN or infinity from inputs in "
                f"{span}, {seen.numel() - finite.numel()} of them not finite. Replace these, standardize reals "
                "(transform=nets.Standardize.of(x)), or take log1p of counts."
            ) from error
