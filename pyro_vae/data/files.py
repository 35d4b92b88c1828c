"""A user's own files: arrays of numpy, folders of images."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, TiffImagePlugin

from pyro_vae.data.arrays import joined, listed
from pyro_vae.data.dataset import Dataset, as_dataset

_GRAY_MODES = frozenset({"1", "L", "LA"})
_COLOR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_STUBS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})  # PIL knows their names, and reads none of them


@contextmanager
def reading(path: Path, remedy: str = "Write it again.") -> Iterator[None]:
    """Turns what a parser raises on a damaged file into one error that names the file and the remedy."""
    try:
        yield
    except _LostError:
        raise
    except Image.DecompressionBombError as error:
        raise _damaged(path, error, "Pass a smaller image.") from error
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
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(
            f"File {path}: expected a .npy or .npz file or a folder of images; got {path.suffix or 'no suffix'!r}. "
            "Read it yourself and pass the array."
        )
    images, labels, note = _read_arrays(path)
    dataset = as_dataset(images, name=path.stem)
    dataset = replace(dataset, note=joined(dataset.note, note))
    if labels is None:
        return dataset
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"File {path}: expected labels of integers, shape (N,); got {labels.dtype} of shape {labels.shape}. "
            "Store classes, or leave them out."
        )
    if labels.size and int(labels.max()) >= 2**63:
        raise ValueError(f"File {path}: expected labels that int64 holds; got {int(labels.max())}. Number the classes.")
    return replace(dataset, labels=torch.from_numpy(labels.astype(np.int64)))


def _read_arrays(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None, str]:
    """The values, the labels if any, and a note of what else is in the file."""
    with reading(path, "Write it again, as numbers: objects are not unpickled."), path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if file.read(1):
                raise _lost(path, "one array; got something after it", "Save each array as a file")
            return loaded, None, ""
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    if {"data", "shape", "format"} <= set(arrays):
        raise ValueError(
            f"File {path}: expected arrays; got a sparse matrix of scipy. Pass scipy.sparse.load_npz of the file."
        )
    for names in (("images", "x", "data"), ("labels", "y")):
        if len(both := [key for key in names if key in arrays]) > 1:
            raise ValueError(f"File {path}: expected one array of {', '.join(names)}; got {both}. Pass one by itself.")
    images = next((key for key in ("images", "x", "data") if key in arrays), None)
    labels = next((key for key in ("labels", "y") if key in arrays), None)
    if images is None and len(arrays) == 1:
        return next(iter(arrays.values())), None, ""
    if images is None:
        raise ValueError(
            f"File {path}: expected an array named images, x or data; got {', '.join(arrays) or 'none'}. "
            "Rename the array, or pass it itself."
        )
    note = listed("left out arrays", [key for key in arrays if key not in (images, labels)])
    return arrays[images], None if labels is None else arrays[labels], note


PARTS = {"train": ("train", "training"), "validation": ("valid", "val", "validation"), "test": ("test", "testing")}
"""Names of the subfolders of a folder that is split already."""


def read_splits(path: Path) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """The set in a file or folder, and its validation and test data where the folder says which they are."""
    found, others = _parts(path) if path.is_dir() else ({}, [])
    if not found or (len(found) == 1 and any((path / name).is_dir() for name in others)):
        dataset = read(path)  # folders of classes, of which one may be called train
        note = listed("a class, not a part", [folder.name for folder in found.values()])
        return replace(dataset, note=joined(dataset.note, note)), None, None
    if "train" not in found:
        raise ValueError(f"Folder {path}: expected a part train; got {', '.join(found)} alone. Add train.")
    classes = _ordered({name for folder in found.values() for name in _classes(folder)})
    parts = {part: _read_folder(folder, classes) for part, folder in found.items()}
    note = joined(parts["train"].note, listed("left out beside the parts", others))
    parts["train"] = replace(parts["train"], note=note)
    depths = {part: dataset.levels for part, dataset in parts.items()}
    if len(set(depths.values())) > 1:
        raise ValueError(
            f"Folder {path}: expected images of one depth in all parts; got levels {depths}. Convert them."
        )
    shapes = {part: dataset.event_shape for part, dataset in parts.items()}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{part} {tuple(shape)}" for part, shape in shapes.items())
        raise ValueError(f"Folder {path}: expected images of one size in all parts; got {sizes}. Resize them.")
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
                f"Folder {path}: expected one folder for {part}; got {found[part].name} and {child.name}. Join them."
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
    readable = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _STUBS
    }
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
    links = sorted(path.name for path in folders if path.is_symlink())
    if links:
        raise ValueError(f"Folder {folder}: expected folders; got links to some, {', '.join(links[:5])}. Copy them.")
    return sorted(files), sorted(folders)


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
            f"Folder {folder}: expected the parts of a set at its top; got {' and '.join(below.values())}, which would "
            "be one set. Load the folder that holds them, or move them up."
        )


def _read_folder(folder: Path, classes: list[str] | None = None) -> Dataset:
    paths, parents, note = _listed(folder)
    if not paths:
        raise ValueError(f"Folder {folder}: expected images; got none. Give a folder of PNG or JPEG files.")
    if not all(parents) and any(parents):
        raise ValueError(
            f"Folder {folder}: expected images in the folder alone or in class subfolders alone; got both. Move "
            "the former into a subfolder."
        )
    _check_depth(folder, parents)
    images, transparent = _read_images(paths)
    if transparent:
        note = joined(note, f"transparency of {transparent} images is left out")
    labels = None
    if all(parents):
        index = {name: i for i, name in enumerate(classes or _ordered({parts[0] for parts in parents}))}
        labels = torch.tensor([index[parts[0]] for parts in parents])
    levels = 255 if images.dtype == np.uint8 else None
    return Dataset(folder.name, torch.from_numpy(images), labels, levels=levels, note=note)


def _read_images(paths: list[Path]) -> tuple[npt.NDArray[Any], int]:
    """Images of one shape, channels first, and how many had transparency."""
    images: npt.NDArray[Any] = np.empty(0, np.uint8)
    transparent = 0
    for i, path in enumerate(paths):
        image, seen_through = read_image(path)
        transparent += seen_through
        if i == 0:
            images = np.empty((len(paths), *image.shape), image.dtype)
        if image.shape != images.shape[1:] or image.dtype != images.dtype:
            raise ValueError(
                f"File {path}: expected an image (C, H, W) like the first, {images.shape[1:]} of {images.dtype}; got "
                f"{image.shape} of {image.dtype}. Resize the images, or convert them to one mode."
            )
        images[i] = image
    return images, transparent


def read_image(path: Path) -> tuple[npt.NDArray[Any], bool]:
    """An image file, upright, and whether it had transparency, which is dropped.

    Shapes: H rows, W columns.

    Returns:
        uint8 (1, H, W) of grays or (3, H, W) of colors; float32 k / 65535 of 16-bit grays.

    Raises:
        ValueError: a damaged file, or one of which a part would be lost: several pages, more than 8 bits of color,
            channels beside the colors.
    """
    # By its handle: PIL maps a file that it opens by name into memory, and garbles a TIFF there that is to be turned.
    with reading(path), path.open("rb") as file, Image.open(file) as image:
        pages = getattr(image, "n_frames", 1)
        depth, mode = _depth(path, image), image.mode
        if pages > 1:
            raise _lost(path, f"one image; got {pages} pages or frames", "Save each as a file, or pass an array")
        if depth > 8 and not mode.startswith("I"):
            raise _lost(path, f"8 bits per channel; got {depth} bits of color", "Convert it, or pass an array")
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(path, image)
        upright = ImageOps.exif_transpose(image)
        if mode.startswith("I;16") or (mode == "I" and depth > 8):  # which PIL scales to 16 bits
            grays = np.asarray(upright).astype(np.float32)
            return (grays / 65535)[None], bool((grays == upright.info.get("transparency", -1)).any())
        alpha = "A" in upright.mode or "transparency" in upright.info
        seen_through = alpha and bool((np.asarray(upright.convert("RGBA"))[..., 3] < 255).any())
        if mode in _GRAY_MODES:
            return np.asarray(upright.convert("L"))[None], seen_through
        if mode in _COLOR_MODES:
            return np.asarray(upright.convert("RGB")).transpose(2, 0, 1), seen_through
    raise _lost(path, f"8 bits per channel; got mode {mode!r}", "Convert it, or pass an array")


def _depth(path: Path, image: Image.Image) -> int:
    """Bits per channel of a file, of which PIL keeps eight of colors; 0 where its kind has no more, or no colors."""
    with path.open("rb") as file:
        head = file.read(4096)
    tiles = getattr(image, "tile", [])  # how PIL is about to decode it
    if image.format == "PNG":
        return head[24]
    if image.format == "PPM" and "I;16" in str(tiles):
        return 16
    if image.format == "PPM" and isinstance(tiles[0][3], tuple) and tiles[0][0].startswith("ppm"):
        return int(tiles[0][3][1]).bit_length()  # of the largest value
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(277, 1) > 1:
        return max(image.tag_v2.get(258, (1,)))
    if image.format == "SGI":
        return 16 if "SGI16" in str(tiles) or ";16B" in str(tiles) else 8
    if image.format == "JPEG2000" and (start := head.find(b"\xff\x4f\xff\x51")) >= 0:
        return (head[start + 42] & 0x7F) + 1
    if image.format == "AVIF" and (start := head.find(b"av1C")) >= 0:
        return 10 if head[start + 6] & 0x40 else 8
    return 0


def _check_tiff(path: Path, image: TiffImagePlugin.TiffImageFile) -> None:
    """Raises for what PIL cuts from a TIFF, or reads as other numbers than are meant, without a word."""
    tags = image.tag_v2
    samples, bands = tags.get(277, 1), len(image.getbands())
    bits, signed, white_is_zero = tags.get(258, (1,))[0], 2 in tags.get(339, (1,)), tags.get(262) == 0
    if samples > bands:
        raise _lost(path, f"{bands} channels of {image.mode}; got {samples}", "Pass an array of all")
    if image.mode.startswith("I;16") and (bits != 16 or white_is_zero):
        got = f"{bits} bits" if bits != 16 else "white as 0"
        raise _lost(path, f"grays of 16 bits with black as 0; got {got}", "Convert it, or pass an array")
    if image.mode == "L" and signed:
        raise _lost(path, "grays from 0; got signed ones", "Convert it, or pass an array")


class _LostError(ValueError):
    """An error of ours, which :func:`reading` passes on."""


def _lost(path: Path, expected: str, remedy: str) -> ValueError:
    return _LostError(f"File {path}: expected {expected}. {remedy}.")
