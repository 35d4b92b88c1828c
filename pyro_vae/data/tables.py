"""Tables and matrices of other libraries, none of which is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_vae.data.arrays import Numbers, first, joined, listed, no_pixels, of_array
from pyro_vae.data.columns import Kinds, as_column, check_kinds, column_of
from pyro_vae.tables import Column, Table


def of_scipy(subject: str, x: Any) -> Numbers:
    """A sparse matrix or array, made dense."""
    if x.dtype.kind in "iu":  # what is stored twice adds up, to more than a byte may hold
        x = x.astype(f"{x.dtype.kind}8")
    return Numbers(of_array(subject, x.toarray()), note=f"made dense from {x.nnz} stored values")


def of_anndata(subject: str, x: Any, numbers: Callable[[str, Any], Numbers]) -> Numbers:
    """AnnData, or its ``raw``: the numbers of X, read from the file where it is backed by one."""
    if getattr(x, "isbacked", False):
        x = x.to_memory()
    if x.X is None:
        names = first(list(getattr(x, "layers", ()) or ())) or "none"
        raise TypeError(
            f"{subject}: expected AnnData with an X; got none, and layers: {names}. Give a layer, adata.layers[...]."
        )
    inner = numbers(f"{subject}, X of AnnData", x.X)
    parts = {part: list(getattr(x, part, None) or ()) for part in ("layers", "obsm")}
    parts["obs"] = list(getattr(getattr(x, "obs", None), "columns", ()))
    left = [listed(f"its {part} are left out", list(map(str, names))) for part, names in parts.items()]
    note = joined("X of AnnData", inner.note, *left)
    return Numbers(no_pixels(inner.values), columns=tuple(map(str, x.var_names)), note=note)


def of_pandas(subject: str, x: Any, kinds: Kinds | None = None) -> Numbers:
    """A DataFrame, Series or Index: every column as numbers, words and categories as codes."""
    frame = x.to_frame() if hasattr(x, "to_frame") else x
    names = list(map(str, frame.columns))
    if isinstance(kinds, Table):
        return _by_table(subject, frame, names, kinds)
    given = check_kinds(subject, kinds, names)
    if len(set(names)) < len(names):
        raise ValueError(f"{subject}: expected columns of distinct names; got {first(names)}. Rename them.")
    found = [column_of(subject, name, x, given.get(name)) for name, (_, x) in zip(names, frame.items(), strict=True)]
    columns = [column for column, _ in found]
    array = np.stack([numbers for _, numbers in found], -1) if found else np.empty((len(frame), 0))
    whole = all(c.dtype.lower().startswith(("int", "uint")) or c.dtype.endswith("category") for c in columns)
    if whole and not np.isnan(array).any():
        array = array.astype(np.int64)
    values = of_array(subject, array[:, 0] if x.ndim == 1 and array.shape[1] == 1 else array)
    coded = [c.name for c in columns if c.values and c.dtype not in ("bool", "boolean") and not _as_they_are(c)]
    index = [str(name) for name in frame.index.names if name is not None]
    note = joined(listed("codes in place of categories", coded), listed("the index is left out", index))
    categories = tuple(tuple(map(str, c.values)) if c.name in coded else () for c in columns) if coded else ()
    return Numbers(values, None, tuple(names), categories, note, Table(columns) if values.ndim == 2 else None)


def _by_table(subject: str, frame: Any, names: list[str], table: Table) -> Numbers:
    """A frame in the columns and the codes of another."""
    expected = [column.name for column in table.columns]
    if sorted(names) != sorted(expected):
        other = sorted(set(names) ^ set(expected)) or names
        raise ValueError(
            f"{subject}: expected the columns {first(expected)} of the table; got others, or one twice: "
            f"{first(other)}. Give them all, and these alone."
        )
    frame = frame.set_axis(names, axis=1)
    found = [as_column(subject, column, frame[column.name]) for column in table.columns]
    columns = [replace(c, missing=int(np.isnan(x).sum())) for c, x in zip(table.columns, found, strict=True)]
    values = of_array(subject, np.stack(found, -1))
    categories = tuple(tuple(map(str, c.values)) if c.values and not _as_they_are(c) else () for c in columns)
    return Numbers(values, None, tuple(expected), categories if any(categories) else (), "", Table(columns))


def _as_they_are(column: Column) -> bool:
    """Whether the codes are the values themselves."""
    return column.values == (0, 1)
