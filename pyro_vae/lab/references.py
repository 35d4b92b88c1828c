"""Which gradient an estimator should have on average, and what estimators are called."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.infer
from torch import Tensor

from pyro_vae import elbo

Reference = pyro.infer.ELBO | Mapping[str, Tensor]
"""An estimator whose gradient is right, or the exact gradient of a bound by the names of its parameters."""

References = Reference | Mapping[str, Reference]
Estimators = Mapping[str, pyro.infer.ELBO] | Sequence[pyro.infer.ELBO]

_UNNAMED = {*inspect.signature(pyro.infer.ELBO).parameters, "gradient", "plate", "vectorize", "num_sleep_particles"}


def named_estimators(subject: str, estimators: Estimators) -> dict[str, pyro.infer.ELBO]:
    """Copies of estimators, by name; those of a sequence are named after classes and settings, and equal ones numbered.

    A baseline that learns, or follows the signal, does so in the copy.

    Raises:
        TypeError: something else among them.
        ValueError: none.
    """
    if not isinstance(estimators, Mapping | Sequence) or isinstance(estimators, str | bytes):
        raise TypeError(
            f"{subject}: expected estimators in a sequence or by name; got {type(estimators).__name__}. Pass "
            "[elbo.ELBO()], for example."
        )
    given = list(estimators.values() if isinstance(estimators, Mapping) else estimators)
    if not given:
        raise ValueError(f"{subject}: expected at least one estimator; got none. Pass [elbo.ELBO()], for example.")
    for estimator in given:
        if not isinstance(estimator, pyro.infer.ELBO):
            raise TypeError(
                f"{subject}: expected estimators of class pyro.infer.ELBO; got {estimator!r}. Pass elbo.ELBO() or "
                "pyro.infer.Trace_ELBO()."
            )
    if isinstance(estimators, Mapping):
        names = list(estimators)
    else:
        described = list(map(describe, given))
        counts = [described[:i].count(name) for i, name in enumerate(described)]
        names = [f"{name} #{n + 1}" if n else name for name, n in zip(described, counts, strict=True)]
    return {name: copied(estimator) for name, estimator in zip(names, given, strict=True)}


def describe(reference: Any) -> str:
    """What a reference is called in a table."""
    if isinstance(reference, Mapping):
        return "exact gradients"
    return f"{family(reference)}, K={reference.num_particles}"


def family(estimator: Any) -> str:
    """Bound, settings and gradient of an estimator, without its number of particles.

    Example:
        >>> family(elbo.IWELBO(5, "dreg"))
        'IWELBO dreg'
        >>> family(elbo.ELBO(gradient={"k": "enumerate", "z1": "pathwise", "z2": "pathwise"}))
        'ELBO k:enumerate z1,z2:pathwise'
    """
    if isinstance(estimator, elbo.Estimator):
        return f"{_called(estimator)} {_gradient_called(estimator.gradient)}"
    stock = type(estimator).__module__.startswith("pyro.")
    return ("Pyro's " if stock else "") + _called(estimator)


def _gradient_called(gradient: elbo.Gradient) -> str:
    if not isinstance(gradient, elbo.BySite):
        return _called(gradient).lower()
    sites: dict[str, list[str]] = {}
    for site, own in gradient.gradients.items():
        sites.setdefault(_called(own).lower(), []).append(site)
    return " ".join(f"{','.join(names)}:{own}" for own, names in sites.items())


def _called(thing: Any) -> str:
    """A class and those of its arguments that are not the usual ones."""
    settings = []
    for name, parameter in inspect.signature(type(thing)).parameters.items():
        value = getattr(thing, name, parameter.default)
        if name not in _UNNAMED and value is not parameter.default and value != parameter.default:
            shown = value if isinstance(value, int | float | str) else type(value).__name__
            settings.append(f"{name}={shown}")
    return type(thing).__name__ + (f"({', '.join(settings)})" if settings else "")


def references_of(
    named: Mapping[str, pyro.infer.ELBO],
    given: References | None,
    plate: str,
    run: Callable[[elbo.Estimator], object],
) -> dict[str, Reference]:
    """A reference for each estimator: the one that is given, or else an unbiased gradient of the same bound.

    Args:
        named: the estimators.
        given: by the user.
        plate: over the data, for bounds of Pyro's estimators.
        run: runs an estimator once, with the error or warning of one that does not suit the program.

    Raises:
        ValueError: a name that is none of the estimators'; an estimator whose bound is not known.
    """
    own: dict[str, Any] = {}
    if isinstance(given, Mapping) and not all(isinstance(value, Tensor) for value in given.values()):
        own = dict(given)
        if unknown := own.keys() - named.keys():
            raise ValueError(
                f"compare: expected references for {', '.join(named)}; got {sorted(unknown)}. Use these names."
            )
    elif given is not None:
        own = dict.fromkeys(named, given)
    references: dict[str, Reference] = {}
    made: dict[str, elbo.Estimator] = {}
    for name, estimator in named.items():
        if name in own:
            references[name] = own[name]
            continue
        bound = _bound(estimator, plate)
        settings = {key: value for key, value in vars(bound).items() if key not in ("gradient", "_structures")}
        key = repr((type(bound), settings))  # one long run serves all estimators of a bound
        if key not in made:
            made[key] = _unbiased(bound, run)
        references[name] = made[key]
    return references


def _bound(estimator: Any, plate: str) -> elbo.Estimator:
    """An estimator of the bound that another's gradient should be of."""
    k = estimator.num_particles
    if isinstance(estimator, elbo.ReweightedWakeSleep | elbo.PIWELBO):
        return elbo.IWELBO(k, plate=estimator.plate, vectorize=estimator.vectorize_particles)
    if isinstance(estimator, elbo.Estimator):
        return estimator
    if isinstance(estimator, pyro.infer.ReweightedWakeSleep) or getattr(estimator, "alpha", None) == 0:
        return elbo.IWELBO(k, plate=plate)
    if isinstance(estimator, pyro.infer.RenyiELBO):
        return elbo.RenyiELBO(k, alpha=estimator.alpha, plate=plate)
    if isinstance(estimator, pyro.infer.Trace_ELBO | pyro.infer.TraceGraph_ELBO | pyro.infer.TraceEnum_ELBO):
        return elbo.ELBO(k, plate=plate)
    raise ValueError(
        f"compare: expected a reference for {type(estimator).__name__}, whose bound is not known here; got none. "
        "Pass reference={name: an estimator, or exact gradients}."
    )


def _unbiased(bound: elbo.Estimator, run: Callable[[elbo.Estimator], object]) -> elbo.Estimator:
    """The bound with an unbiased gradient, of those that suit the program the one of least variance."""
    if isinstance(bound, elbo.ELBO) and (bound.analytic_kl or isinstance(bound.gradient, elbo.Enumerate)):
        return bound
    gradients: list[elbo.Gradient] = [elbo.Pathwise(), elbo.VIMCO(), elbo.Score()]
    if type(bound).__module__.startswith(elbo.__name__):  # another's second derivative may be wrong
        gradients.insert(0, elbo.DReG())
    for gradient in gradients:
        candidate = copy.copy(bound)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Site .* stl and dreg")  # of flows that are slow to invert
            try:
                candidate.gradient = gradient
                run(candidate)
            except (ValueError, UserWarning) as error:
                refused = error
            else:
                return candidate
    raise refused


def copied(estimator: pyro.infer.ELBO) -> pyro.infer.ELBO:
    """A copy whose baseline is its own."""
    copied = copy.copy(estimator)
    if isinstance(copied, elbo.Estimator):
        copied.gradient = copy.deepcopy(copied.gradient)
    return copied
