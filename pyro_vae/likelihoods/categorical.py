"""Probabilities of categories, ordered levels and pixel levels: Categorical, Ordinal, OneHotCategorical."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

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


class Ordinal(Likelihood):
    r"""Independent elements of K levels 0, 1, ..., K - 1 with an order, by proportional odds.

    .. math:: P(x \le k) = \sigma(c_k - f(z)), \quad c_0 < c_1 < ... < c_{K - 2}.

    A level is where a logistic variable around f falls among cut points, which belong to each element and are shared by
    all data: grades, ratings, stages. The network makes ``location``, f, of the event's shape, one number where
    :class:`Categorical` makes K. Accepts 0, 1, ..., num_levels - 1. ``mean`` takes levels for numbers.

    Args:
        num_levels: K, at least 2.
        body: network from z to features.
        event_shape: shape of one datum.

    Raises:
        ValueError: ``num_levels`` below 2.

    References:
        McCullagh, "Regression models for ordinal data", 1980, https://doi.org/10.1111/j.2517-6161.1980.tb01109.x

    Example:
        >>> import torch
        >>> from pyro_vae.nets import MLP
        >>> stage = Ordinal(4, MLP(2, [8]), 1)
        >>> p = stage.distribution(location=torch.tensor([0.0]))
        >>> at_most = torch.stack([p.log_prob(torch.tensor([k])).exp() for k in (0.0, 1.0, 2.0)]).cumsum(0)
        >>> bool(torch.allclose(at_most, (stage.cut_points[0] - 0.0).sigmoid()))
        True
    """

    def __init__(self, num_levels: int, body: Body, event_shape: Shape) -> None:
        if num_levels < 2:
            raise ValueError(
                f"Ordinal likelihood: expected num_levels at least 2; got {num_levels}. Give their number."
            )
        super().__init__(body, event_shape)
        self.num_levels = num_levels
        self.support = distributions.lattice(constraints.integer_interval(0, num_levels - 1), 1.0)
        self.accepts = f"levels k = 0, ..., {num_levels - 1}"
        self.remedy = "Number the levels from 0 on in their order, and give their number"
        # At the start the levels are equally likely where f is 0.
        start = torch.logit(torch.arange(1, num_levels) / num_levels)
        self.first_cut = nn.Parameter(start[0].expand(self.event_shape).clone())
        gaps = (start[1:] - start[:-1]).expm1().log()  # of which softplus makes the gaps
        self.raw_gaps = nn.Parameter(gaps.expand(*self.event_shape, num_levels - 2).clone())

    @property
    def gaps(self) -> Tensor:
        """Distances of neighboring cut points, (\\*event_shape, K - 2): above 0, so that each level is possible."""
        return 1e-3 + softplus(self.raw_gaps)

    @property
    def cut_points(self) -> Tensor:
        """c, (\\*event_shape, K - 1)."""
        return torch.cat([self.first_cut[..., None], self.first_cut[..., None] + self.gaps.cumsum(-1)], -1)

    def parameter_shapes(self) -> dict[str, Size]:
        return {"location": self.event_shape}

    def distribution(self, *, location: Tensor) -> TorchDistribution:  # type: ignore[override]
        above = self.cut_points - location[..., None]
        # log(sigma(a) - sigma(b)) = log sigma(a) + log sigma(-b) + log(1 - e^(b - a)), which loses no digits.
        inner = logsigmoid(above[..., 1:]) + logsigmoid(-above[..., :-1]) + torch.log(-torch.expm1(-self.gaps))
        logits = torch.cat([logsigmoid(above[..., :1]), inner, logsigmoid(-above[..., -1:])], -1)
        levels = distributions.Lattice(dist.Categorical(logits=logits), 1.0)
        return levels.to_event(len(self.event_shape))


class OneHotCategorical(Likelihood):
    r"""A one-hot vector of D categories: :math:`P(x) = \prod_d p_d^{x_d}`, p = softmax(logits(z)).

    Accepts vectors along the last dim of the event with a single 1 and otherwise 0; other dims are independent. The
    network makes ``logits``, of the event's shape. ``mean`` is p.

    Args:
        body: network from z to features.
        event_shape: shape of one datum, of which the last dim is D.

    Example:
        >>> import torch
        >>> from pyro_vae.nets import MLP
        >>> likelihood = OneHotCategorical(MLP(2, [8]), 3)
        >>> p = likelihood.distribution(logits=torch.tensor([1.0, 2.0, 5.0]).log())
        >>> p.mean, p.log_prob(torch.tensor([0.0, 0.0, 1.0])).exp()
        (tensor([0.1250, 0.2500, 0.6250]), tensor(0.6250))
    """

    support = constraints.one_hot
    accepts = "one-hot vectors along the last dim"
    remedy = "Encode the categories with torch.nn.functional.one_hot(x).float(), or use Categorical for their numbers"

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape}

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.OneHotCategorical(logits=logits).to_event(len(self.event_shape) - 1)
