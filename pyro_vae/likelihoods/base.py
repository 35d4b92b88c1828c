"""The base class of likelihoods p(x|z): a family that knows which data it is a density of."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.family import Family


class Likelihood(Family):
    """A density p(x|z) of data x of shape ``event_shape`` given latents z.

    Besides what :class:`~pyro_vae.family.Family` asks, a likelihood states the data it accepts. All three statements
    are class attributes, or attributes of an instance where an option decides.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae.nets import MLP
        >>> class Waiting(Likelihood):
        ...     support, accepts, remedy = constraints.positive, "times above 0", "Drop the zeros"
        ...
        ...     def parameter_shapes(self):
        ...         return {"log_rate": self.event_shape}
        ...
        ...     def distribution(self, *, log_rate):
        ...         return dist.Exponential(log_rate.exp()).to_event(len(self.event_shape))
        >>> likelihood = Waiting(MLP(2, [8]), 3)
        >>> likelihood.distribution(log_rate=torch.zeros(3)).log_prob(torch.ones(3))  # e^-1 for each element
        tensor(-3.)
        >>> likelihood.check_data(torch.zeros(1, 3))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Waiting likelihood: expected times above 0; got values in [0, 0], the first wrong ...
    """

    support: constraints.Constraint
    """Where one element of x may lie; of ``event_dim`` above 0 where the elements depend on each other."""
    accepts: str
    """The same in words, for messages and tables."""
    remedy: str
    """What to do with data outside the support."""
    contexts: tuple[str, ...] = ()
    """Parents that do not enter the body: the last arguments of ``forward``, by the name ``distribution`` gives them.

    Each is one number per datum, of shape (N,) or (N, 1)."""
    missing: bool = False
    """Whether NaN in x stands for a missing value; a guide is then given 0 in its place."""
    calibrated: bool = False
    """Whether something is to be set in closed form at every epoch, by :meth:`calibrate`."""

    def forward(self, *parents: Tensor) -> TorchDistribution:
        """p(x|z) for z, the body's contexts, and the ``contexts`` of the likelihood, in this order.

        Raises:
            TypeError: a context too few or too many.
        """
        inputs = len(self.body.input_shapes)
        if len(parents) != inputs + len(self.contexts):
            raise TypeError(
                f"{type(self).__name__} likelihood: expected {inputs} inputs of the body"
                f"{''.join(f' and {context}' for context in self.contexts)}; got {len(parents)} in all. "
                "Give z and the contexts in this order; a body takes contexts with context_shapes=..."
            )
        context = dict(zip(self.contexts, map(_per_datum, parents[inputs:]), strict=True))
        return self.made(parents[0], **self.head(self.body(*parents[:inputs])), **context)

    def check_shape(self, x: Tensor) -> None:
        """Raises for data that are not of shape (N, \\*event_shape).

        Raises:
            ValueError: naming both shapes.
        """
        if x.dim() == 0 or x.shape[1:] != self.event_shape:
            raise ValueError(
                f"{type(self).__name__} likelihood: expected data of shape (N, "
                f"{', '.join(map(str, self.event_shape))}); got {tuple(x.shape)}. "
                "Reshape the data, or give the likelihood the event_shape of the data."
            )

    def check_data(self, x: Tensor, *context: Tensor) -> None:
        """Raises for data this density cannot have produced.

        Args:
            x: data of shape (N, \\*event_shape).
            context: what ``forward`` takes beside z. Where there is none, only x is looked at.

        Raises:
            TypeError: integer data, which networks cannot take.
            ValueError: a wrong shape, or values outside the support; the message holds the remedy.
        """
        name = f"{type(self).__name__} likelihood"
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected data as a tensor; got {type(x).__name__}. Convert with torch.as_tensor.")
        if not x.is_floating_point():
            raise TypeError(f"{name}: expected floating point data; got {x.dtype}. Convert it with .float().")
        self.check_shape(x)
        # Constraints such as torch's real let infinity pass.
        allowed = self.support.check(x)
        if not bool(allowed.all() & x.isfinite().all()):
            wrong = ~x.isfinite() if bool(allowed.all()) else ~allowed
            place = wrong.nonzero()[0].tolist()
            finite = x[torch.isfinite(x)]
            span = f"[{finite.min():.4g}, {finite.max():.4g}]" if finite.numel() else "no finite value"
            lost = x.numel() - finite.numel()
            raise ValueError(
                f"{name}: expected {self.accepts}; got values in {span}"
                f"{f' and {lost} NaN or infinite' if lost else ''}, the first wrong one at {place}. {self.remedy}."
            )
        if context:
            for label, value in zip(self.contexts, context[len(context) - len(self.contexts) :], strict=True):
                self.check_context(x, label, _per_datum(value))

    def check_context(self, x: Tensor, label: str, value: Tensor) -> None:
        """Raises for a context this density cannot use.

        Args:
            x: data that fits the density.
            label: the name of one of ``contexts``.
            value: the context, (N,).
        """
        raise NotImplementedError

    def calibrate(self, x: Tensor, mean: Tensor) -> None:
        """Sets in closed form what no gradient learns; training calls it at every epoch where ``calibrated`` is true.

        Args:
            x: data, (N, \\*event_shape).
            mean: E[x|z] at a draw z ~ q(z|x) for each of them, of the same shape.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"


def _per_datum(context: Tensor) -> Tensor:
    """(N, 1) -> (N,), as a column of a table comes."""
    return context.squeeze(-1) if context.dim() > 1 and context.shape[-1] == 1 else context
