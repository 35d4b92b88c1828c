"""Probabilities of categories and of pixel levels without a shape of their own: Categorical, OneHotCategorical."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae import distributions
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.nets import Body, Shape


class Categorical(Likelihood):
    r"""Independent elements x = spacing * k of category k, :math:`P(k) = \mathrm{softmax}(\mathrm{logits}(z))_k`.

    Shapes: C channels, H rows, W columns.

    256 categories of spacing 1/255 are pixel levels with a free probability each. Accepts x = spacing * k,
    k = 0, ..., num_categories - 1. The network makes ``logits``: num_categories for every element, along the first dim
    of the event, (num_categories * C, H, W) for an image (C, H, W). ``mean`` takes the categories for levels; for
    categories without an order it is but a number between them.

    Args:
        num_categories: K, at least 2.
        body: network from z to features.
        event_shape: shape of one datum.
        spacing: distance between neighboring values of x: 1 for categories 0, 1, 2, ..., ``1/255`` for pixel levels.

    Raises:
        ValueError: ``num_categories`` below 2, or ``spacing`` not above 0.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from pyro_vae.nets import MLP
        >>> three = partial(Categorical, 3)
        >>> three(MLP(2, [8]), 5)(torch.zeros(100, 2)).sample().unique()
        tensor([0., 1., 2.])
    """

    def __init__(self, num_categories: int, body: Body, event_shape: Shape, *, spacing: float = 1.0) -> None:
        if num_categories < 2:
            raise ValueError(
                f"Categorical likelihood: expected num_categories at least 2; got {num_categories}. Give their number."
            )
        if not spacing > 0:
            raise ValueError(
                f"Categorical likelihood: expected spacing above 0; got {spacing}. Use 1 for categories, 1/255 for "
                "pixels."
            )
        self.num_categories = num_categories
        super().__init__(body, event_shape)
        self.spacing = spacing
        self.support = distributions.lattice(constraints.integer_interval(0, num_categories - 1), spacing)
        self.accepts = f"values {spacing:.4g} * k, k = 0, ..., {num_categories - 1}"
        self.remedy = "Number the categories from 0 on, and give their number and the spacing of the data's values"

    def parameter_shapes(self) -> dict[str, Size]:
        first, *rest = self.event_shape
        return {"logits": Size([self.num_categories * first, *rest])}

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        dims = len(self.event_shape)
        logits = logits.unflatten(-dims, (self.num_categories, self.event_shape[0])).movedim(-dims - 1, -1)
        return distributions.Lattice(dist.Categorical(logits=logits), self.spacing).to_event(dims)


class OneHotCategorical(Likelihood):
    r"""A one-hot vector of D categories: :math:`P(x) = \prod_d p_d^{x_d}`, p = softmax(logits(z)).

    Accepts vectors along the last dim of the event with a single 1 and otherwise 0; other dims are independent. The
    network makes ``logits``, of the event's shape. ``mean`` is p.

    Args:
        body: network from z to features.
        event_shape: shape of one datum, of which the last dim is D.
    """

    support = constraints.one_hot
    accepts = "one-hot vectors along the last dim"
    remedy = "Encode the categories with torch.nn.functional.one_hot(x).float(), or use Categorical for their numbers"

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape}

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.OneHotCategorical(logits=logits).to_event(len(self.event_shape) - 1)
