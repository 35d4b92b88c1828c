"""Data from the command line: names, folders and files, their columns and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pyro_vae import tables
from pyro_vae.checks import printable
from pyro_vae.cli.parser import nearest
from pyro_vae.data import Binarize, Dataset, Splits, as_dataset, files, load, named
from pyro_vae.data.conversion import binarized


def read(
    data: str,
    columns: list[str] | str | None = None,
    labels: str | None = None,
    kinds: dict[str, str] | None = None,
    binarize: Literal["auto", "none", "dynamic", "static", "threshold"] = "auto",
    validation: int | float | None = None,
    split_seed: int = 0,
    data_folder: str | None = None,
) -> Splits:
    """Reads a set and splits it into training, validation and test data.

    Args:
        data: a name (mnist, fashion_mnist, kmnist, emnist, omniglot, svhn, cifar10, digits), a folder of images, or a
            .npy, .npz, .csv, .parquet or .h5ad file.
        columns: those of a table, or the genes, to use: a,b,c; all when left out.
        labels: the column of a table, or of the cells' obs, that says the class; it is no datum.
        kinds: of columns, in place of those found: real, positive, count, binary, ordinal or category.
        binarize: how gray pixels become bits: dynamic, static, threshold or none; auto is dynamic for a Bernoulli
            likelihood of gray pixels, and none otherwise.
        validation: number or fraction of the training data held out; 10,000 of the MNIST family, a tenth otherwise.
        split_seed: of the split into parts, and of bits that are drawn once.
        data_folder: of the named sets; $PYRO_VAE_DATA or the user's cache when left out.
    """
    source = selected(data, columns, labels, kinds)
    mode = "none" if binarize == "auto" else binarize
    if source is not data:
        kinds = None
    given: Any = kinds  # of words, which data.load checks
    return load(source, data_folder, binarize=mode, validation=validation, kinds=given, seed=split_seed)


def rows(data: str, split: str, **options: Any) -> torch.Tensor:
    """Which rows of the source, counted from 0, the data of a part are: a file that is not split is permuted.

    Args:
        data: as for :func:`read`.
        split: train, validation or test.
        options: further ones of :func:`read`.
    """
    found = getattr(read(data, **options), split)
    source: Any = selected(data, options["columns"], options["labels"], options["kinds"])
    path = Path(data).expanduser()
    if isinstance(source, str) and data == "digits":
        source = named.digits()
    elif isinstance(source, str) and path.exists():
        whole, _, test = files.read_splits(path)
        source = whole if test is None else source
    if isinstance(source, str):  # split already
        return torch.arange(len(found))
    places = {"validation": options["validation"], "seed": options["split_seed"]}
    counted = load(replace(source, context=(torch.arange(len(source)),)), **places)
    return getattr(counted, split).context[0]


def selected(
    source: str, columns: list[str] | str | None, labels: str | None, kinds: dict[str, str] | tables.Table | None
) -> Any:
    """The source itself, or the Dataset of its columns and labels where these are asked for."""
    path = Path(source).expanduser()
    chosen = columns.split(",") if isinstance(columns, str) else columns
    if chosen and labels:
        chosen = [name for name in chosen if name != labels]
    if path.suffix.lower() == files.ANNDATA and path.is_file() and (chosen or labels):
        return _cells(path, chosen, labels)
    if path.suffix.lower() in files.TABLES and path.is_file():
        return _table(path, chosen, labels, kinds)
    for option, value in (("--columns", chosen), ("--labels", labels)):
        if value:
            raise ValueError(
                f"{option}: expected a .csv, .parquet or .h5ad file to choose columns of; got {source!r}. Leave it out."
            )
    return source


def _table(path: Path, columns: Sequence[str] | None, labels: str | None, kinds: Any) -> Dataset:
    frame = files.read_frame(path)
    names = [str(name) for name in frame.columns]
    frame.columns = names
    classes = None
    if labels is not None:
        _check_names("--labels", [labels], names)
        classes = frame.pop(labels)
    if columns is not None:
        _check_names("--columns", columns, names)
        frame = frame[list(columns)]
    if isinstance(kinds, tables.Table):  # of which a frame may have more than the columns of the run
        frame = frame[[c.name for c in kinds.columns if c.name in frame]]
    found = as_dataset(frame, name=path.stem, kinds=kinds)
    return found if classes is None else replace(found, labels=codes(labels or "", classes))


def _cells(path: Path, genes: Sequence[str] | None, labels: str | None) -> Dataset:
    cells = files.read_anndata(path)
    classes = None
    if labels is not None:
        _check_names("--labels", [labels], list(map(str, cells.obs.columns)))
        classes = cells.obs[labels]
    if genes is not None:
        _check_names("--columns", genes, list(map(str, cells.var_names)))
        cells = cells[:, list(genes)]
    found = as_dataset(cells, name=path.stem)
    return found if classes is None else replace(found, labels=codes(labels or "", classes))


def codes(name: str, classes: Any) -> torch.Tensor:
    """Classes in their order, of numbers by size and of words by the alphabet, as numbers from 0, int64 (N,).

    Raises:
        ValueError: one is missing.
    """
    values = np.asarray(classes)
    missing = np.asarray([value is None or value != value for value in values])
    if missing.any():
        raise ValueError(
            f"--labels: expected a class in every row; got {int(missing.sum())} missing in {name!r}. Fill them in, "
            "or leave --labels out."
        )
    return torch.from_numpy(_unique(values)[1].astype(np.int64).reshape(-1))


def class_names(source: str, labels: str | None) -> list[str]:
    """What the codes of the labels of a file stand for, in their order; none where there are no names."""
    path = Path(source).expanduser()
    if labels is None or not path.is_file():
        return []
    cells = path.suffix.lower() == files.ANNDATA
    table = files.read_anndata(path).obs if cells else files.read_frame(path)
    return [str(name) for name in _unique(np.asarray(table[labels]))[0]]


def _unique(values: Any) -> Any:
    """Classes in order, numbers by size and others as words, and the place of each value among them."""
    return np.unique(values if np.issubdtype(values.dtype, np.number) else values.astype(str), return_inverse=True)


def _check_names(option: str, chosen: Sequence[str], names: Sequence[str]) -> None:
    for name in chosen:
        if name not in names:
            raise ValueError(printable(nearest(option, name, names), 600))


def part(source: str, split: str, options: Any) -> Dataset:
    """A part of a set that is split already, all of another one, made binary as that of a run was."""
    path = Path(source).expanduser()
    mode: Binarize
    if not path.exists():
        mode = "none" if options.binarize == "auto" else options.binarize
        splits = load(source, options.data_folder, binarize=mode, seed=options.split_seed)
        return getattr(splits, split)
    parts = dict(zip(("train", "validation", "test"), files.read_splits(path), strict=True))
    found = parts[split] if parts["test"] is not None else parts["train"]
    if found is None:
        raise ValueError(f"{source}: expected a part {split}; got none. Choose another with --split.")
    if options.binarize in ("dynamic", "static", "threshold"):
        mode = "threshold" if options.binarize == "threshold" else "static"
        found = binarized(found, mode, torch.Generator().manual_seed(options.split_seed))
    return found


def described(splits: Splits) -> str:
    """What was found, in lines."""
    train = splits.train
    lines = [repr(train), f"{len(splits.validation):,} for validation, {len(splits.test):,} for the test"]
    return "\n".join([*lines, *([str(train.table)] if train.table is not None else [])])
