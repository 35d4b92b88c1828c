"""Closed forms of KL(q || p) that torch and Pyro lack, registered for ``torch.distributions.kl_divergence``."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from pyro_vae.distributions.hyperspherical_uniform import HypersphericalUniform, log_surface_area
from pyro_vae.distributions.log_dirichlet import LogDirichlet
from pyro_vae.distributions.log_logistic_normal import LogLogisticNormal
from pyro_vae.distributions.von_mises_fisher import VonMisesFisher


def _von_mises_fisher(q: VonMisesFisher, p: HypersphericalUniform) -> Tensor:
    return log_surface_area(p.event_shape[0]) - q.entropy()


def _log_logistic_normal(q: LogLogisticNormal, p: LogLogisticNormal) -> Tensor:
    # softmax(x, 0) is a bijection, under which the divergence does not change
    return kl_divergence(Normal(q.loc, q.scale), Normal(p.loc, p.scale)).sum(-1)


def _log_dirichlet(q: LogDirichlet, p: LogDirichlet) -> Tensor:
    in_double = [type(d.proportions)(d.concentration.double(), validate_args=False) for d in (q, p)]
    return kl_divergence(*in_double).to(q.concentration.dtype)


def _multivariate_normal(
    q: MultivariateNormal | LowRankMultivariateNormal,
    p: Independent[Normal],
) -> Tensor:
    if not isinstance(p.base_dist, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    loc, scale = p.base_dist.loc, p.base_dist.scale
    distance = (q.variance + (q.mean - loc) ** 2) / scale**2
    return (distance / 2 + scale.log() + math.log(2 * math.pi) / 2).sum(-1) - q.entropy()


register_kl(VonMisesFisher, HypersphericalUniform)(_von_mises_fisher)
register_kl(LogLogisticNormal, LogLogisticNormal)(_log_logistic_normal)
register_kl(LogDirichlet, LogDirichlet)(_log_dirichlet)
register_kl(MultivariateNormal, Independent)(_multivariate_normal)
register_kl(LowRankMultivariateNormal, Independent)(_multivariate_normal)
