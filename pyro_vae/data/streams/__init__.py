"""Data that do not fit into memory, read while they are used."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from pyro_vae import checks
from pyro_vae.data.arrays import joined
from pyro_vae.data.conversion import as_dataset
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.options import present_device, unknown
from pyro_vae.data.parsing import file_of
from pyro_vae.data.streams.batches import Stream, sampled
from pyro_vae.data.streams.decoded import HuggingFace, Images, Tars, TorchSet
from pyro_vae.data.streams.sequences import Ordered
from pyro_vae.data.streams.sources import Arrays, Source
from pyro_vae.data.torch_sets import changes_batches, takes_whole_set

__all__ = ["Stream", "stream"]


def stream(
    source: Any,
    *,
    levels: int | None = None,
    binarize: Literal["none", "dynamic"] = "none",
    length: int | None = None,
    workers: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    device: str | torch.device = "cpu",
) -> Stream:
    r"""Data that are read while they are used, of which ``fit`` takes each exactly once an epoch.

    **Order.** Data that can be read in any order go through a permutation of all of them, a new one for each epoch,
    computed place by place from a seed (see :mod:`pyro_vae.data.streams.order`): it takes no memory, starts at any
    place, and is not only nearly random, as one within windows is. Each datum is read by itself, so that small rows on
    a disk that is slow to seek are the worst case; the system is told of them some batches ahead. Data that come in an
    order of their own, of loaders that choose or combine and sets without places, are shuffled within windows of 8,192.

    **Ranks.** Of each batch, whose size is that of all ranks together, a rank takes the data at places rank,
    rank + world_size, ...; so it does of a last, smaller batch, which is refused where some rank would have none.

    **Reading ahead.** A thread reads batches before they are asked for, with ``workers`` in processes, and copies them
    to a GPU from pinned memory, beside its work.

    **Checks.** Every batch is compared with what the stream and the program take, in that thread. What is looked at
    before training, the fingerprint by which a run is known again, and the training figures of an epoch are of
    ``sample``: 5,000 data, or as many as 64 MB hold, drawn once for all; the first of a sequence. The fingerprint has
    names and sizes of the files too, and neither their folders nor their times. A file whose size, time of change or
    inode differs from what it was when the stream was made is an error as soon as it is read.

    Args:
        source: A ``.npy`` file, which is never read as a whole; several that are one set, as a list or a pattern such
            as ``"train/*.npy"``; ``.tar`` archives of samples in the manner of WebDataset, likewise; a folder of
            images; a set of Hugging Face's ``datasets``; a set or a loader of torch. A loader that goes through a whole
            set as it is counts as its set, with its number of workers.
        levels: The stored value that stands for 1, of whole numbers uint8: 255 when left out, 1 for bits.
        binarize: ``"dynamic"`` draws bits for every batch; others would have to be kept.
        length: Number of data in an epoch, where the source does not say it.
        workers: Processes that read and decode; none when left out, or the loader's.
        rank: Of this process; the environment's ``RANK`` when left out, else 0.
        world_size: Number of processes; the environment's ``WORLD_SIZE`` when left out, else 1.
        device: Where batches are made.

    Raises:
        ValueError: files that are not alike or not readable by rows, a length that is unknown, an option out of range.
        TypeError: something that is no source.
        FileNotFoundError: no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
        ...     np.save(f"{folder}/b.npy", np.arange(12, 18, dtype=np.float32).reshape(3, 2))
        ...     rows = stream(f"{folder}/?.npy", rank=0, world_size=1)
        ...     [x[:, 0].tolist() for (x,) in rows.batches(4)]
        [[0.0, 2.0, 4.0, 6.0], [8.0, 10.0, 12.0, 14.0], [16.0]]

    References:
        WebDataset, https://github.com/webdataset/webdataset
    """
    found = _source(source, length)
    if binarize not in ("none", "dynamic"):
        raise ValueError(unknown("data.stream, binarize", binarize, ("none", "dynamic")))
    if workers is None:
        workers = source.num_workers if isinstance(source, DataLoader) and not isinstance(found, Ordered) else 0
    size = _of_environment("world_size", world_size, "WORLD_SIZE", 1)
    own = _of_environment("rank", rank, "RANK", 0)
    if own >= size:
        raise ValueError(f"data.stream: expected rank below world_size={size}; got {own}. Count ranks from 0.")
    checks.whole("data.stream", "workers", workers, 0)
    sample = _sample(found, levels)
    sample = replace(sample, binarization=binarize).to(present_device(device))
    return Stream(found.name, found, sample, workers=workers, rank=own, world_size=size)


def _of_environment(name: str, value: int | None, variable: str, default: int) -> int:
    if value is None:
        text = os.environ.get(variable, str(default))
        if not text.isdecimal():
            raise ValueError(f"data.stream: expected {variable} a whole number; got {text!r:.60}. Give {name}.")
        value = int(text)
    return checks.whole("data.stream", name, value, default)


def _sample(source: Source | Ordered, levels: int | None) -> Dataset:
    """Some data of a source, with the levels of all."""
    values, labels = sampled(source)
    subject = f"Stream {source.name!r}"
    sample = as_dataset(values, name=source.name)
    if values.dtype == torch.uint8 and levels is None and sample.levels == 1:
        raise ValueError(
            f"{subject}: expected pixels up to 255, or levels; got uint8 values none of which exceeds 1 in a sample of "
            f"{len(sample)}. Give levels=1 for bits, levels=255 for pixels."
        )
    if levels is not None:
        checks.whole(subject, "levels", levels)
        if values.dtype != torch.uint8:
            raise TypeError(f"{subject}: expected levels for uint8 values; got {values.dtype}. Leave them out.")
        sample = replace(sample, levels=levels)
    return replace(sample, labels=labels, note=joined(sample.note, getattr(source, "note", "")))


def _source(source: Any, length: int | None) -> Source | Ordered:
    """What reads the data of whatever holds them."""
    if length is not None:
        checks.whole("data.stream", "length", length)
    found = _places(source)
    if found is None:
        size = length if length is not None else _length(source)
        return Ordered(type(getattr(source, "dataset", source)).__name__, source, size)
    if length is not None and length != len(found):
        raise ValueError(
            f"data.stream: expected length={length} data in {found.name!r}; got {len(found)}. Leave length out, or "
            "mend the files."
        )
    return found


def _places(source: Any) -> Source | None:
    """A source whose data have places; None of a sequence."""
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        if path.is_dir():
            return Images(path)
        return _files([path] if path.exists() else [Path(found) for found in sorted(glob.glob(str(path)))], path)
    if isinstance(source, list | tuple) and all(isinstance(each, str | os.PathLike) for each in source):
        return _files([Path(each).expanduser() for each in source], "a list")
    package = type(source).__module__.split(".")[0]
    if package == "datasets" and hasattr(source, "column_names") and not isinstance(source, IterableDataset):
        if isinstance(source, dict):
            raise TypeError(f"data.stream: expected one split; got {', '.join(source)}. Pass one of these.")
        return HuggingFace(source.info.dataset_name or "datasets", source)
    if isinstance(source, DataLoader):
        if not takes_whole_set(source) or changes_batches(source):
            return None
        return _places(source.dataset)
    if isinstance(source, TorchDataset):
        if isinstance(source, IterableDataset) or not hasattr(source, "__len__"):
            return None
        return TorchSet(type(source).__name__, source)
    kind = "numbers in memory, which fit takes as they are" if isinstance(source, Tensor | np.ndarray | Dataset) else ""
    raise TypeError(
        f"data.stream: expected files, a folder, a set of Hugging Face or one of torch; got {type(source).__name__}"
        f"{f', {kind}' if kind else ''}. Pass a path: of a numpy.memmap its file."
    )


def _files(paths: Sequence[Path], source: Path | str) -> Source:
    if not paths:
        raise FileNotFoundError(f"data.stream: expected files; got none for {source}. Check the path.")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{file_of(path)}: expected a file; got none. Check the path.")
    real = [os.path.realpath(path) for path in paths]
    twice = [path for i, path in enumerate(real) if path in real[:i]] if len(set(real)) < len(real) else []
    if twice:
        raise ValueError(f"{file_of(Path(twice[0]))}: expected each file once; got it twice. Leave one out.")
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes == {".npy"}:
        return Arrays(paths)
    if suffixes == {".tar"}:
        return Tars(paths)
    raise ValueError(
        f"data.stream: expected .npy files or .tar archives, and not both; got {', '.join(sorted(suffixes))}. Unpack "
        "or convert them; of images give the folder."
    )


def _length(source: Any) -> int:
    """The number of data of a sequence that says it."""
    try:
        size = len(source.sampler) if isinstance(source, DataLoader) and _by_sampler(source) else None  # type: ignore[arg-type]
    except TypeError:
        size = None
    if size is None:
        raise ValueError(
            f"data.stream: expected length, the number of data in an epoch, for a {type(source).__name__} that does "
            "not say it; got none. Give length=60_000, for example."
        )
    return size


def _by_sampler(loader: Any) -> bool:
    """Whether a loader gives as many data as its sampler has."""
    own = type(loader.batch_sampler) is torch.utils.data.BatchSampler and not loader.drop_last
    return own and not isinstance(loader.dataset, IterableDataset) and not changes_batches(loader)
