"""What holds numbers, of whatever library: nothing is cut, rounded or dropped without a word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pyro_vae.data.arrays import Numbers, no_pixels, of_part, to_float32
from pyro_vae.data.columns import Kinds
from pyro_vae.data.hugging_face import of_hugging_face
from pyro_vae.data.tables import of_anndata, of_pandas, of_scipy
from pyro_vae.data.torch_sets import of_set


def numbers(subject: str, x: Any, kinds: Kinds | None = None) -> Numbers:
    """The numbers of a tensor, an array, nested lists, a pandas table, a scipy matrix, AnnData, or a set.

    Masked and missing values become NaN, categories their codes.

    Raises:
        TypeError: something else, values that are not real numbers, rows on several scales, or kinds of no table.
        ValueError: numbers that float32 cannot hold or cannot tell apart.
    """
    found = _found(subject, x, kinds)
    if kinds is not None and found.table is None:
        raise TypeError(
            f"{subject}: expected kinds for the columns of a pandas DataFrame; got them for a {type(x).__name__}. "
            "Give a DataFrame, or leave them out."
        )
    # Once for all the data: what float32 cannot tell apart is not seen in one datum by itself.
    return replace(found, values=to_float32(subject, found.values)) if found.values.dtype == torch.float64 else found


def _found(subject: str, x: Any, kinds: Kinds | None) -> Numbers:
    """The numbers, of which float64 is yet to be made float32."""
    if isinstance(x, DataLoader | TorchDataset):
        return of_set(subject, x)
    if isinstance(x, tuple) and hasattr(x, "train"):
        raise TypeError(f"{subject}: expected one set; got the {type(x).__name__} of data.load. Pass its .train.")
    if isinstance(x, list | tuple | Tensor | np.ndarray):
        return Numbers(of_part(subject, x))
    # Bases too, so that a table of a user's own class and a view that AnnData makes of a matrix are what they are.
    packages = {kind.__module__.split(".")[0] for kind in type(x).__mro__}
    if "scipy" in packages and hasattr(x, "toarray"):
        return of_scipy(subject, x)
    if "pandas" in packages and (hasattr(x, "to_frame") or hasattr(x, "to_records")):
        return of_pandas(subject, x, kinds)
    if "datasets" in packages and (hasattr(x, "features") or isinstance(x, dict)):
        return of_hugging_face(subject, x, lambda frame: of_pandas(subject, frame, kinds), lambda x: of_set(subject, x))
    if "anndata" in packages and hasattr(x, "var_names"):
        return of_anndata(subject, x, numbers)
    if hasattr(x, "feed") and hasattr(x, "sample"):
        raise TypeError(
            f"{subject}: expected data in memory; got a Stream, which is not read as a whole. Pass its sample, or the "
            "stream to fit."
        )
    if isinstance(x, str):
        raise TypeError(f"{subject}: expected data; got the word {x!r}. Load a set with data.load({x!r}).train.")
    raise TypeError(
        f"{subject}: expected a Dataset, a tensor, an array, a table or a set of torch; got {type(x).__name__}. "
        "Convert it first, for instance with numpy.asarray(x, dtype=numpy.float32)."
    )


def beside(subject: str, x: Any) -> tuple[Tensor, str]:
    """A context and a note: whole numbers, such as classes, become int64; all others float32.

    Raises:
        TypeError, ValueError: as those of :func:`numbers`; a set with labels, which is two contexts.
    """
    found = numbers(subject, x)
    if found.labels is not None:
        raise ValueError(
            f"{subject}: expected one array; got a {type(x).__name__} of data with labels. Pass either by itself."
        )
    values = no_pixels(found.values)
    return values if values.dtype == torch.int64 else values.to(torch.float32), found.note
