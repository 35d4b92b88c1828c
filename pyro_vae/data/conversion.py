"""Data sets of what users have, and binary ones of gray ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pyro_vae.data.binarization import Binarize, bits, check_unit, floats
from pyro_vae.data.columns import Kinds
from pyro_vae.data.containers import numbers
from pyro_vae.data.dataset import CHUNK, Dataset


def as_dataset(x: Any, name: str = "array", *, kinds: Kinds | None = None) -> Dataset:
    """A set of a tensor, array, table or set of torch; a Dataset is returned as it is.

    uint8 values of tensors and arrays are images, scaled by 1/255, unless none exceeds 1: these, and booleans, are
    bits. All other numbers, and those of tables and sparse matrices, become float32 as they are, so that counts and
    reals keep their values, and so does their shape (N, ...). What is masked or missing becomes NaN, categories and
    words their codes. Float32 and uint8 values are not copied.

    The set of a DataFrame says in its ``table`` which kind each column is taken for: whole numbers from 0 on are
    counts, 0 and 1 binary, numbers above 0 positive where their logarithms are less skewed, others real; words and
    categories are binary where there are two, ordinal where pandas has an order, else categories.

    Args:
        x: a tensor, a numpy array (masked or not), nested lists, a pandas DataFrame, a scipy matrix; AnnData, of which
            X is taken, or its ``raw``, or a layer, ``adata.layers["counts"]``; a Dataset or DataLoader of torch, read
            once, whose second parts are labels where they are whole numbers, or of which each datum is a dictionary
            with an image or x and a label or y; a Dataset of Hugging Face's, of which a column of images or arrays is
            taken, or else all columns as a table, and labels from a column of classes.
        name: What errors, histories and plots call the set.
        kinds: of columns of a DataFrame, by name, in place of those found: ``real``, ``positive``, ``count``,
            ``binary``, ``ordinal`` or ``category``; or the values of an ordinal in their order. The ``table`` of the
            training data reads a further frame, such as test data, in its columns and codes.

    Warns:
        UserWarning: What a set or a loader of torch does to data that is not done to these: other data at each reading,
            as random transforms give, a ``collate_fn``, an ``__iter__`` of its own.

    Raises:
        TypeError: Something else, or values that are not real numbers.
        ValueError: Another number of dimensions, channels last, numbers that float32 cannot hold, or what ``Dataset``
            refuses.

    Example:
        >>> as_dataset([[0.5, 7.0], [2.0, 3.0]], name="counts")
        Dataset('counts', 2 x (2,), real values from 0.5 to 7, binarization='none', device='cpu')
    """
    subject = f"Dataset {name!r}"
    if isinstance(x, Dataset):
        if kinds is not None:
            raise TypeError(f"{subject}: expected kinds for a DataFrame; got them for a Dataset. Give the DataFrame.")
        return x
    found = numbers(subject, x, kinds)
    values = found.values
    if values.ndim < 2:
        raise ValueError(f"{subject}: expected shape (N, D) or (N, ...); got {tuple(values.shape)}. Reshape it.")
    last = values.shape[-1]
    if values.ndim == 4 and values.dtype == torch.uint8 and last in (1, 3, 4) and values.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"{subject}: expected images (N, C, H, W); got channels last, {tuple(values.shape)}. Move the channels: "
            "x.transpose(0, 3, 1, 2) of an array, x.permute(0, 3, 1, 2) of a tensor."
        )
    levels: int | None = None
    if values.dtype in (torch.bool, torch.uint8):
        levels = 1 if values.dtype == torch.bool or values.numel() == 0 or int(values.max()) <= 1 else 255
    stored = values.to(torch.float32 if levels is None else torch.uint8)
    return Dataset(
        name, stored, found.labels, levels,
        columns=found.columns, categories=found.categories, note=found.note, table=found.table,
    )  # fmt: skip


def binarized(dataset: Dataset, mode: Binarize, generator: torch.Generator) -> Dataset:
    """The set made binary once, or marked to be made so by each batch."""
    if mode in ("none", "dynamic"):
        return replace(dataset, binarization=mode)
    check_unit(dataset.name, dataset.images, dataset.levels)
    images = torch.empty_like(dataset.images, dtype=torch.uint8)
    for stored, made in zip(dataset.images.split(CHUNK), images.split(CHUNK), strict=True):
        grays = floats(stored, dataset.levels)
        made.copy_(bits(grays, generator) if mode == "static" else grays > 0.5)
    return replace(dataset, images=images, levels=1, binarization=mode)
