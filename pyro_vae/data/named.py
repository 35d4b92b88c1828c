"""The named sets: read from a folder in torchvision's layout, or downloaded into it."""

from __future__ import annotations

import http.client
import io
import math
import os
import queue
import socket
import struct
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from PIL import Image
from torch import Tensor

from pyro_vae.checks import printable
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.images import opened
from pyro_vae.data.parsing import entries, lost, reading, unpacking

_PROBE_SECONDS = 5.0
_STALL_SECONDS = 30.0
_REMEDY = "Delete it and load the set again."
_IMAGES, _LABELS = 0x803, 0x801  # first bytes of an IDX file
_PAGE, _PAGE_BYTES = (105, 105), 2**20  # of Omniglot
_FAILURES = (OSError, RuntimeError, EOFError, http.client.HTTPException, zipfile.BadZipFile)


class DatasetNotFoundError(FileNotFoundError):
    """A named set is not on disk and could not be downloaded."""


Arrays = tuple[Tensor, Tensor]  # uint8 images (N, C, H, W) and int64 labels (N,)


@dataclass(frozen=True)
class Source:
    """Where a named set comes from.

    Args:
        torchvision: Its class in ``torchvision.datasets``, which downloads it.
        files: What is needed on disk, below the root.
        options: The class's arguments for the training and for the test part.
        urls: What to ask, given the class, whether there is a network; one answer will do.
        read: (source, root) to the training and the test part.
        validation: Number or fraction of the training data held out by default.
    """

    torchvision: str
    files: tuple[str, ...]
    options: tuple[dict[str, object], dict[str, object]]
    urls: Callable[[Any], list[str]]
    read: Callable[[Source, Path], tuple[Arrays, Arrays]]
    validation: int | float = 0.1


def load(name: str, root: Path) -> tuple[Dataset, Dataset]:
    """The training and test data of a named set, downloaded first if need be."""
    source = SOURCES[name]
    if missing(name, root):
        _download(name, root)
    train, test = source.read(source, root)
    return Dataset(name, *train, levels=255), Dataset(name, *test, levels=255)


def digits() -> Dataset:
    """The 1,797 digits of 8x8 pixels and 17 gray levels that come with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    return Dataset("digits", images, torch.from_numpy(bunch.target.astype(np.int64)), levels=16)


def folder(root: str | Path | None) -> Path:
    """The folder of the named sets: the argument, else the environment's, else the user's cache."""
    return Path(root or os.environ.get("PYRO_VAE_DATA") or platformdirs.user_cache_dir("pyro_vae")).expanduser()


def missing(name: str, root: Path) -> list[str]:
    """The files of a named set that are not on disk."""
    return [file for file in SOURCES[name].files if not (root / file).is_file()]


def _read_idx(source: Source, root: Path) -> tuple[Arrays, Arrays]:
    from torchvision.datasets import mnist

    def part(images_file: Path, labels_file: Path) -> Arrays:
        for file in (images_file, labels_file):
            _check_idx(file)
        with reading(images_file, _REMEDY):
            images: Tensor = mnist.read_image_file(str(images_file))
        with reading(labels_file, _REMEDY):
            labels: Tensor = mnist.read_label_file(str(labels_file))
        if source.torchvision == "EMNIST":
            images = images.transpose(1, 2).contiguous()  # the files hold every letter mirrored along its diagonal
        return images[:, None], labels

    train_images, train_labels, test_images, test_labels = (root / file for file in source.files)
    return part(train_images, train_labels), part(test_images, test_labels)


def _check_idx(path: Path) -> None:
    """Raises for a file that is not as long as its head says, before it is read as a whole."""
    with reading(path, _REMEDY), path.open("rb") as file:
        kind, count = struct.unpack(">II", file.read(8))
        sizes = struct.unpack(">II", file.read(8)) if kind == _IMAGES else ()
        if kind not in (_IMAGES, _LABELS):
            raise ValueError("neither images nor labels of bytes")
        length, found = file.tell() + math.prod((count, *sizes)), path.stat().st_size
        if length != found:
            raise ValueError(f"{found} bytes in place of {length}")


def _read_omniglot(source: Source, root: Path) -> tuple[Arrays, Arrays]:
    def part(file: Path) -> Arrays:
        images, characters = [], []
        # Straight from the archive: an extracted folder has no order that is the same on every machine.
        with reading(file, _REMEDY), zipfile.ZipFile(file) as archive:
            # With a number, since read() unpacks up to 2 GiB of a member that says another size than it has.
            names = [entry.filename for entry in entries(file, archive)]
            for entry in sorted(name for name in names if name.endswith(".png")):
                with (
                    unpacking(file, archive, archive.getinfo(entry), _PAGE_BYTES) as packed,
                    opened(file, io.BytesIO(packed.read(_PAGE_BYTES))) as image,
                ):
                    if image.size != _PAGE:
                        raise lost(file, f"pages of {_PAGE} pixels; got {image.size}", _REMEDY.rstrip("."))
                    cells = image.convert("L").resize((28, 28), Image.Resampling.BOX)
                images.append(255 - np.asarray(cells))
                characters.append(entry.rpartition("/")[0])
            classes = {character: i for i, character in enumerate(sorted(set(characters)))}
            return torch.from_numpy(np.stack(images))[:, None], torch.tensor([classes[c] for c in characters])

    train, test = (root / file for file in source.files)
    return part(train), part(test)


def _read_torchvision(source: Source, root: Path) -> tuple[Arrays, Arrays]:
    # Torchvision compares checksums before it reads, which makes these safe to read: CIFAR's are pickles.
    def part(options: dict[str, object]) -> Arrays:
        with reading(root / Path(source.files[0]).parent, "Delete the set's files there and load it again."):
            dataset = _torchvision(source)(root, download=False, **options)
        if source.torchvision == "SVHN":
            return torch.from_numpy(dataset.data.copy()), torch.from_numpy(dataset.labels)
        return torch.from_numpy(dataset.data.transpose(0, 3, 1, 2).copy()), torch.tensor(dataset.targets)

    train, test = source.options
    return part(train), part(test)


def _torchvision(source: Source) -> Any:
    from torchvision import datasets

    return getattr(datasets, source.torchvision)


def _download(name: str, root: Path) -> None:
    source, absent = SOURCES[name], missing(name, root)
    dataset_class = _torchvision(source)
    try:
        _probe(source.urls(dataset_class))
        root.mkdir(parents=True, exist_ok=True)
        # Below the root, so that moving a file is one rename: a file under its own name is always a whole one.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as partial, _stalls_end():
            _fetch(dataset_class, source, partial)
            for file in absent:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(partial, file), root / file)
    except _FAILURES as error:
        raise DatasetNotFoundError(
            f"Dataset {name!r}: expected {', '.join(absent)} in {root}; got no such file, and no download "
            f"({_on_one_line(error)}). Fetch it with torchvision.datasets.{source.torchvision} where there is a "
            'network and set PYRO_VAE_DATA or root to its folder, or use "digits", which needs neither.'
        ) from error


def _on_one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 1000)


def _fetch(dataset_class: Any, source: Source, folder: str) -> None:
    """Downloads a set; what fails is tried once more, but for files that are there with their checksums."""
    for last in (False, True):
        try:
            for options in source.options:
                dataset_class(folder, download=True, **options)
            return
        except _FAILURES:
            if last:
                raise


def _probe(urls: list[str]) -> None:
    """Returns when a server answers, and raises when none has within seconds."""
    answers: queue.Queue[str | None] = queue.Queue()

    def ask(url: str) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS).close()
            answers.put(None)
        except urllib.error.HTTPError:
            answers.put(None)  # a refusal is an answer too: some servers know no HEAD
        except (OSError, http.client.HTTPException) as error:
            answers.put(f"{url}: {getattr(error, 'reason', error)}")

    # Daemons, because looking up a name obeys no timeout and must not hold up the program.
    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    failures: list[str] = []
    deadline = time.monotonic() + _PROBE_SECONDS
    while len(failures) < len(urls):
        try:
            failure = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            failures.append(f"no answer within {_PROBE_SECONDS:g} seconds")
            break
        if failure is None:
            return
        failures.append(failure)
    raise ConnectionError("; ".join(failures))


@contextmanager
def _stalls_end() -> Iterator[None]:
    # Torchvision's downloads have no timeout of their own, only the process's default one.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _mirrors(dataset_class: Any) -> list[str]:
    return [f"{mirror}{dataset_class.resources[0][0]}" for mirror in dataset_class.mirrors]


def _idx(
    torchvision: str,
    train: str = "train",
    test: str = "t10k",
    urls: Callable[[Any], list[str]] = _mirrors,
    **options: object,
) -> Source:
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    files = tuple(f"{torchvision}/raw/{part}-{kind}" for part in (train, test) for kind in kinds)
    return Source(
        torchvision, files, ({**options, "train": True}, {**options, "train": False}), urls, _read_idx, 10_000
    )


SOURCES = {
    "mnist": _idx("MNIST"),
    "fashion_mnist": _idx("FashionMNIST"),
    "kmnist": _idx("KMNIST"),
    "emnist": _idx("EMNIST", "emnist-balanced-train", "emnist-balanced-test", urls=lambda c: [c.url], split="balanced"),
    "omniglot": Source(
        "Omniglot",
        ("omniglot-py/images_background.zip", "omniglot-py/images_evaluation.zip"),
        ({"background": True}, {"background": False}),
        lambda c: [f"{c.download_url_prefix}/images_background.zip"],
        _read_omniglot,
    ),
    "svhn": Source(
        "SVHN",
        ("train_32x32.mat", "test_32x32.mat"),
        ({"split": "train"}, {"split": "test"}),
        lambda c: [c.split_list["train"][0]],
        _read_torchvision,
    ),
    "cifar10": Source(
        "CIFAR10",
        tuple(
            f"cifar-10-batches-py/{file}"
            for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
        ),
        ({"train": True}, {"train": False}),
        lambda c: [c.url],
        _read_torchvision,
    ),
}
