"""Sets of Hugging Face's ``datasets``, which is not imported: images, arrays, or columns of numbers and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.arrays import Numbers, first, joined, listed, of_array, of_part, stacked
from pyro_vae.data.torch_sets import LABELS


def of_hugging_face(
    subject: str, x: Any, of_table: Callable[[Any], Numbers], of_items: Callable[[Any], Numbers]
) -> Numbers:
    """The images or arrays of a set, or else its columns as a table, and its labels.

    Labels are a column of ``ClassLabel``, or else one of whole numbers that is called label, labels, y, target or
    fine_label. Of several
    columns of images or arrays none is preferred. A set that transforms its rows (``with_transform``) is read as one of
    torch is, row by row.

    Args:
        subject: what the set is, for messages.
        x: a ``datasets.Dataset``.
        of_table: reads a DataFrame.
        of_items: reads a set of torch.

    Raises:
        TypeError: several sets, or columns of something else.
        ValueError: several columns of images or arrays.
    """
    if isinstance(x, dict):
        raise TypeError(f"{subject}: expected one set; got a {type(x).__name__} of {first(x)}. Pass one of these.")
    if not len(x):
        raise ValueError(f"{subject}: expected at least one datum; got none. Give data.")
    if x.format["type"] == "custom":
        return of_items(x)
    columns = {name: x.features[name] for name in x.format["columns"]}
    labels = label_column(columns)
    arrays = [name for name, kind in columns.items() if _is_array(kind)]
    if len(arrays) > 1:
        raise ValueError(
            f"{subject}: expected one column of images or arrays; got {first(arrays)}. Choose one: "
            f"set.select_columns([{arrays[0]!r}])."
        )
    plain = x.with_format(None).select_columns(list(columns))
    found = _of_arrays(subject, plain, arrays[0], columns) if arrays else _of_table(plain, labels, of_table)
    if arrays:
        left = [name for name in columns if name not in (arrays[0], labels)]
        found = Numbers(found.values, note=listed(f"columns beside {arrays[0]!r} are left out", left))
    if labels is None:
        return found
    classes, note = _classes(subject, plain, labels)
    return Numbers(found.values, classes, found.columns, found.categories, joined(found.note, note), found.table)


def label_column(columns: dict[str, Any]) -> str | None:
    """The column of labels, if there is one beside others."""
    classes = [name for name, kind in columns.items() if type(kind).__name__ == "ClassLabel"]
    named = [n for n in LABELS if n in columns and "int" in str(getattr(columns[n], "dtype", ""))]
    found = classes if len(classes) == 1 else [name for name in named if not classes or name in classes]
    return found[0] if found and len(columns) > 1 else None


def _is_array(kind: Any) -> bool:
    name = type(kind).__name__
    return name == "Image" or name.startswith("Array") or name in ("List", "LargeList", "Sequence")


def _of_arrays(subject: str, x: Any, name: str, columns: dict[str, Any]) -> Numbers:
    kind = columns[name]
    if type(kind).__name__ == "Image":
        return Numbers(stacked(subject, [of_part(subject, image) for image in x[name]]))
    while hasattr(kind, "feature"):  # of lists, what they are lists of
        kind = kind.feature
    try:
        return Numbers(of_array(subject, np.array(x[name][:], dtype=kind.dtype)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{subject}: expected numbers in arrays of one shape in column {name!r}; got others ({error}). Pad or "
            "resize them."
        ) from error


def _of_table(x: Any, labels: str | None, of_table: Callable[[Any], Numbers]) -> Numbers:
    return of_table(x.to_pandas().drop(columns=[] if labels is None else [labels]))


def _classes(subject: str, x: Any, name: str) -> tuple[Tensor | None, str]:
    """Labels, int64 (N,), and a note; none where all are -1, by which the hub's test sets have them left out."""
    given = x[name][:]
    if any(label is None for label in given):
        raise ValueError(
            f"{subject}: expected a class for every datum in column {name!r}; got none for some. Leave out the column: "
            f"set.remove_columns({name!r})."
        )
    labels = torch.tensor(given, dtype=torch.int64)
    if bool((labels == -1).all()):
        return None, f"column {name!r} is left out, with -1 for every label"
    return labels, f"labels of column {name!r}"
