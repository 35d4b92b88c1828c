"""Tables and matrices of other libraries, none of which is imported."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_vae.data.arrays import KINDS, Numbers, check_whole, joined, listed, no_pixels, of_array


def of_scipy(subject: str, x: Any) -> Numbers:
    """A sparse matrix or array, made dense."""
    if x.dtype.kind in "iu":  # what is stored twice adds up, to more than a byte may hold
        x = x.astype(f"{x.dtype.kind}8")
    return Numbers(of_array(subject, x.toarray()), note=f"made dense from {x.nnz} stored values")


def of_anndata(x: Any, inner: Numbers) -> Numbers:
    """AnnData, given the numbers of its X."""
    parts = {part: list(getattr(x, part, None) or ()) for part in ("layers", "obsm")}
    parts["obs"] = list(getattr(getattr(x, "obs", None), "columns", ()))
    left = [listed(f"its {part} are left out", list(map(str, names))) for part, names in parts.items()]
    note = joined("X of AnnData", inner.note, *left)
    return Numbers(no_pixels(inner.values), columns=tuple(map(str, x.var_names)), note=note)


def of_pandas(subject: str, x: Any) -> Numbers:
    """A DataFrame, Series or Index: every column as numbers, those of categories as codes."""
    frame = x.to_frame() if hasattr(x, "to_frame") else x
    columns, categories, whole = [], [], True
    for name, column in frame.items():
        kind = getattr(column.dtype, "kind", "O")
        categories.append(tuple(map(str, getattr(column.dtype, "categories", ()))))
        if str(column.dtype) == "category":
            codes = column.cat.codes.to_numpy().astype(np.float64)
            columns.append(np.where(codes < 0, np.nan, codes))
        elif kind in KINDS:
            if kind in "iu":
                dtype = getattr(column.dtype, "numpy_dtype", getattr(column.dtype, "subtype", column.dtype))
                check_whole(f"{subject}, column {name!r}", column.dropna().to_numpy(dtype=dtype))
            columns.append(column.to_numpy(dtype=np.float64, na_value=np.nan))
            whole = whole and kind in "iu"
        else:
            raise TypeError(
                f"{subject}: expected columns of numbers or categories; got {name!r} of {column.dtype}. Drop it, or "
                f"make numbers of it, as pandas.to_numeric does, or of words frame[{name!r}].astype('category')."
            )
    array = np.stack(columns, -1) if columns else np.empty((len(frame), 0))
    if whole and not np.isnan(array).any():
        array = array.astype(np.int64)
    values = of_array(subject, array[:, 0] if x.ndim == 1 and array.shape[1] == 1 else array)
    names = tuple(map(str, frame.columns))
    coded = [name for name, known in zip(names, categories, strict=True) if known]
    index = [str(name) for name in frame.index.names if name is not None]
    note = joined(listed("codes in place of categories", coded), listed("the index is left out", index))
    return Numbers(values, None, names, tuple(categories) if coded else (), note)
