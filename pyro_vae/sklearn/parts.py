"""The VAE of an estimator, of parts that are asked for by name or made by the user's functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.distributions import constraints

from pyro_vae import checks, conditionals, likelihoods, priors
from pyro_vae.models import VAE
from pyro_vae.nets import MLP, Standardize

Part = str | Callable[..., Any]

_RESOLVED = 1e-3  # of a column's deviation: what rounding to single precision, in which networks are trained, may take


def _part(who: str, role: str, part: Part, module: ModuleType, **arguments: Any) -> Any:
    """A part of the VAE: of the class of a name, if these are all arguments that it needs, or of a function."""
    if not isinstance(part, str):
        if not callable(part):
            raise TypeError(
                f"{who}: expected {role} a name or a function; got {type(part).__name__}. Give a class of "
                f"{module.__name__}, or functools.partial of one with its options."
            )
        return part(*arguments.values())

    def needs(name: str) -> set[str]:
        parameters = inspect.signature(getattr(module, name)).parameters
        return {each for each, parameter in parameters.items() if parameter.default is parameter.empty}

    base = {"Likelihood", "Conditional"}
    names = [name for name in module.__all__ if name not in base and needs(name) == arguments.keys()]
    return getattr(module, checks.choice(who, role, part, names))(**arguments)


def _likelihood_for(x: Tensor) -> str:
    """What ``"auto"`` stands for."""
    values = x[~x.isnan()]
    if bool(((values == 0) | (values == 1)).all()):
        return "Bernoulli"
    return "NegativeBinomial" if bool(((values >= 0) & (values == values.round())).all()) else "Normal"


def built(estimator: Any, x: Tensor) -> VAE:
    """The VAE of an estimator.

    Shapes: N data, D features.

    Args:
        estimator: with its arguments as attributes.
        x: data (N, D), NaN where a value is missing.

    Raises:
        TypeError, ValueError: arguments of the estimator that do not fit, or data that single precision cannot hold.
    """
    who, missing = type(estimator).__name__, bool(x.isnan().any())
    latent_dim = checks.whole(who, "latent_dim", estimator.latent_dim)
    hidden = list(checks.instance(who, "hidden", estimator.hidden, (list, tuple), "Give one width a layer, (64,)."))
    if missing and bool(x.isnan().all(0).any()):
        column = int(x.isnan().all(0).nonzero()[0])
        raise ValueError(f"{who}: expected a value in every column; got NaN alone in column {column}. Leave it out.")
    name = _likelihood_for(x) if estimator.likelihood == "auto" else estimator.likelihood
    decoder = MLP(latent_dim, hidden[::-1])
    likelihood = _part(who, "likelihood", name, likelihoods, body=decoder, event_shape=x.shape[1])
    _check_likelihood(who, likelihood)
    standardize = Standardize.of(x)
    if likelihood.support is constraints.real and not isinstance(likelihood, likelihoods.Standardized):
        _check_resolution(who, x, standardize.deviation)
        likelihood = likelihoods.Standardized(likelihood, standardize)
    if missing and not likelihood.missing:
        likelihood = likelihoods.MissingAtRandom(likelihood)
    counts = getattr(likelihood, "likelihood", likelihood).support is constraints.nonnegative_integer
    encoder = MLP(x.shape[1], hidden, transform="log1p" if counts else standardize, masked=missing)
    return VAE(
        prior=_part(who, "prior", estimator.prior, priors, latent_dim=latent_dim),
        likelihood=likelihood,
        posterior=_part(who, "posterior", estimator.posterior, conditionals, body=encoder, latent_dim=latent_dim),
    )


def _check_likelihood(who: str, likelihood: Any) -> None:
    remedy = "Give a name, or a function of a body and the number of features."
    checks.instance(who, "likelihood", likelihood, likelihoods.Likelihood, remedy)
    if likelihood.contexts:
        raise ValueError(
            f"{who}: expected a likelihood of rows alone; got {type(likelihood).__name__}, which takes "
            f"{' and '.join(likelihood.contexts)} too. Use a VAE and pyro_vae.fit, which take contexts."
        )


def _check_resolution(who: str, x: Tensor, deviation: Tensor) -> None:
    """Raises for columns of which rounding to single precision takes a part that matters."""
    lost = (x - x.float()).abs().nan_to_num(0.0).amax(0) > _RESOLVED * deviation
    if bool(lost.any()):
        column = int(lost.nonzero()[0])
        raise ValueError(
            f"{who}: expected columns that vary by more than the rounding of single precision; got values up to "
            f"{x[:, column].abs().nan_to_num(0.0).max():.4g} of deviation {deviation[column]:.4g} in column {column}. "
            "Put a StandardScaler before it."
        )
