"""Likelihoods that change what data another one accepts: MissingAtRandom, Standardized, Censored, Dequantized."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints

from pyro_vae import checks, distributions
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.continuous import LogNormal, Normal
from pyro_vae.nets import Body, Head, Standardize, broadcasts


class _Wrapper(Likelihood):
    """A likelihood made from another: it shares its network and parameters, and changes its distribution."""

    def __init__(self, likelihood: Likelihood) -> None:
        nn.Module.__init__(self)  # not Family's, which would build a second head
        if not isinstance(likelihood, Likelihood):
            raise TypeError(
                f"{type(self).__name__} likelihood: expected a pyro_vae.likelihoods.Likelihood; got "
                f"{type(likelihood).__name__}. Build the likelihood first, and wrap it."
            )
        self.likelihood = likelihood
        self.event_shape = likelihood.event_shape
        self.contexts = likelihood.contexts
        self.calibrated = likelihood.calibrated

    @property
    def body(self) -> Body:  # type: ignore[override]
        return self.likelihood.body

    @property
    def head(self) -> Head:  # type: ignore[override]
        return self.likelihood.head

    def parameter_shapes(self) -> dict[str, Size]:
        return self.likelihood.parameter_shapes()

    def check_context(self, x: Tensor, label: str, value: Tensor) -> None:
        self.likelihood.check_context(x, label, value)

    def extra_repr(self) -> str:
        return ""  # the wrapped likelihood is shown with all it has


class MissingAtRandom(_Wrapper):
    r"""Another likelihood of data in which NaN stands for a value that is missing.

    :math:`\log p(x|z) = \sum_{d \text{ observed}} \log p_d(x_d|z)`: the missing values are integrated out, which for a
    product over elements is leaving them out. An ELBO with it bounds the marginal likelihood of the observed values.
    It is the whole likelihood where values are missing at random: whether one is missing depends on the observed values
    alone. A guide that is a network needs numbers: :class:`~pyro_vae.VAE` gives the encoder 0 in their place, after a
    transform ``nets.Standardize``; a body of ``masked=True`` is also told which they are. Samples and means are
    complete rows, hence imputations.

    Accepts what the other likelihood accepts, and NaN. Works with every likelihood that is a product over elements, and
    with a :class:`Mixed` of such.

    Args:
        likelihood: the likelihood of complete data.

    Raises:
        ValueError: the likelihood couples its elements, as OneHotCategorical does.

    References:
        Mattei, Frellsen, "MIWAE: Deep Generative Modeling and Imputation of Incomplete Data Sets", 2019,
        https://arxiv.org/abs/1812.02633; Rubin, "Inference and missing data", 1976,
        https://doi.org/10.1093/biomet/63.3.581

    Example:
        >>> from pyro_vae.likelihoods import Normal
        >>> from pyro_vae.nets import MLP
        >>> likelihood = MissingAtRandom(Normal(MLP(2, [8]), 3, scale=1.0))
        >>> likelihood(torch.zeros(4, 2)).log_prob(torch.full((4, 3), torch.nan))
        tensor([0., 0., 0., 0.], grad_fn=<SumBackward1>)
    """

    missing = True
    placeholder: Tensor

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__(likelihood)
        if likelihood.support.event_dim > 0:
            raise ValueError(
                f"MissingAtRandom likelihood: expected a product over elements; got {type(likelihood).__name__}, whose "
                "elements depend on each other. Use Categorical for categories, or DiscretizedLogistic for pixels."
            )
        # Within the support of every element, and away from its edges where the density may be infinite there.
        placeholder = torch.zeros(self.event_shape)
        for value in (0.5, 1.0):
            placeholder = torch.where(likelihood.support.check(placeholder), placeholder, value)
        self.register_buffer("placeholder", placeholder, persistent=False)
        self.accepts = f"{likelihood.accepts}, or NaN where missing"
        self.table = getattr(likelihood, "table", None)  # of Tabular: what the columns are
        self.remedy = likelihood.remedy

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return distributions.or_missing(self.likelihood.support, self.placeholder)

    def distribution(self, **parameters: Tensor) -> TorchDistribution:
        return distributions.MissingAtRandom(self.likelihood.distribution(**parameters), self.placeholder)

    def check_data(self, x: Tensor, *context: Tensor) -> None:
        self.check_shape(x)
        self.likelihood.check_data(torch.where(x.isnan(), self.placeholder.to(x.dtype), x), *context)

    def calibrate(self, x: Tensor, mean: Tensor) -> None:
        self.likelihood.calibrate(x, mean)


class Standardized(_Wrapper):
    r"""A likelihood of reals on any scale: the network makes standardized data, the density is of x in its own units.

    :math:`\log p(x|z) = \log p_y(y|z) - \sum_d \log \mathrm{deviation}_d` with
    :math:`y = (x - \mathrm{mean}) / \mathrm{deviation}`. Samples and means are in the units of x, and log-likelihoods
    count the log-Jacobian: a column in millimeters in place of meters costs log 1000 nats a datum, as it must, and the
    same network is trained. Give the encoder the same scale, ``nets.MLP(..., transform=standardize)``.

    Scales of the other likelihood (``scale``, ``min_scale``) are in units of the deviation. Accepts any finite x.

    Args:
        likelihood: of reals: Normal, SigmaNormal, Laplace, StudentT.
        standardize: mean and deviation, ``nets.Standardize.of(train)`` of the training data.

    Raises:
        ValueError: the likelihood is not of reals, or marks missing values, or a shape that does not fit.

    Example:
        >>> from pyro_vae.likelihoods import Normal
        >>> from pyro_vae.nets import MLP, Standardize
        >>> meters = torch.tensor([[1.6], [1.7], [1.8]])
        >>> normal = Normal(MLP(2, [8]), 1, scale=1.0)
        >>> likelihoods = [Standardized(normal, Standardize.of(x)) for x in (meters, 1000 * meters)]
        >>> z = torch.zeros(3, 2)
        >>> likelihoods[0](z).log_prob(meters) - likelihoods[1](z).log_prob(1000 * meters)
        tensor([6.9078, 6.9078, 6.9078], grad_fn=<SubBackward0>)
    """

    def __init__(self, likelihood: Likelihood, standardize: Standardize) -> None:
        super().__init__(likelihood)
        checks.instance("Standardized likelihood", "standardize", standardize, Standardize, "Use Standardize.of(x).")
        if isinstance(likelihood, MissingAtRandom):
            raise ValueError(
                "Standardized likelihood: expected a likelihood of complete data; got MissingAtRandom. Wrap them the "
                "other way round."
            )
        if likelihood.support is not constraints.real:
            raise ValueError(
                f"Standardized likelihood: expected a likelihood of reals; got {type(likelihood).__name__}, which "
                f"accepts {likelihood.accepts}. Use it as it is, or Normal, Laplace, StudentT or SigmaNormal."
            )
        for name, value in standardize.named_buffers():
            if not broadcasts(value.shape, self.event_shape):
                raise ValueError(
                    f"Standardized likelihood: expected a {name} of shape {tuple(self.event_shape)}; got "
                    f"{tuple(value.shape)}. Use Standardize.of(x) of the data that the likelihood is of."
                )
        self.standardize = standardize
        self.support, self.accepts, self.remedy = likelihood.support, likelihood.accepts, likelihood.remedy

    def distribution(self, **parameters: Tensor) -> TorchDistribution:
        base = self.likelihood.distribution(**parameters)
        return distributions.Affine(base, self.standardize.mean, self.standardize.deviation)

    def calibrate(self, x: Tensor, mean: Tensor) -> None:
        self.likelihood.calibrate(self.standardize(x), self.standardize(mean))


class Censored(_Wrapper):
    r"""A likelihood of times of which some are only known to exceed the end of observation (right-censored).

    .. math:: \log p(x|z) = \log p_t(x|z) \text{ for } x < c, \qquad \log P(t \ge c|z) \text{ for } x = c.

    The limit c is the last context, (N,) or (N, 1), and does not enter the body: the time at which the observation
    ended where x is that time, and infinity, or the planned end, where the event was seen at x.
    ``limit = torch.where(event_was_seen, torch.inf, x)``. Draws given such a limit are no replicates of the data, whose
    limit tells whether the event was seen: for ``evaluation.report`` and ``simulate`` give the planned end of all where
    it is known. Accepts what the other likelihood accepts, up to the limit.

    Args:
        likelihood: of the times without censoring, LogNormal or Normal.

    Raises:
        ValueError: another likelihood.

    References:
        Tobin, "Estimation of relationships for limited dependent variables", 1958, https://doi.org/10.2307/1907382

    Example:
        >>> from pyro_vae.likelihoods import LogNormal
        >>> from pyro_vae.nets import MLP
        >>> times = Censored(LogNormal(MLP(2, [8]), 1, scale=1.0))
        >>> limit = torch.tensor([0.5, torch.inf])
        >>> bool((times(torch.zeros(2, 2), limit).sample((1000,))[:, 0] <= 0.5).all())
        True
    """

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__(likelihood)
        if not isinstance(likelihood, LogNormal | Normal):
            raise ValueError(
                f"Censored likelihood: expected a LogNormal or a Normal; got {type(likelihood).__name__}. "
                "Use LogNormal for times."
            )
        self.contexts = ("limit",)
        self.support, self.remedy = likelihood.support, likelihood.remedy
        self.accepts = f"{likelihood.accepts}, up to the limit"

    def distribution(self, *, limit: Tensor, **parameters: Tensor) -> TorchDistribution:  # type: ignore[override]
        dims = len(self.event_shape)
        times: Any = self.likelihood.distribution(**parameters)
        return distributions.Censored(times.base_dist, limit[(..., *(None,) * dims)]).to_event(dims)

    def check_context(self, x: Tensor, label: str, value: Tensor) -> None:
        beyond = (x > value[(..., *(None,) * len(self.event_shape))]).flatten(1).any(1)
        if bool(beyond.any() | value.isnan().any()):
            raise ValueError(
                f"Censored likelihood: expected a limit of at least each datum; got {int(beyond.sum())} data beyond "
                "theirs, or NaN. Give torch.where(event_was_seen, torch.inf, x)."
            )


class Dequantized(_Wrapper):
    r"""A continuous likelihood as a probability of discrete data x = k / (levels - 1), by uniform dequantization.

    A continuous density of discrete data has no upper bound: it can put ever narrower peaks on the levels. Here x
    stands for its cell, :math:`y = (k + u) / \mathrm{levels}` in (0, 1) with a fresh :math:`u \sim U[0, 1)` at every
    evaluation, and ``log_prob`` is :math:`\log p(y|z) - D \log \mathrm{levels}`, an estimate of the log-probability of
    the cell that is low in expectation. Its nats compare with those of discrete likelihoods, and
    :func:`~pyro_vae.evaluation.bits_per_dim` needs no correction for it: the constant is the "+ 8" of 8-bit data. See
    :class:`pyro_vae.distributions.Dequantized` for what may be done with a log-density that is random.

    Accepts the levels k / (levels - 1) in [0, 1].

    Args:
        likelihood: a continuous likelihood on the real line or the unit interval.
        levels: number of levels, 256 for 8-bit images.

    Raises:
        ValueError: the likelihood is discrete or marks missing values, or ``levels`` is below 2.

    References:
        Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016,
        https://arxiv.org/abs/1511.01844; Uria, Murray, Larochelle, "RNADE", 2013, https://arxiv.org/abs/1306.0186

    Example:
        >>> from pyro_vae.likelihoods import LogitNormal
        >>> from pyro_vae.nets import MLP
        >>> likelihood = Dequantized(LogitNormal(MLP(2, [8]), (1, 4, 4)))
        >>> likelihood(torch.zeros(3, 2)).log_prob(torch.zeros(3, 1, 4, 4)).shape
        torch.Size([3])
    """

    def __init__(self, likelihood: Likelihood, *, levels: int = 256) -> None:
        super().__init__(likelihood)
        if isinstance(likelihood, MissingAtRandom) or likelihood.support.is_discrete:
            remedy = (
                "Wrap them the other way round"
                if isinstance(likelihood, MissingAtRandom)
                else "Use the likelihood as it is"
            )
            raise ValueError(
                "Dequantized likelihood: expected a continuous likelihood of complete data; got "
                f"{type(likelihood).__name__}. {remedy}."
            )
        if levels < 2:
            raise ValueError(f"Dequantized likelihood: expected levels at least 2; got {levels}. Use 256 for 8 bits.")
        self.levels = levels
        self.support = distributions.lattice(constraints.integer_interval(0, levels - 1), 1 / (levels - 1))
        self.accepts = f"values k / {levels - 1}, k = 0, ..., {levels - 1}"
        self.remedy = "Scale the levels to [0, 1] and give their number as levels=..."

    def distribution(self, **parameters: Tensor) -> TorchDistribution:
        return distributions.Dequantized(self.likelihood.distribution(**parameters), self.levels)

    def calibrate(self, x: Tensor, mean: Tensor) -> None:
        center = (mean * (self.levels - 1) + 0.5) / self.levels
        self.likelihood.calibrate(distributions.dequantize(x, self.levels), center)
