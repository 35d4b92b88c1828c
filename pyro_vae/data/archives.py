"""Arrays of numpy in files, ``.npy`` and ``.npz``, of which no object is unpickled."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from pyro_vae.data.arrays import first, listed
from pyro_vae.data.parsing import entries, file_of, lost, reading, unpacking

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# Of what is unpacked: this much, or this many times the size of the archive; deflate's most is a thousand times.
_ROOM, _GROWTH = 2**27, 100


def read_arrays(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None, str]:
    """The values of a ``.npy`` or ``.npz`` file, the labels if any, and a note of what else is in the file."""
    with reading(path, "Write it again, as numbers: objects are not unpickled."), path.open("rb") as file:
        head = file.read(len(npy.MAGIC_PREFIX))
        file.seek(0)
        if head == npy.MAGIC_PREFIX:
            return _read_array(path, file, path.stat().st_size), None, ""
        if not head.startswith(b"PK"):
            raise ValueError("neither an array nor an archive of arrays")
        with zipfile.ZipFile(file) as archive:
            return _read_archive(path, archive)


def _read_archive(path: Path, archive: zipfile.ZipFile) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None, str]:
    found = entries(path, archive)
    members = {info.filename.removesuffix(".npy"): info for info in found}
    if len(members) < len(found):
        raise ValueError("two arrays of one name")
    if {"data", "shape", "format"} <= set(members):
        raise lost(path, "arrays; got a sparse matrix of scipy", "Pass scipy.sparse.load_npz of the file")
    for names in (("images", "x", "data"), ("labels", "y")):
        if len(both := [key for key in names if key in members]) > 1:
            raise lost(path, f"one array of {', '.join(names)}; got {both}", "Pass one by itself")
    images = next((key for key in ("images", "x", "data") if key in members), None)
    labels = next((key for key in ("labels", "y") if key in members), None)
    if images is None and len(members) == 1:
        return _read_member(path, archive, next(iter(members.values()))), None, ""
    if images is None:
        got = first(members) or "none"
        raise lost(path, f"an array named images, x or data; got {got}", "Rename the array, or pass it itself")
    note = listed("left out arrays", [key for key in members if key not in (images, labels)])
    values = _read_member(path, archive, members[images])
    return values, None if labels is None else _read_member(path, archive, members[labels]), note


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with unpacking(path, archive, member, max(_ROOM, _GROWTH * path.stat().st_size)) as file:
        return _read_array(path, file, member.file_size)


def read_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype of an array, once its header claims no more bytes than there are."""
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"format {version}, which is none of plain numbers")
    shape, fortran, dtype = _HEADERS[version](file)
    left = size - file.tell()
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"an array of {dtype}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > left:
        raise ValueError(f"an array {shape} of {dtype}, for which there are {left} bytes")
    return shape, fortran, dtype


def _read_array(path: Path, file: IO[bytes], size: int) -> npt.NDArray[Any]:
    read_header(file, size)
    file.seek(0)
    array = npy.read_array(file, allow_pickle=False)
    if file.read(1):
        raise lost(path, "one array; got something after it", "Save each array as a file")
    return array


def check_labels(path: Path, labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Labels of a file as int64.

    Raises:
        ValueError: others than one class of each datum.
    """
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"{file_of(path)}: expected labels of integers, shape (N,); got {labels.dtype} of shape {labels.shape}. "
            "Store classes, or leave them out."
        )
    if labels.size and int(labels.max()) >= 2**63:
        raise ValueError(
            f"{file_of(path)}: expected labels that int64 holds; got {int(labels.max())}. Number the classes."
        )
    return labels.astype(np.int64)
