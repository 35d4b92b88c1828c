"""Probabilities of counts: Binomial, Poisson, NegativeBinomial, each of the two with more zeros, Multinomial."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints

from pyro_vae import distributions
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.nets import Body, Shape

# Means of counts are kept within e^-30 and e^30, where their logarithms and gradients are finite in single precision.
_MAX_LOG_MEAN = 30.0
# Dispersions are kept within 1e-4 and 1e4. Beyond, log Gamma(theta + x) - log Gamma(theta) has no digits left in
# single precision, and the distribution is close to a Poisson's.
_MAX_LOG_DISPERSION = math.log(1e4)


class Binomial(Likelihood):
    r"""Elements x = spacing * k of k successes in n trials, :math:`P(k) = \binom{n}{k} p^k (1 - p)^{n - k}`.

    p = sigmoid(logits(z)). With n = 255 this is a likelihood of pixel levels k / 255, with a variance that the mean
    fixes. Accepts x = spacing * k, k = 0, ..., n. The network makes ``logits``, of the event's shape.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        total_count: n.
        spacing: distance between neighboring values of x: 1 for counts, ``1 / total_count`` (when left out) for
            levels in [0, 1].

    Raises:
        ValueError: ``total_count`` below 1 or ``spacing`` not above 0.

    Example:
        >>> from pyro_vae.nets import MLP
        >>> likelihood = Binomial(MLP(2, [8]), 1, total_count=2)  # of the levels 0, 1/2 and 1
        >>> p = likelihood.distribution(logits=torch.zeros(1))
        >>> [round(p.log_prob(torch.tensor([x])).exp().item(), 4) for x in (0.0, 0.5, 1.0)]
        [0.25, 0.5, 0.25]
    """

    def __init__(self, body: Body, event_shape: Shape, *, total_count: int = 255, spacing: float | None = None) -> None:
        if total_count < 1:
            raise ValueError(
                f"Binomial likelihood: expected total_count at least 1; got {total_count}. Give the largest count."
            )
        spacing = 1 / total_count if spacing is None else spacing
        if not spacing > 0:
            raise ValueError(
                f"Binomial likelihood: expected spacing above 0; got {spacing}. Use 1 for counts, 1/255 for pixels."
            )
        super().__init__(body, event_shape)
        self.total_count = total_count
        self.spacing = spacing
        self.support = distributions.lattice(constraints.integer_interval(0, total_count), spacing)
        self.accepts = f"values {spacing:.4g} * k, k = 0, ..., {total_count}"
        self.remedy = "Give the data's own total_count and spacing, or use Poisson for counts without an upper bound"

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape}

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        counts = distributions.Binomial(self.total_count, logits=logits)
        return distributions.Lattice(counts, self.spacing).to_event(len(self.event_shape))


class Counts(Likelihood):
    r"""Independent counts 0, 1, 2, ... with a mean that the network makes, or makes as a share of a library size.

    Without a library size, mean = exp(logits). With one, mean = library_size * softmax(logits), the softmax over all
    elements of the event: the expected counts of a datum sum to its library size, and the network says how they are
    shared out, as in scVI. The library size, the total count of a cell or document, is then the last context, (N,) or
    (N, 1), and does not enter the body. Log-means are kept within -30 and 30.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        library_size: whether the mean is a share of a library size.

    References:
        Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018,
        https://doi.org/10.1038/s41592-018-0229-2
    """

    support = constraints.nonnegative_integer
    accepts = "counts 0, 1, 2, ..."
    remedy = "Give the raw counts, without scaling or logarithm"

    def __init__(self, body: Body, event_shape: Shape, *, library_size: bool = False) -> None:
        self.contexts = ("library_size",) if library_size else ()
        super().__init__(body, event_shape)

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape}

    def log_mean(self, logits: Tensor, library_size: Tensor | None) -> Tensor:
        """The logarithm of the mean of every element; ``library_size`` of shape (\\*lead)."""
        if library_size is not None:
            dims = len(self.event_shape)
            logits = logits - logits.flatten(-dims).logsumexp(-1)[(..., *(None,) * dims)]
            logits = logits + library_size.log()[(..., *(None,) * dims)]
        return logits.clamp(-_MAX_LOG_MEAN, _MAX_LOG_MEAN)

    def check_context(self, x: Tensor, label: str, value: Tensor) -> None:
        if not bool(((value > 0) & value.isfinite()).all()):
            raise ValueError(
                f"{type(self).__name__} likelihood: expected a {label} above 0; got {float(value.min()):.4g}. Give the "
                "size itself, not its logarithm, and leave out empty data."
            )
        log_total = x.flatten(1).nansum(-1).log() if x.dim() > 1 else x.new_zeros(0)
        if len(log_total) == len(value) and bool(((value - log_total).abs() < 0.01).all() & (log_total > 1.1).all()):
            raise ValueError(
                f"{type(self).__name__} likelihood: expected a {label}; got the logarithm of each datum's total. Give "
                "the size itself, x.sum(-1)."
            )


class Poisson(Counts):
    r"""Independent counts, :math:`P(x) = \mu^x e^{-\mu} / x!`, whose variance is their mean :math:`\mu`.

    The network makes ``logits``, of the event's shape; see :class:`Counts` for :math:`\mu`. Accepts whole numbers from
    0 on, stored as floats.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        library_size: whether the mean is a share of a library size, the last context.

    Example:
        >>> from pyro_vae.nets import MLP
        >>> likelihood = Poisson(MLP(2, [8]), 2, library_size=True)
        >>> p = likelihood.distribution(logits=torch.tensor([[1.0, 3.0]]).log(), library_size=torch.tensor([8.0]))
        >>> p.mean.round(), p.log_prob(torch.zeros(1, 2)).round()  # 8 in shares of 1 to 3; P(0, 0) = e^(-2 - 6)
        (tensor([[2., 6.]]), tensor([-8.]))
    """

    def distribution(  # type: ignore[override]
        self, *, logits: Tensor, library_size: Tensor | None = None
    ) -> TorchDistribution:
        return distributions.Poisson(self.log_mean(logits, library_size).exp()).to_event(len(self.event_shape))


class ZeroInflatedPoisson(Counts):
    r"""Independent counts with more zeros: :math:`P(x) = g\,[x = 0] + (1 - g)\,\mu^x e^{-\mu} / x!`.

    g = sigmoid(gate_logits). The network makes ``logits`` and ``gate_logits``, both of the event's shape; see
    :class:`Counts` for :math:`\mu`. Accepts whole numbers from 0 on, stored as floats.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        library_size: whether the mean is a share of a library size, the last context.

    References:
        Lambert, "Zero-inflated Poisson regression, with an application to defects in manufacturing", 1992,
        https://doi.org/10.2307/1269547

    Example:
        >>> from pyro_vae.nets import MLP
        >>> likelihood = ZeroInflatedPoisson(MLP(2, [8]), 1)
        >>> p = likelihood.distribution(logits=torch.zeros(1), gate_logits=torch.zeros(1))  # a mean of 1, and g = 1/2
        >>> p.log_prob(torch.zeros(1)).exp(), p.log_prob(torch.ones(1)).exp()  # 1/2 + e^-1 / 2 and e^-1 / 2
        (tensor(0.6839), tensor(0.1839))
    """

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape, "gate_logits": self.event_shape}

    def distribution(  # type: ignore[override]
        self, *, logits: Tensor, gate_logits: Tensor, library_size: Tensor | None = None
    ) -> TorchDistribution:
        counts = distributions.Poisson(self.log_mean(logits, library_size).exp())
        return distributions.ZeroInflated(counts, gate_logits).to_event(len(self.event_shape))


class NegativeBinomial(Counts):
    r"""Independent over-dispersed counts of mean :math:`\mu` and variance :math:`\mu + \mu^2 / \theta`.

    .. math:: P(x) = \frac{\Gamma(x + \theta)}{x!\, \Gamma(\theta)}
        \Big(\frac{\theta}{\theta + \mu}\Big)^\theta \Big(\frac{\mu}{\theta + \mu}\Big)^x,

    scVI's parameterization: torch's with total_count = :math:`\theta`, logits = :math:`\log\mu - \log\theta`. The
    network makes ``logits``, of the event's shape; see :class:`Counts` for :math:`\mu`. The dispersion :math:`\theta`
    is a parameter of every element, shared by all data (scVI's ``dispersion="gene"``), within 1e-4 and 1e4. Accepts
    whole numbers from 0 on, stored as floats.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        library_size: whether the mean is a share of a library size, the last context.

    References:
        Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018,
        https://doi.org/10.1038/s41592-018-0229-2

    Example:
        >>> from pyro_vae.nets import MLP
        >>> likelihood = NegativeBinomial(MLP(2, [8]), 5, library_size=True)
        >>> likelihood(torch.zeros(3, 2), torch.tensor([10.0, 20.0, 30.0])).mean.detach().sum(-1).round()
        tensor([10., 20., 30.])
    """

    def __init__(self, body: Body, event_shape: Shape, *, library_size: bool = False) -> None:
        super().__init__(body, event_shape, library_size=library_size)
        self.log_dispersion = nn.Parameter(torch.zeros(self.event_shape))

    def distribution(  # type: ignore[override]
        self, *, logits: Tensor, library_size: Tensor | None = None
    ) -> TorchDistribution:
        log_mean, log_dispersion = self.log_mean(logits, library_size), self.clamped_log_dispersion
        counts = distributions.NegativeBinomial(log_dispersion.exp(), logits=log_mean - log_dispersion)
        return counts.to_event(len(self.event_shape))

    @property
    def clamped_log_dispersion(self) -> Tensor:
        """The logarithm of theta, of the event's shape."""
        return self.log_dispersion.clamp(-_MAX_LOG_DISPERSION, _MAX_LOG_DISPERSION)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""Counts that are 0 with probability g, and otherwise a :class:`NegativeBinomial`'s.

    :math:`P(x) = g [x = 0] + (1 - g) P_{NB}(x)`, g = sigmoid(gate_logits(z)): scVI's zero inflation ("dropout"). The
    network makes ``logits`` and ``gate_logits``, both of the event's shape. Accepts whole numbers from 0 on, stored as
    floats.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        library_size: whether the negative binomial's mean is a share of a library size, the last context.

    References:
        Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018,
        https://doi.org/10.1038/s41592-018-0229-2

    Example:
        >>> from pyro_vae.nets import MLP
        >>> likelihood = ZeroInflatedNegativeBinomial(MLP(2, [8]), 1)
        >>> p = likelihood.distribution(logits=torch.zeros(1), gate_logits=torch.zeros(1))  # mean, theta 1 and g = 1/2
        >>> [round(p.log_prob(torch.tensor([x])).exp().item(), 4) for x in (0.0, 1.0)]  # 1/2 + (1/2)^2 and (1/2)^3
        [0.75, 0.125]
    """

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape, "gate_logits": self.event_shape}

    def distribution(  # type: ignore[override]
        self, *, logits: Tensor, gate_logits: Tensor, library_size: Tensor | None = None
    ) -> TorchDistribution:
        log_mean, log_dispersion = self.log_mean(logits, library_size), self.clamped_log_dispersion
        counts = distributions.NegativeBinomial(log_dispersion.exp(), logits=log_mean - log_dispersion)
        return distributions.ZeroInflated(counts, gate_logits).to_event(len(self.event_shape))


class Multinomial(Likelihood):
    r"""Counts x of D words in a document of n: :math:`P(x) = n! \prod_d p_d^{x_d} / x_d!`, p = softmax(logits(z)).

    n, the document's length, is the last context, (N,) or (N, 1), does not enter the body, and is the sum of x. Accepts
    whole numbers from 0 on, stored as floats. The network makes ``logits``, of the event's shape.

    Args:
        body: network from z to features.
        event_shape: number of words D; leading dims of a longer shape would be documents of their own, so it has one.

    Raises:
        ValueError: ``event_shape`` has more than one dim.

    References:
        Miao, Yu, Blunsom, "Neural Variational Inference for Text Processing", 2016, https://arxiv.org/abs/1511.06038

    Example:
        >>> from pyro_vae.nets import MLP
        >>> Multinomial(MLP(2, [8]), 5)(torch.zeros(3, 2), torch.tensor([10.0, 20.0, 30.0])).sample().sum(-1)
        tensor([10., 20., 30.])
    """

    support = constraints.independent(constraints.nonnegative_integer, 1)
    accepts = "counts 0, 1, 2, ..."
    remedy = "Give the raw counts of every word, without scaling or logarithm"
    contexts = ("document_length",)

    def __init__(self, body: Body, event_shape: Shape) -> None:
        super().__init__(body, event_shape)
        if len(self.event_shape) != 1:
            raise ValueError(
                f"Multinomial likelihood: expected an event_shape (D,); got {tuple(self.event_shape)}. "
                "Flatten the data."
            )

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape}

    def distribution(self, *, logits: Tensor, document_length: Tensor) -> TorchDistribution:  # type: ignore[override]
        return distributions.Multinomial(document_length, logits)

    def check_context(self, x: Tensor, label: str, value: Tensor) -> None:
        wrong = x.sum(-1) != value
        if bool(wrong.any()):
            datum = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"Multinomial likelihood: expected a {label} that is the sum of each datum's counts; got "
                f"{float(value[datum]):g} and {float(x[datum].sum()):g} for datum {datum}. Give x.sum(-1)."
            )
