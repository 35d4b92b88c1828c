r"""Of what the densities of several programs are densities.

Figures log p(x) compare where they are of the same data and with respect to the same measure. A density can be as large
as one likes, a probability cannot: Normal and Bernoulli do not compare, nor do probabilities of levels k / 255 and of
bits. Two programs may be given the same data in other units, y = a x + b with an a and b for each element: then

.. math:: \log p_x(x) = \log p_y(ax + b) + \sum_d \log |a_d|

over the elements d that have a density, which is counted here, while a probability stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.runs import one_run
from pyro_vae.models import Program
from pyro_vae.traces.layout import by_draw
from pyro_vae.traces.tracing import Site

_ROWS = 500  # data that are run at once
_OFF = 1e-3  # of an element's range: rounding of data that were standardized in single precision


@dataclass(frozen=True)
class Observed:
    """What a program observes at one site.

    Shapes: N data.

    Attributes:
        values: (N, ...), NaN where masked.
        spacing: of the values that have probabilities, 0 where there is a density; of the shape of a datum.
        surface: what densities live on where it is no part of the reals with a volume, such as a sphere; else empty.
    """

    values: Tensor
    spacing: Tensor
    surface: str

    def __str__(self) -> str:
        kinds = []
        for spacing in self.spacing.unique().tolist():
            if spacing == 0:
                kinds.append("densities" + (f" on {self.surface}" if self.surface else ""))
            else:
                kinds.append(f"probabilities of {'whole numbers' if spacing == 1 else f'multiples of {spacing:.3g}'}")
        return " and ".join(kinds)


@in_evaluation_mode
@torch.no_grad()
def observed(program: Program, x: Tensor, *context: Tensor, plate: str, batch_size: int | None) -> list[Observed]:
    """What a program observes of data x, site by site."""
    parts: list[list[Observed]] = []
    for batch in zip(*(rows.split(batch_size or _ROWS) for rows in (x, *context)), strict=True):
        run = one_run(program, batch)
        parts.append([])
        for _, site in run.observed():
            values = by_draw(site, _masked(site), run, plate)[0]
            event = site["fn"].event_shape
            spacing, surface = _kind(getattr(site["fn"], "support", None), torch.zeros(event))
            parts[-1].append(Observed(values, spacing, surface))
    return [
        Observed(torch.cat([part.values for part in site]), site[0].spacing, site[0].surface)
        for site in zip(*parts, strict=True)
    ]


def log_jacobians(subject: str, entries: Mapping[str, list[Observed]]) -> dict[str, Tensor]:
    """What is added to log p of each entry, (N,), for all to be in the units of the first.

    Args:
        subject: who asks, for messages.
        entries: what each observes.

    Raises:
        ValueError: entries of different measures or different data.
    """
    first, reference = next(iter(entries.items()))
    found = {}
    for name, sites in entries.items():
        if len(sites) != len(reference):
            raise ValueError(
                f"{subject}: expected programs that observe the same; got {len(reference)} sites of {first!r} and "
                f"{len(sites)} of {name!r}. Rank programs of the same observations."
            )
        pairs = zip(reference, sites, strict=True)
        found[name] = sum((_log_jacobian(subject, (first, name), a, b) for a, b in pairs), torch.zeros(()))
    return found


def check_contexts(subject: str, contexts: Mapping[str, tuple[Tensor, ...]]) -> None:
    """Raises for entries that are told different things beside x: their figures are log p(x) given these."""
    first, reference = next(iter(contexts.items()))
    for name, context in contexts.items():
        same = len(context) == len(reference) and all(map(_equal, context, reference))
        if not same:
            raise ValueError(
                f"{subject}: expected one context for all, since log p(x) given one and given another do not compare; "
                f"got others of {first!r} and {name!r}. Give all programs the same contexts."
            )


def _log_jacobian(subject: str, names: tuple[str, str], first: Observed, other: Observed) -> Tensor:
    what = f"{subject}: expected figures of one measure"
    got = f"got {first} of {names[0]!r} and {other} of {names[1]!r}"
    if first.values.shape != other.values.shape or not torch.equal(first.values.isnan(), other.values.isnan()):
        raise ValueError(
            f"{subject}: expected the same data of all; got shapes {tuple(first.values.shape)} of {names[0]!r} and "
            f"{tuple(other.values.shape)} of {names[1]!r}, or other values missing. Give all programs the same data."
        )
    is_density = first.spacing == 0
    if first.surface != other.surface or not torch.equal(is_density, other.spacing == 0):
        raise ValueError(
            f"{what}; {got}, of which a density may be as large as one likes. Compare likelihoods of one kind: "
            "likelihoods.Dequantized makes probabilities of levels of a density."
        )
    slope = _slope(first.values, other.values)
    if slope is None:
        raise ValueError(
            f"{subject}: expected the same data of all, but for the unit of each element; got others of {names[0]!r} "
            f"and {names[1]!r}. Give all programs the same data; likelihoods.Standardized is a density of raw data "
            "whose network works on standardized ones."
        )
    scaled = other.spacing.to(slope) / slope.abs()
    if not torch.allclose(scaled, first.spacing.to(slope).expand_as(scaled), rtol=_OFF, atol=0):
        raise ValueError(f"{what}; {got}. Give all likelihoods the levels that the data have.")
    terms = torch.where(is_density.to(slope.device), slope.abs().log(), 0.0)
    if first.surface and bool(terms.any()):
        raise ValueError(f"{what}; {got}, in other units. Give all programs the same data.")
    return (terms * ~first.values.isnan()).flatten(1).sum(1)


def _slope(x: Tensor, y: Tensor) -> Tensor | None:
    """The a of y = a x + b, for each element of a datum; None where it is no such thing."""
    x, y = x.double(), y.double()
    if _equal(x, y):
        return torch.ones_like(x[0])
    seen = ~x.isnan()
    count = seen.sum(0)
    centered = [torch.where(seen, v - v.nansum(0) / count, 0.0) for v in (x, y)]
    slope = (centered[0] * centered[1]).sum(0) / centered[0].square().sum(0)
    slope = torch.where(torch.where(seen, x == y, True).all(0), 1.0, slope)
    off = (centered[1] - slope * centered[0]).abs()
    # Of the typical distance from the mean, which an outlier does not widen, but for rounding in single precision. A
    # constant element tells no slope: 0 / 0, which no comparison is true of.
    typical = torch.where(seen, centered[1].abs(), torch.nan).nanmedian(0).values
    rounding = 1e-6 * (y.abs() + (slope * x).abs()).nan_to_num(0.0)
    near = (off <= _OFF * typical + rounding) | ~seen
    return slope if bool((near.all(0) & (slope != 0) & slope.isfinite()).all()) else None


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())


def _masked(site: Site) -> Tensor:
    """A site's value, NaN where it does not count."""
    value, distribution = site["value"], site["fn"]
    masks: list[Any] = [site["mask"]]
    while distribution is not None:
        masks.append(getattr(distribution, "_mask", None))
        distribution = getattr(distribution, "base_dist", None)
    for mask in masks:
        if mask is not None and mask is not True:
            keep = torch.as_tensor(mask, device=value.device)
            value = torch.where(keep.reshape(keep.shape + (1,) * site["fn"].event_dim), value, torch.nan)
    return value


def _kind(support: Any, spacing: Tensor) -> tuple[Tensor, str]:
    """The spacing of each element of a datum, and the surface, of a constraint."""
    if isinstance(support, constraints.independent):
        return _kind(support.base_constraint, spacing)
    parts: Iterable[tuple[slice, Any]] | None = getattr(support, "parts", None)
    if parts is not None:  # of Joint
        surfaces = []
        for columns, part in parts:
            spacing[..., columns], surface = _kind(part, spacing[..., columns].clone())
            surfaces += [surface] if surface else []
        return spacing, ", ".join(surfaces)
    inner = getattr(support, "constraint", None)
    if inner is not None:  # of MissingAtRandom
        return _kind(inner, spacing)
    if getattr(support, "is_discrete", False):
        return spacing.fill_(getattr(support, "spacing", 1.0)), ""
    flat = support is None or isinstance(support, type(constraints.dependent)) or support.event_dim == 0
    return spacing, "" if flat else repr(support)
