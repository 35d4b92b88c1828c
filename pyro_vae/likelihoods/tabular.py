"""The likelihood of a table: what the kinds of its columns ask for."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from pyro_vae import checks
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.binary import Bernoulli
from pyro_vae.likelihoods.categorical import Categorical, Ordinal
from pyro_vae.likelihoods.continuous import LogNormal, Normal
from pyro_vae.likelihoods.counts import NegativeBinomial
from pyro_vae.likelihoods.mixed import MakePart, Mixed
from pyro_vae.likelihoods.wrappers import MissingAtRandom, Standardized
from pyro_vae.nets import Body, Standardize
from pyro_vae.tables import Table, measured

_MIN_SCALE = 1e-2  # of standardized columns, many of which repeat values that a density could pile up on


class Tabular(Mixed):
    r"""Rows of a table, each column with the likelihood of its kind.

    A Normal of standardized values where the kind is real, a LogNormal of standardized logarithms where it is positive,
    NegativeBinomial for counts, Bernoulli, Ordinal and Categorical for codes. The density is of the values in their own
    units, so that log p(x) counts the log-Jacobian of the scaling: for meters in place of millimeters it is larger by
    log 1000 for each value. Figures in natural units, which are the same in both, come from ``table.log_unit``.

    Args:
        body: network from z to features.
        table: of the training data, measured on them; see :meth:`for_data`.

    Raises:
        ValueError: a column that never varies.

    References:
        Nazabal, Olmos, Ghahramani, Valera, "Handling Incomplete Heterogeneous Data using VAEs", 2020,
        https://arxiv.org/abs/1807.03653

    Example:
        >>> import pandas
        >>> from pyro_vae import data, nets
        >>> frame = pandas.DataFrame(
        ...     {"m": [1.62, 1.75, 1.88], "children": [0, 2, 1], "eyes": ["blue", "brown", "blue"]}
        ... )
        >>> likelihood = Tabular.for_data(data.as_dataset(frame), nets.MLP(2, [8]))
        >>> [type(part).__name__ for part in likelihood.parts]
        ['Standardized', 'NegativeBinomial', 'Bernoulli']
        >>> frame.dtypes.equals(likelihood.table.frame(likelihood(torch.zeros(4, 2)).sample()).dtypes)
        True
    """

    def __init__(self, body: Body, table: Table) -> None:
        checks.instance("Tabular likelihood", "table", table, Table, "Use Tabular.for_data(dataset, body).")
        constant = [
            c.name for c in table.columns if (c.values and len(c.values) < 2) or (not c.values and not c.spread)
        ]
        if constant:
            raise ValueError(
                f"Tabular likelihood: expected columns that vary; got {constant[0]!r}, which never does. Drop it."
            )
        super().__init__(body, parts=_parts(table))
        self.table = table
        for i, (columns, part) in enumerate(zip(self.columns, self._built, strict=True)):
            if isinstance(part, NegativeBinomial):  # which else begin with means of 1
                assert isinstance(columns, list)
                own = [table.columns[place] for place in columns]
                self.head.set_bias(f"{i}.logits", torch.tensor([c.center for c in own]))
                # 1 / theta is about what the variance of log(1 + x) exceeds a Poisson's by.
                excess = torch.tensor([max(c.spread**2 - math.exp(-c.center), 1e-3) for c in own])
                part.log_dispersion.data.copy_(-excess.log())

    @classmethod
    def for_data(cls, dataset: Any, body: Body) -> Likelihood:
        """The likelihood of a table's columns, within :class:`MissingAtRandom` where some values are missing.

        Args:
            dataset: the training data, of ``data.as_dataset(frame)`` or ``data.load("x.csv")``.
            body: network from z to features.

        Raises:
            TypeError: data that are no table of pandas.
            ValueError: a column that never varies.
        """
        likelihood = cls(body, measured("Tabular.for_data", dataset))
        return MissingAtRandom(likelihood) if likelihood.table.missing else likelihood


def _parts(table: Table) -> list[tuple[list[int], MakePart]]:
    """Blocks of the columns of one kind, which share a distribution, in the order of their first columns."""
    blocks: dict[Any, list[int]] = {}
    for i, column in enumerate(table.columns):
        blocks.setdefault((column.kind, len(column.values)), []).append(i)
    return [(places, _part(table, places)) for places in blocks.values()]


def _part(table: Table, places: list[int]) -> MakePart:
    columns = [table.columns[place] for place in places]
    kind, size = columns[0].kind, len(columns[0].values)
    standardize = Standardize(torch.tensor([c.center for c in columns]), torch.tensor([c.spread for c in columns]))
    scale: dict[str, Any] = {"scale": "per_element", "min_scale": _MIN_SCALE}
    makes: dict[str, MakePart] = {
        "real": lambda body, n: Standardized(Normal(body, n, **scale), standardize),
        "positive": partial(LogNormal, standardize=standardize, **scale),
        "count": NegativeBinomial,
        "binary": Bernoulli,
        "ordinal": partial(Ordinal, size),
        "category": partial(Categorical, size),
    }
    return makes[kind]
