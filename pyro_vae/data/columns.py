"""What the columns of a table are: kinds that are found or given, and words and categories as codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch

from pyro_vae import checks
from pyro_vae.data.arrays import KINDS, check_whole
from pyro_vae.tables import CODED, Column, Kind, Table

Kinds = Mapping[str, Kind | list[str]] | Table
"""Kinds of columns by name, in place of those found; a list of values in their order for ordinals; or a whole table."""


def check_kinds(subject: str, kinds: Any, names: list[str]) -> dict[str, Kind | list[str]]:
    """The kinds that a user gives to some columns, by name.

    Raises:
        TypeError: no mapping.
        ValueError: no kind, or no column of the name.
    """
    if kinds is None:
        return {}
    checks.instance(subject, "kinds", kinds, Mapping, 'Give {"age": "count"}, for example.')
    for name, kind in kinds.items():
        if not (isinstance(kind, list) and len(kind) > 1 and len(set(map(repr, kind))) == len(kind)):
            checks.choice(subject, f"the kind of {name!r}", kind, get_args(Kind))
        if name not in names:
            raise ValueError(
                f"{subject}: expected kinds of columns that there are; got {name!r}. Use {', '.join(names):.200}."
            )
    return dict(kinds)


def as_column(subject: str, column: Column, x: Any) -> Any:
    """A Series as the numbers of a column that is known, float64 (N,).

    Raises:
        TypeError: no numbers where the column has some.
        ValueError: values that the column has no codes for.
    """
    subject = f"{subject}, column {column.name!r}"
    if not column.values:
        try:
            return x.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{subject}: expected numbers; got {x.dtype}. Convert it with pandas.to_numeric."
            ) from error
    codes = {value: float(code) for code, value in enumerate(column.values)}
    words = {str(value): code for value, code in codes.items()}
    present = x[x.notna()]
    unknown = [each for each in present.unique() if each not in codes and str(each) not in words]
    if unknown:
        raise ValueError(
            f"{subject}: expected the values {', '.join(map(str, column.values)):.200} of the table; got "
            f"{unknown[0]!r}. Leave such rows out, or train on data that have them."
        )
    missing = x.isna()
    return np.array(
        [np.nan if m else codes.get(each, words.get(str(each))) for each, m in zip(x, missing, strict=True)]
    )


def column_of(subject: str, name: str, x: Any, kind: Kind | list[str] | None) -> tuple[Column, Any]:
    """A column of pandas as numbers, float64 (N,), and what they are.

    Words and categories become codes, and so do numbers where a coded kind is asked for; other numbers are themselves.

    Args:
        subject: the set, for messages.
        name: of the column.
        x: a Series.
        kind: asked for; None for the one that is found.

    Raises:
        TypeError: neither numbers nor words.
        ValueError: values that are not of the kind.
    """
    if isinstance(kind, list):  # the values in their order
        column = Column(name, "ordinal" if len(kind) > 2 else "binary", str(x.dtype), tuple(kind))
        numbers = as_column(subject, column, x)
        return column.measured(torch.from_numpy(numbers)), numbers
    subject, dtype = f"{subject}, column {name!r}", str(x.dtype)
    if dtype == "category":
        found: Kind = "category" if not x.cat.ordered else "ordinal"
        values = [each if isinstance(each, bool | int | float | str) else str(each) for each in x.cat.categories]
        codes = x.cat.codes.to_numpy().astype(np.float64)
        numbers = np.where(codes < 0, np.nan, codes)
        dtype = "ordered category" if x.cat.ordered else dtype
        return _coded(subject, name, dtype, values, numbers, kind or ("binary" if len(values) == 2 else found), found)
    if getattr(x.dtype, "kind", "O") not in KINDS:
        return _of_words(subject, name, x, kind)
    if x.dtype.kind in "iu":
        plain = getattr(x.dtype, "numpy_dtype", getattr(x.dtype, "subtype", x.dtype))
        check_whole(subject, x.dropna().to_numpy(dtype=plain))
    numbers = x.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    present = numbers[~np.isnan(numbers)]
    if x.dtype.kind == "b":
        return _coded(subject, name, dtype, [False, True], numbers, kind or "binary", "category")
    if kind in CODED:
        distinct = np.unique(present)
        values = [int(v) if x.dtype.kind in "iu" else float(v) for v in distinct]
        codes = np.where(np.isnan(numbers), np.nan, np.searchsorted(distinct, numbers))
        return _coded(subject, name, dtype, values, codes, kind, "ordinal")
    found = _kind_of_numbers(present)
    if found == "binary" and kind is None:
        values = [0, 1] if x.dtype.kind in "iu" else [0.0, 1.0]
        return _coded(subject, name, dtype, values, numbers, "binary", "ordinal")
    wrong = {
        "count": "whole numbers from 0 on" if not _are_counts(present) else "",
        "positive": "numbers above 0" if not (present > 0).all() else "",
    }.get(kind or "", "")
    if wrong:
        raise ValueError(
            f"{subject}: expected {wrong} for the kind {kind!r}; got values from {present.min():.4g} to "
            f"{present.max():.4g}. Use another kind, such as 'real'."
        )
    return Column(name, kind or found, dtype).measured(torch.from_numpy(numbers)), numbers


def _of_words(subject: str, name: str, x: Any, kind: Kind | None) -> tuple[Column, Any]:
    present = x.dropna()
    if len(present) and all(isinstance(each, bool) for each in present):  # as pandas keeps bools with missing values
        numbers = x.to_numpy(dtype=np.float64, na_value=np.nan)
        return _coded(subject, name, str(x.dtype), [False, True], numbers, kind or "binary", "category")
    words = [each for each in present.unique() if isinstance(each, str)]
    if len(words) < present.nunique() or not words:
        raise _no_numbers(subject, name, x)
    numeric = sum(map(_is_number, words))
    if kind is None and (numeric > len(words) / 2 or len(words) > max(2, len(present) // 2)):
        raise _no_numbers(subject, name, x)  # numbers that are written as words, or names of each row
    values = sorted(words)
    places = {word: code for code, word in enumerate(values)}
    numbers = np.array([places.get(each, np.nan) for each in x], dtype=np.float64)
    if kind == "ordinal":
        raise ValueError(
            f"{subject}: expected values with an order for the kind 'ordinal'; got words, {', '.join(values[:3])}. "
            f"Give them in their order, kinds={{{name!r}: [...]}}, or an ordered pandas.Categorical."
        )
    found: Kind = "binary" if len(values) == 2 else "category"
    return _coded(subject, name, str(x.dtype), list(values), numbers, kind or found, "category")


def _coded(
    subject: str, name: str, dtype: str, values: list[Any], codes: Any, kind: Kind, most: Kind
) -> tuple[Column, Any]:
    """A column of codes; ``most`` is "ordinal" where its values have an order."""
    if kind not in CODED or (kind == "ordinal" and most != "ordinal"):
        raise ValueError(
            f"{subject}: expected a kind of values without {'an order' if kind == 'ordinal' else 'numbers'}; got "
            f"{kind!r}. Use 'category', or convert the column."
        )
    if kind == "binary" and len(values) != 2:
        raise ValueError(
            f"{subject}: expected 2 different values for the kind 'binary'; got {len(values)}. Use another kind."
        )
    column = Column(name, kind, dtype, tuple(values))
    return column.measured(torch.from_numpy(codes)), codes


def _kind_of_numbers(x: Any) -> Kind:
    """The kind of numbers without missing ones, whatever their unit."""
    if len(x) and np.isin(x, (0, 1)).all() and len(np.unique(x)) == 2:
        return "binary"
    if _are_counts(x):
        return "count"
    # Where logarithms are closer to a Normal than the values are.
    if len(x) and (x > 0).all() and abs(_skewness(np.log(x))) < abs(_skewness(x)):
        return "positive"
    return "real"


def _are_counts(x: Any) -> bool:
    return bool(len(x)) and bool((x >= 0).all() and np.isfinite(x).all() and (x == np.rint(x)).all())


def _skewness(x: Any) -> float:
    y = x - x.mean()
    deviation = y.std()
    return float((y**3).mean() / deviation**3) if deviation > 0 else 0.0


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _no_numbers(subject: str, name: str, x: Any) -> TypeError:
    return TypeError(
        f"{subject.partition(', column')[0]}: expected columns of numbers or categories; got {name!r} of {x.dtype}. "
        f"Drop it, or make numbers of it, as pandas.to_numeric does, or of words frame[{name!r}].astype('category')."
    )
