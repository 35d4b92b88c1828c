"""A user's own files: arrays of numpy, folders of images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pyro_vae.data.dataset import Dataset, as_dataset

_IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "CMYK"})


@contextmanager
def reading(path: Path, remedy: str = "Write it again.") -> Iterator[None]:
    """Turns what a parser raises on a damaged file into one error that names the file and the remedy."""
    try:
        yield
    except (AssertionError, EOFError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError) as error:
        raise _damaged(path, error, remedy) from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error, remedy) from error
    except OSError as error:
        # The decoders of PIL report a truncated image as an OSError without an error number; a full disk has one.
        if error.errno is not None:
            raise
        raise _damaged(path, error, remedy) from error


def _damaged(path: Path, error: Exception, remedy: str) -> ValueError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"File {path}: expected a complete file of its kind; got one that fails ({reason[0]}). {remedy}")


def read(path: Path) -> Dataset:
    """The set in a ``.npy`` or ``.npz`` file or a folder of images."""
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"File {path}: expected a file or folder; got none. Check the path.")
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"File {path}: expected a .npy or .npz file or a folder of images; got {path.suffix or 'no suffix'!r}. "
            "Read it yourself and pass the array."
        )
    images, labels = _read_arrays(path)
    dataset = as_dataset(images, name=path.stem)
    if labels is None:
        return dataset
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"File {path}: expected labels of integers, shape (N,); got {labels.dtype} of shape {labels.shape}. "
            "Store classes, or leave them out."
        )
    return replace(dataset, labels=torch.from_numpy(labels.astype(np.int64)))


def _read_arrays(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    with reading(path, "Write it again, as numbers: objects are not unpickled."):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    images = next((key for key in ("images", "x", "data") if key in arrays), None)
    labels = next((key for key in ("labels", "y") if key in arrays), None)
    if images is None and len(arrays) == 1:
        return next(iter(arrays.values())), None
    if images is None:
        raise ValueError(
            f"File {path}: expected an array named images, x or data; got {', '.join(arrays) or 'none'}. "
            "Rename the array, or pass it itself."
        )
    return arrays[images], None if labels is None else arrays[labels]


def _read_folder(folder: Path) -> Dataset:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        raise ValueError(f"Folder {folder}: expected images; got none. Give a folder of PNG or JPEG files.")
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    if not all(parents) and any(parents):
        raise ValueError(
            f"Folder {folder}: expected images in the folder alone or in class subfolders alone; got both. Move "
            "the former into a subfolder."
        )
    images = np.empty(0, np.uint8)
    for i, path in enumerate(paths):
        image = read_image(path)
        if i == 0:
            images = np.empty((len(paths), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"File {path}: expected an image (C, H, W) like the first, {images.shape[1:]}; got {image.shape}. "
                "Resize the images, or convert them to one mode."
            )
        images[i] = image
    labels = None
    if all(parents):
        classes = {name: i for i, name in enumerate(sorted({parts[0] for parts in parents}))}
        labels = torch.tensor([classes[parts[0]] for parts in parents])
    return Dataset(folder.name, torch.from_numpy(images), labels, levels=255)


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image file, uint8 (1, H, W) of greys or (3, H, W) of colours; transparency is dropped."""
    with reading(path), Image.open(path) as image:
        if image.mode in _GREY_MODES:
            return np.asarray(image.convert("L"))[None]
        if image.mode in _COLOUR_MODES:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        mode = image.mode
    raise ValueError(f"File {path}: expected 8 bits per channel; got mode {mode!r}. Convert it, or pass an array.")
