"""A user's own files: arrays of numpy, folders of images."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyro_vae import checks
from pyro_vae.data.archives import check_labels, read_arrays
from pyro_vae.data.arrays import first, joined, listed
from pyro_vae.data.columns import Kinds
from pyro_vae.data.conversion import as_dataset
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.images import read_image, suffixes
from pyro_vae.data.parsing import file_of, folder_of

# Of the images of a folder: this much, or this many times the sizes of the files, of which blank ones take little.
_ROOM, _GROWTH = 2**29, 250
_DEEPEST = 32  # folders within folders
TABLES, ANNDATA = (".csv", ".parquet"), ".h5ad"


def read(path: Path, kinds: Kinds | None = None) -> Dataset:
    """The set in a ``.npy``, ``.npz``, ``.csv``, ``.parquet`` or ``.h5ad`` file or a folder of images."""
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{file_of(path)}: expected a file or folder; got none. Check the path.")
    if path.suffix.lower() not in (".npy", ".npz", *TABLES, ANNDATA):
        raise ValueError(
            f"{file_of(path)}: expected a .npy, .npz, .csv, .parquet or .h5ad file or a folder of images; got "
            f"{path.suffix or 'no suffix'!r}. Read it yourself and pass the array."
        )
    if not path.is_file():
        kind = stat.filemode(path.stat().st_mode)
        raise ValueError(f"{file_of(path)}: expected a file that ends; got a pipe or device, {kind}. Copy it.")
    if path.suffix.lower() in TABLES:
        return as_dataset(read_frame(path), name=path.stem, kinds=kinds)
    if path.suffix.lower() == ANNDATA:
        return as_dataset(read_anndata(path), name=path.stem)
    values, labels, note = read_arrays(path)
    dataset = as_dataset(values, name=path.stem)
    dataset = replace(dataset, note=joined(dataset.note, note))
    return dataset if labels is None else replace(dataset, labels=torch.from_numpy(check_labels(path, labels)))


def read_frame(path: Path) -> Any:
    """A ``.csv`` table, with names in its first line, or a ``.parquet`` one, as pandas reads it.

    Raises:
        ImportError: pandas is not installed, or pyarrow for a parquet file.
        ValueError: the file is no such table.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"{file_of(path)}: expected pandas to read tables; got none. Use pip install 'pyro-vae[tables]'."
        ) from error
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, pandas)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # of lines with more cells than names
            frame = pandas.read_csv(path, index_col=False)
        if str(next(iter(frame), "")).startswith("Unnamed: "):
            raise ValueError("a first column without a name, as an index is written")
        return frame
    except (
        ValueError,
        OverflowError,
        pandas.errors.ParserWarning,
    ) as error:  # of pandas' parser, and of what is no UTF-8
        raise ValueError(
            f"{file_of(path)}: expected a table of comma-separated values with names in its first line; got "
            f"{checks.printable(error)}. Read it with pandas.read_csv and its options, and pass the DataFrame."
        ) from error


def _read_parquet(path: Path, pandas: Any) -> Any:
    try:
        return pandas.read_parquet(path)
    except ImportError as error:
        raise ImportError(
            f"{file_of(path)}: expected pyarrow to read a parquet file; got none. Use pip install 'pyro-vae[tables]'."
        ) from error
    except (ValueError, OSError) as error:  # pyarrow's own errors are such
        raise ValueError(
            f"{file_of(path)}: expected a parquet file; got {checks.printable(error)}. Write it again."
        ) from error


def read_anndata(path: Path) -> Any:
    """The AnnData of an ``.h5ad`` file.

    Raises:
        ImportError: anndata is not installed.
        ValueError: the file is none.
    """
    try:
        import anndata
    except ImportError as error:
        raise ImportError(
            f"{file_of(path)}: expected anndata to read cells; got none. Use pip install 'pyro-vae[cells]'."
        ) from error
    try:
        return anndata.read_h5ad(path)
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file_of(path)}: expected an AnnData file of cells by genes; got {checks.printable(error)}. Write it "
            "again with adata.write_h5ad."
        ) from error


PARTS = {"train": ("train", "training"), "validation": ("valid", "val", "validation"), "test": ("test", "testing")}
"""Names of the subfolders of a folder that is split already."""


def read_splits(path: Path, kinds: Kinds | None = None) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """The set in a file or folder, and its validation and test data where the folder says which they are."""
    if path.is_dir() and kinds is not None:
        raise TypeError(f"{folder_of(path)}: expected kinds for a table; got them for a folder. Leave them out.")
    found, others = _parts(path) if path.is_dir() else ({}, [])
    _check_links(path, list(found.values()), [])
    if not found or (len(found) == 1 and any((path / name).is_dir() for name in others)):
        dataset = read(path, kinds)  # folders of classes, of which one may be called train
        note = listed("a class, not a part", [folder.name for folder in found.values()])
        return replace(dataset, note=joined(dataset.note, note)), None, None
    if "train" not in found:
        raise ValueError(f"{folder_of(path)}: expected a part train; got {', '.join(found)} alone. Add train.")
    classes = _ordered({name for folder in found.values() for name in _classes(folder)})
    parts = {part: _read_folder(folder, classes) for part, folder in found.items()}
    note = joined(parts["train"].note, listed("left out beside the parts", others))
    parts["train"] = replace(parts["train"], note=note)
    depths = {part: dataset.levels for part, dataset in parts.items()}
    if len(set(depths.values())) > 1:
        raise ValueError(
            f"{folder_of(path)}: expected images of one depth in all parts; got levels {depths}. Convert them."
        )
    shapes = {part: dataset.event_shape for part, dataset in parts.items()}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{part} {tuple(shape)}" for part, shape in shapes.items())
        raise ValueError(f"{folder_of(path)}: expected images of one size in all parts; got {sizes}. Resize them.")
    return parts["train"], parts.get("validation"), parts.get("test")


def _parts(path: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of a folder that are parts of a set, and what else is in it."""
    found: dict[str, Path] = {}
    others = []
    for child in sorted(path.iterdir()):
        part = next((part for part, names in PARTS.items() if child.name.lower() in names and child.is_dir()), None)
        if child.name.startswith("."):
            continue
        if part is None:
            others.append(child.name)
        elif part in found:
            raise ValueError(
                f"{folder_of(path)}: expected one folder for {part}; got {found[part].name} and {child.name}. "
                "Join them."
            )
        else:
            found[part] = child
    return found, others


def _classes(folder: Path) -> set[str]:
    return {parents[0] for parents in _listed(folder)[1] if parents}


def _ordered(names: Iterable[str]) -> list[str]:
    """Names in order: numbers, where all of them are, by their size, so that 10 comes after 9."""
    names = sorted(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _listed(folder: Path) -> tuple[list[Path], list[tuple[str, ...]], str]:
    """The images of a folder that are not hidden, their parents within it, and a note of what is no image."""
    readable = suffixes()
    files, folders = _walked(folder)
    paths = [path for path in files if path.suffix.lower() in readable and path.is_file()]
    left = [path.name for path in files if path not in set(paths)]
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    note = listed(f"left out {len(left)} other files", left)
    if paths and all(parents):
        full = {parts[0] for parts in parents}
        empty = [path.name for path in folders if path.parent == folder and path.name not in full]
        inner = sorted({"/".join(parts) for parts in parents if len(parts) > 1})
        note = joined(note, listed("no class, for want of images", empty), listed("no classes of their own", inner))
    return paths, parents, note


def _walked(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and the folders below a folder that are not hidden, sorted.

    Raises:
        OSError: a folder that cannot be read, which ``Path.rglob`` passes over.
    """

    def fail(error: OSError) -> None:
        raise error

    files, folders = [], []
    for root, inner, names in os.walk(folder, onerror=fail):
        inner[:] = [name for name in inner if not name.startswith(".")]
        folders += [Path(root, name) for name in inner]
        files += [Path(root, name) for name in names if not name.startswith(".")]
        if len(Path(root).relative_to(folder).parts) > _DEEPEST:
            raise ValueError(f"{folder_of(folder)}: expected folders {_DEEPEST} deep at most; got more. Move them up.")
    _check_links(folder, folders, files)
    return sorted(files), sorted(folders)


def _check_links(folder: Path, folders: list[Path], files: list[Path]) -> None:
    """Raises for links to folders, which may go round, and to files elsewhere, which whoever made a link chose."""
    links = sorted(path.name for path in folders if path.is_symlink())
    if links:
        raise ValueError(f"{folder_of(folder)}: expected folders; got links to some, {first(links)}. Copy them.")
    top = os.path.realpath(folder)
    out = [path.name for path in files if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(top)]
    if out:
        raise ValueError(
            f"{folder_of(folder)}: expected files of its own; got links that lead out of it, "
            f"{first(sorted(out))}. Copy what they lead to."
        )


def _check_depth(folder: Path, parents: list[tuple[str, ...]]) -> None:
    """Raises for training and test data that are below the top, where they would be one set."""
    below = {
        part: "/".join(parts[: depth + 1])
        for parts in parents
        for depth, name in enumerate(parts)
        for part, names in PARTS.items()
        if depth and name.lower() in names
    }
    if len(below) > 1:
        raise ValueError(
            f"{folder_of(folder)}: expected the parts of a set at its top; got {' and '.join(below.values())}, which "
            "would be one set. Load the folder that holds them, or move them up."
        )


def listed_images(folder: Path, classes: list[str] | None = None) -> tuple[list[Path], list[int] | None, str]:
    """The images of a folder in order, the classes that their subfolders are, if any, and a note of what is left out.

    Args:
        folder: its path.
        classes: names of all classes; those of the folder where left out.
    """
    paths, parents, note = _listed(folder)
    if not paths:
        raise ValueError(f"{folder_of(folder)}: expected images; got none. Give a folder of PNG or JPEG files.")
    if not all(parents) and any(parents):
        raise ValueError(
            f"{folder_of(folder)}: expected images in the folder alone or in class subfolders alone; got both. Move "
            "the former into a subfolder."
        )
    _check_depth(folder, parents)
    if not all(parents):
        return paths, None, note
    index = {name: i for i, name in enumerate(classes or _ordered({parts[0] for parts in parents}))}
    return paths, [index[parts[0]] for parts in parents], note


def _read_folder(folder: Path, classes: list[str] | None = None) -> Dataset:
    paths, labels, note = listed_images(folder, classes)
    images, transparent = _read_images(folder, paths)
    if transparent:
        note = joined(note, f"transparency of {transparent} images is left out")
    levels = 255 if images.dtype == np.uint8 else None
    found = None if labels is None else torch.tensor(labels)
    return Dataset(folder.name, torch.from_numpy(images), found, levels=levels, note=note)


def _read_images(folder: Path, paths: list[Path]) -> tuple[npt.NDArray[Any], int]:
    """Images of one shape, channels first, and how many had transparency."""
    images: npt.NDArray[Any] = np.empty(0, np.uint8)
    transparent = 0
    for i, path in enumerate(paths):
        image, seen_through = read_image(path)
        transparent += seen_through
        if i == 0:
            _check_room(folder, paths, len(paths) * image.nbytes)
            images = np.empty((len(paths), *image.shape), image.dtype)
        if image.shape != images.shape[1:] or image.dtype != images.dtype:
            raise ValueError(
                f"{file_of(path)}: expected an image (C, H, W) like the first, {images.shape[1:]} of {images.dtype}; "
                f"got {image.shape} of {image.dtype}. Resize the images, or convert them to one mode."
            )
        images[i] = image
    return images, transparent


def _check_room(folder: Path, paths: list[Path], needed: int) -> None:
    """Raises for small files whose images take much memory."""
    size = sum(path.stat().st_size for path in paths)
    if needed > max(_ROOM, _GROWTH * size):
        raise ValueError(
            f"{folder_of(folder)}: expected images of at most {_GROWTH} times their {size} bytes of files; got "
            f"{needed} bytes. Make them smaller, or pass an array."
        )
