"""What the columns of a table are: kinds, categories, units, and the way back to a DataFrame.

A likelihood of a table, the inputs of its encoder and the frames that draws become are all made from one
:class:`Table`, so that they agree on what every number means. pandas is imported where a frame is made, and nowhere
else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Size, Tensor, nn

from pyro_vae import checks
from pyro_vae.recorded import Recorded

__all__ = ["Column", "Inputs", "Kind", "Table"]

Kind: TypeAlias = Literal["real", "positive", "count", "binary", "ordinal", "category"]
CODED = ("binary", "ordinal", "category")
"""Kinds whose numbers are codes 0, 1, ... of values."""
_LIKELIHOODS = {
    "real": "Normal",
    "positive": "LogNormal",
    "count": "NegativeBinomial",
    "binary": "Bernoulli",
    "ordinal": "Ordinal",
    "category": "Categorical",
}


@dataclass(frozen=True)
class Column(Recorded):
    """One column of a table.

    Args:
        name: in the table.
        kind: what its numbers are, which decides its likelihood: ``real``, ``positive`` (skewed, above 0), ``count``
            (0, 1, 2, ...), ``binary``, ``ordinal`` (of an order), ``category`` (of none).
        dtype: of pandas, which frames are given back with; ``ordered category`` for a category with an order.
        values: what the codes 0, 1, ... stand for; none of numbers.
        missing: number of missing values.
        center: mean of the values: of logarithms where the kind is positive, of log(1 + x) for counts, of codes for
            ordinals.
        spread: their standard deviation; 0 of a constant.
    """

    name: str
    kind: Kind
    dtype: str = "float64"
    values: tuple[bool | int | float | str, ...] = ()
    missing: int = 0
    center: float = 0.0
    spread: float = 1.0

    def measured(self, x: Tensor) -> Column:
        """The same column with the number missing, center and spread of values (N,)."""
        observed = x[~x.isnan()].double()
        y = {"positive": torch.log, "count": torch.log1p}.get(self.kind, torch.clone)(observed)
        varies = len(y) > 0 and bool(y.max() > y.min())  # a constant has spread 0, however its mean rounds
        center = float(y.mean()) if len(y) else 0.0
        spread = float(y.std(correction=0)) if varies else 0.0
        return replace(self, missing=len(x) - len(observed), center=center, spread=spread)


class Table(Recorded):
    """The columns of a table, in order.

    Shapes: N rows, D columns.

    Args:
        columns: of distinct names.

    Example:
        >>> table = Table([Column("age", "count", "int64"), Column("sex", "binary", "str", ("f", "m"))])
        >>> table
        column  kind    values  missing  likelihood
        age     count   int64         0  NegativeBinomial
        sex     binary  f, m          0  Bernoulli
        >>> table.frame(torch.tensor([[31.0, 1.0], [58.0, 0.0]])).values.tolist()
        [[31, 'm'], [58, 'f']]
    """

    def __init__(self, columns: list[Column] | tuple[Column, ...]) -> None:
        for column in columns:
            checks.instance("Table", "columns", column, Column, "Use data.as_dataset(frame).table.")
            checks.choice("Table", f"kind of {column.name!r}", column.kind, get_args(Kind))
        self.columns = tuple(columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.columns == other.columns

    def __hash__(self) -> int:
        return hash(self.columns)

    def __repr__(self) -> str:
        rows = [("column", "kind", "values", "missing", "likelihood")]
        for column in self.columns:
            shown = ", ".join(map(str, column.values[:4])) + (", ..." if len(column.values) > 4 else "")
            rows.append((
                checks.printable(column.name, 24), column.kind, checks.printable(shown or column.dtype, 32),
                str(column.missing), _LIKELIHOODS[column.kind],
            ))  # fmt: skip
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines = [
            f"{a:{widths[0]}}  {b:{widths[1]}}  {c:{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()
            for a, b, c, d, e in rows
        ]
        return "\n".join(lines)

    @property
    def missing(self) -> bool:
        """Whether a value is missing anywhere."""
        return any(column.missing for column in self.columns)

    def measured(self, x: Tensor) -> Table:
        """The same columns with the centers and spreads of data (N, D)."""
        return Table([column.measured(x[:, i]) for i, column in enumerate(self.columns)])

    def where(self, kind: Kind, num_values: int = 0) -> list[int]:
        """The places of the columns of a kind, with so many values where these are counted."""
        return [
            i for i, c in enumerate(self.columns) if c.kind == kind and (not num_values or len(c.values) == num_values)
        ]

    def inputs(self) -> Inputs:
        """What an encoder is given of rows; see :class:`Inputs`."""
        return Inputs(self)

    def log_unit(self, x: Tensor) -> Tensor:
        """The logarithm of each row's natural unit, (N,): deviations of reals, geometric means of positive values.

        ``log_p + log_unit`` is the log-density per natural unit, which is the same in meters and in millimeters.
        Missing values have none.
        """
        logs = {"real": lambda c: math.log(c.spread) if c.spread > 0 else 0.0, "positive": lambda c: c.center}
        units = [logs[c.kind](c) if c.kind in logs else 0.0 for c in self.columns]
        return torch.where(x.isnan(), 0.0, torch.tensor(units, device=x.device).to(x.dtype)).sum(-1)

    def check_same(self, subject: str, other: Table) -> None:
        """Raises for a table whose numbers mean something else: other columns, another order, other values of codes.

        Raises:
            ValueError: naming the first that differs.
        """
        pairs = [(c.name, c.kind, c.values) for c in self.columns], [(c.name, c.kind, c.values) for c in other.columns]
        if pairs[0] != pairs[1]:
            place = next((i for i, (a, b) in enumerate(zip(*pairs, strict=False)) if a != b), min(map(len, pairs)))
            expected, got = ((*each, ("none", "", ()))[place] for each in pairs)
            raise ValueError(
                f"{subject}: expected the columns that the program was built for, column {place} {_shown(expected)}; "
                f"got {_shown(got)}, whose numbers mean something else. Read the frame by the table of the training "
                "data: data.as_dataset(frame, kinds=train.table)."
            )

    def frame(self, x: Any) -> Any:
        """Rows as a pandas DataFrame with the columns, categories and dtypes that the data came with.

        Missing values are missing in it, so that whole numbers become pandas' nullable ones where some are. Values of
        kind real or positive in a column of whole numbers are rounded. What does not fit into a column's dtype, as
        draws may, makes it int64 or float64.

        Args:
            x: draws (N, D), codes of categories, as ``program.sample(N)`` and ``program.reconstruct(x, mean=False)``
                return them; NaN where a value is missing.

        Raises:
            ImportError: pandas is not installed.
            ValueError: another shape; values that are no codes or no whole numbers, as those of means.
        """
        checks.instance("Table.frame", "x", x, Tensor, "Give what program.sample returns.")
        if x.ndim != 2 or x.shape[1] != len(self):
            raise ValueError(
                f"Table.frame: expected rows (N, {len(self)}); got {tuple(x.shape)}. Give data of the table."
            )
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Table.frame: expected pandas; got none. Install it: pip install pandas.") from error
        array = x.detach().cpu().double().numpy()
        series = {column.name: _series(pandas, column, array[:, i]) for i, column in enumerate(self.columns)}
        return pandas.DataFrame(series)


class Inputs(Recorded, nn.Module):
    """What a network is given of rows of a table: reals standardized, codes of categories one-hot, 0 where missing.

    Positive values are standardized as logarithms, counts as log(1 + x), ordinals as their codes.

    Args:
        table: measured on the training data.

    Example:
        >>> height = Column("height", "real", center=1.7, spread=0.1)
        >>> table = Table([height, Column("eyes", "category", values=("blue", "brown", "green"))])
        >>> table.inputs()(torch.tensor([[1.8, 2.0], [torch.nan, 0.0]])).round(decimals=4)
        tensor([[1., 0., 0., 1.],
                [0., 1., 0., 0.]])
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table
        self._widths = [len(c.values) if c.kind == "category" else 1 for c in table.columns]
        numbers = [c if c.kind not in ("category", "binary") else None for c in table.columns]
        self.register_buffer("center", torch.tensor([0.0 if c is None else c.center for c in numbers]))
        self.register_buffer("spread", torch.tensor([1.0 if c is None else c.spread or 1.0 for c in numbers]))
        self._logs = {kind: table.where(kind) for kind in ("positive", "count")}
        self._categories = table.where("category")

    center: Tensor
    spread: Tensor

    @property
    def output_shape(self) -> Size:
        """Of what it returns, per row."""
        return Size([sum(self._widths)])

    def forward(self, x: Tensor) -> Tensor:
        """Rows (..., D) to features (..., \\*output_shape)."""
        y = x.clone()
        for kind, places in self._logs.items():
            if places:
                y[..., places] = x[..., places].log() if kind == "positive" else x[..., places].log1p()
        y = (y - self.center) / self.spread
        y = torch.where(x.isnan(), 0.0, y)
        if not self._categories:
            return y
        blocks = [y[..., i : i + 1] for i in range(len(self.table))]
        for i in self._categories:  # NaN is no code, and gives 0 in all places
            blocks[i] = (x[..., i : i + 1] == torch.arange(self._widths[i], device=x.device)).to(x.dtype)
        return torch.cat(blocks, -1)


def measured(subject: str, dataset: Any) -> Table:
    """The table of a set, measured on its data.

    Raises:
        TypeError: it has none.
    """
    table = getattr(dataset, "table", None)
    if not isinstance(table, Table):
        raise TypeError(
            f"{subject}: expected a Dataset of a pandas DataFrame; got {type(dataset).__name__} without a table. Use "
            "data.as_dataset(frame), or data.load with a .csv file."
        )
    return table.measured(dataset.tensor())


def _shown(column: tuple[str, str, tuple[Any, ...]]) -> str:
    name, kind, values = column
    return checks.printable(f"{name!r} ({kind}{': ' if values else ''}{', '.join(map(str, values))})", 120)


def check_table(subject: str, program: Any, dataset: Any) -> None:
    """Raises for data whose columns mean something else than those that a program was built for.

    Raises:
        ValueError: naming the first that differs.
    """
    own = getattr(getattr(program, "likelihood", None), "table", None)
    if isinstance(own, Table) and dataset.table is not None:
        own.check_same(subject, dataset.table)


def _series(pandas: Any, column: Column, x: Any) -> Any:
    """A column of a frame."""
    missing = np.isnan(x)
    if not column.values and not _is_integer(column.dtype):
        narrow = column.dtype == "float16" and len(x) and bool((np.abs(x[~missing]) > np.finfo(np.float16).max).any())
        return pandas.Series(x).astype("float64" if narrow else column.dtype)
    if column.kind in ("real", "positive"):
        x = np.rint(x)
    whole = np.rint(np.where(missing, 0.0, x))
    if not np.array_equal(whole[~missing], x[~missing]):
        raise ValueError(
            f"Table.frame: expected whole numbers in column {column.name!r}; got such as "
            f"{x[~missing & (whole != x)][0]:.4g}, as means are. Give draws: program.sample(N), or "
            "program.reconstruct(x, mean=False)."
        )
    if not column.values:
        limits = np.iinfo(column.dtype.lower())
        fits = not len(x) or (whole.min() >= limits.min and whole.max() <= limits.max)
        if len(x) and np.abs(whole).max() >= 2.0**63:  # which no dtype of whole numbers holds
            return pandas.Series(x)
        return pandas.Series(x).astype(_nullable(column.dtype if fits else "int64", missing.any()))
    last = len(column.values) - 1
    if len(x) and (whole.min() < 0 or whole.max() > last):
        raise ValueError(
            f"Table.frame: expected codes 0 to {last} in column {column.name!r}; got {whole.min():g} to "
            f"{whole.max():g}. Give data of the table."
        )
    codes = np.where(missing, -1, whole).astype(int)
    if column.dtype.endswith("category"):
        ordered = column.dtype == "ordered category"
        return pandas.Series(pandas.Categorical.from_codes(codes, list(column.values), ordered=ordered))
    values = np.array([*column.values, np.nan], dtype=object)  # code -1 is the last
    return pandas.Series(values[codes], dtype=object).astype(_nullable(column.dtype, missing.any()))


def _is_integer(dtype: str) -> bool:
    return dtype.lower().startswith(("int", "uint"))


def _nullable(dtype: str, missing: Any) -> str:
    """The dtype of pandas, or the one that holds missing values beside such."""
    if not missing:
        return dtype
    return (
        dtype.replace("u", "U").replace("int", "Int") if _is_integer(dtype) else {"bool": "boolean"}.get(dtype, dtype)
    )
