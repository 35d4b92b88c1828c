"""What a stream refuses: files that are not alike, change or vanish, workers that die, counts that do not agree."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_streams import N, Numbers, archive, file, generator, images, npy, passed, png, rows, shards, tars
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from pyro_vae import data


def of(content: Any, name: str = "x.npy") -> Callable[[Path], Any]:
    def write(folder: Path) -> Any:
        np.save(folder / name, content)
        return folder / name

    return write


def other_shape(folder: Path) -> Any:
    np.save(folder / "d.npy", rows()[:, :, :1])
    return shards(folder)


def other_dtype(folder: Path) -> Any:
    np.save(folder / "d.npy", rows().astype(np.float32))
    return shards(folder)


def cut_short(folder: Path) -> Any:
    os.truncate(file(folder), 150)
    return folder / "x.npy"


def longer(folder: Path) -> Any:
    with file(folder).open("ab") as more:
        more.write(b"more")
    return folder / "x.npy"


def no_array(folder: Path) -> Any:
    (folder / "x.npy").write_bytes(b"numbers")
    return folder / "x.npy"


def of_objects(folder: Path) -> Any:
    np.save(folder / "x.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    return folder / "x.npy"


def tar_of(members: dict[str, bytes]) -> Callable[[Path], Any]:
    return lambda folder: archive(folder / "x.tar", members)


def compressed(folder: Path) -> Any:
    import tarfile

    with tarfile.open(folder / "x.tar", "w:gz") as tar:
        tar.add(file(folder))
    return folder / "x.tar"


def split(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [[1.0]]})})


def two_columns(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"a": [[1.0]], "b": [[1.0]]})


REFUSED: dict[str, tuple[Callable[[Path], Any], str, dict[str, Any]]] = {
    "a shard of another shape": (other_shape, r"d\.npy: expected an array \(N, 1, 2, 3\) of uint8, as in a\.npy", {}),
    "a shard of another dtype": (
        other_dtype,
        r"d\.npy: expected an array .* of uint8, as in a\.npy; .* of float32",
        {},
    ),
    "a file cut short": (cut_short, r"x\.npy: expected a complete file .* for which there are 22 bytes", {}),
    "a file with more": (longer, r"x\.npy: expected one array; got something after it", {}),
    "no array": (no_array, r"x\.npy: expected a complete file of its kind; got one that fails \(no \.npy file\)", {}),
    "objects": (of_objects, r"x\.npy: expected a complete file .*an array of object", {}),
    "Fortran order": (of(np.asfortranarray(rows())), r"expected rows one after the other, in C order; got Fortran", {}),
    "no data": (of(rows()[:0]), r"expected at least one datum", {}),
    "a single number": (of(np.float32(1)), r"expected at least one datum", {}),
    "numbers without an axis": (of(np.arange(5.0)), r"expected shape \(N, D\) or \(N, ...\); got \(5,\)", {}),
    "channels last": (of(np.zeros((9, 8, 8, 3), np.uint8) + 9), r"got channels last, \(9, 8, 8, 3\)", {}),
    "bits or pixels": (of(rows() // 255), r"expected pixels up to 255, or levels; got uint8 values none", {}),
    "levels of reals": (of(np.ones((4, 2))), r"expected levels for uint8 values; got torch.float64", {"levels": 255}),
    "complex numbers": (of(np.ones((4, 2), complex)), r"expected real numbers; got array of complex128", {}),
    "infinity": (of(np.array([[1.0], [np.inf]])), r"expected finite values.*got infinity", {}),
    "bits of what is none": (
        of(np.array([[1.0], [2.0]])),
        r"expected values in \[0, 1\] to binarize; got 1 to 2",
        {"binarize": "dynamic"},
    ),
    "bits kept": (file, r"binarize: expected one of none, dynamic; got 'static'", {"binarize": "static"}),
    "no file": (lambda folder: folder / "none.npy", r"expected files; got none for .*none\.npy", {}),
    "no file of a list": (lambda folder: [file(folder), folder / "y.npy"], r"y\.npy: expected a file; got none", {}),
    "a file twice": (lambda folder: [file(folder)] * 2, r"x\.npy: expected each file once; got it twice", {}),
    "two kinds": (lambda folder: [file(folder), *tars(folder)], r"and not both; got \.npy, \.tar", {}),
    "another number of data": (shards, r"expected length=24 data in .*; got 23", {"length": 24}),
    "a rank too many": (file, r"expected rank below world_size=2; got 2", {"rank": 2, "world_size": 2}),
    "less than no workers": (file, r"expected workers at least 0; got -1", {"workers": -1}),
    "a sequence that says no length": (lambda _: Numbers(), r"expected length, the number of data", {}),
    "numbers in memory": (lambda _: rows(), r"got ndarray, numbers in memory, which fit takes as they are", {}),
    "a mapped array": (lambda folder: np.load(file(folder), mmap_mode="r"), r"Pass a path: of a numpy.memmap", {}),
    "a function": (lambda _: print, r"expected files, a folder, .*; got builtin_function_or_method", {}),
    "an empty folder": (lambda folder: folder, r"expected images; got none", {}),
    "an archive of nothing": (tar_of({}), r"x\.tar: expected samples; got none", {}),
    "two values in a sample": (tar_of({"a.npy": b"", "a.png": b""}), r"one array or image in sample /a; got \.npy", {}),
    "a sample without a value": (tar_of({"a.cls": b"1"}), r"one array or image in sample /a; got \.cls", {}),
    "a label that is none": (tar_of({"a.npy": npy(rows()[0]), "a.cls": b"cat"}), r"whole number from 0 as \.cls", {}),
    "a compressed archive": (compressed, r"x\.tar: expected a complete file .*unpack it", {}),
    "splits": (split, r"expected one split; got train", {}),
    "two columns": (two_columns, r"expected one column of data.*got a, b", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_stream_refuses(name: str, tmp_path: Path) -> None:
    make, message, options = REFUSED[name]
    source = make(tmp_path)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        data.stream(source, **options)


def changed(path: Path) -> None:
    content = path.read_bytes()
    os.utime(path, ns=(0, 0))
    path.write_bytes(content)


def exchanged(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


HARM: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "changed": (
        changed,
        ValueError,
        "expected a file that stays as it is while it is read; got one of another content",
    ),
    "exchanged": (exchanged, ValueError, "got one of another content or time of change"),
    "cut short": (lambda path: os.truncate(path, 130), ValueError, "got one of another size"),
    "removed": (os.remove, FileNotFoundError, "expected a file that stays as it is while it is read; got none"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", HARM)
@pytest.mark.parametrize("make", [shards, images, tars])
def test_stream_notices_a_file_that_is(make: Callable[[Path], Any], name: str, workers: int, tmp_path: Path) -> None:
    if workers and make is not shards:
        pytest.skip("one kind of file is enough in a process")
    source = make(tmp_path)
    stream = data.stream(source, workers=workers)
    harm, kind, message = HARM[name]
    paths = {"shards": "c.npy", "images": "images/1/001.png", "tars": "1.tar"}
    path = tmp_path / paths[make.__name__]
    assert len(passed(stream, 4)) == 6
    harm(path)
    with pytest.raises(kind, match=f"{path.name}: .*{message}"):
        passed(stream, 4)


def test_stream_notices_a_file_that_is_removed_amid_an_epoch(tmp_path: Path) -> None:
    source = shards(tmp_path)
    feed = data.stream(source).feed(1)
    next(feed)
    (tmp_path / "c.npy").unlink()
    seen = [1]
    with pytest.raises(FileNotFoundError, match=r"c\.npy: expected a file that stays"):
        seen.extend(1 for _ in feed)
    assert len(seen) < N


BEYOND = 6_000  # data, of which the sample has 5,000


def with_one_wrong(folder: Path, value: Any, dtype: str) -> tuple[Path, int]:
    """A file of which one datum beyond the sample has a value."""
    x = np.ones((BEYOND, 2), dtype)
    np.save(folder / "x.npy", x)
    numbers = set(range(BEYOND)) - set(_sampled(BEYOND))
    wrong = max(numbers)
    x[wrong, 1] = value
    np.save(folder / "x.npy", x)
    return folder / "x.npy", wrong


def _sampled(n: int) -> list[int]:
    from pyro_vae.data.streams.order import Permutation

    return Permutation(n, 0)(np.arange(5_000)).tolist()


@pytest.mark.parametrize(
    ("value", "dtype", "options", "message"),
    [
        (np.inf, "float32", {}, "expected finite values, or NaN for missing ones; got infinity"),
        (1e300, "float64", {}, "got infinity"),
        (np.nan, "float32", {"binarize": "dynamic"}, "expected values in .* to binarize; got NaN"),
        (1.5, "float32", {"binarize": "dynamic"}, "to binarize; got 1 to 1.5"),
        (7, "uint8", {"levels": 1}, "expected values 0 to levels=1; got 7"),
        (2**25, "int64", {}, "expected whole numbers up to 2\\^24"),
    ],
)
def test_stream_names_a_datum_that_cannot_be(
    value: Any, dtype: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path, wrong = with_one_wrong(tmp_path, value, dtype)
    stream = data.stream(path, **options)
    where = f"Datum {wrong}, row {wrong} of x.npy: .*" if dtype != "int64" else ""
    with pytest.raises(ValueError, match=f"{where}{message}"):
        list(stream.feed(100, shuffle=True, generator=generator()))


def test_stream_names_an_image_of_another_size(tmp_path: Path) -> None:
    folder = images(tmp_path)
    Image.fromarray(rows()[0, 0].repeat(2, 1)).save(folder / "0" / "zz.png")
    if 23 in _first(24, 24):
        with pytest.raises(ValueError, match=r"got \(1, 2, 6\) of torch.uint8 for zz\.png"):
            data.stream(folder)


def _first(n: int, k: int) -> list[int]:
    from pyro_vae.data.streams.order import Permutation

    return Permutation(n, 0)(np.arange(k)).tolist()


def test_stream_refuses_transparency(tmp_path: Path) -> None:
    clear = np.zeros((2, 3, 4), np.uint8)
    path = archive(tmp_path / "x.tar", {"a.png": png(clear)})
    with pytest.raises(ValueError, match=r"x\.tar: expected an image without transparency"):
        data.stream(path)


class Of(IterableDataset[Any]):
    """Given data one after the other."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([torch.ones(2)] * 3, "expected 4 data in an epoch, as length says; got 3"),
        ([torch.ones(2)] * 5, "expected 4 data in an epoch, as length says; got more"),
        (
            [torch.ones(2)] * 3 + [torch.ones(3)],
            r"expected data like the first, \(2,\) .*; got \(3,\) .* from datum 3 on",
        ),
        ([torch.ones(2)] * 3 + [torch.ones(2, dtype=torch.uint8)], "got .* of torch.uint8 from datum 3 on"),
        ([(torch.ones(2), 1)] * 3 + [torch.ones(2)], "expected labels of all data or of none; got the contrary from"),
        ([[]], "expected data; got an empty list"),
        ([{}], "expected one column of data"),
    ],
)
def test_stream_of_a_sequence_refuses(items: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.stream(Of(items), length=4)


class Shorter(IterableDataset[Any]):
    """Data of which there are fewer in every pass but the first."""

    def __init__(self, folder: Path, change: int) -> None:
        self.folder, self.change = folder, change

    def __iter__(self) -> Iterator[Any]:
        passes = len(list(self.folder.iterdir()))
        (self.folder / str(passes)).touch()
        return iter([torch.full((2,), float(i)) for i in range(8 + (self.change if passes else 0))])


@pytest.mark.parametrize(("change", "message"), [(-1, "got 7"), (1, "got more")])
@pytest.mark.parametrize("drop_last", [False, True])
def test_stream_of_a_sequence_notices_a_pass_of_another_length(
    change: int, message: str, drop_last: bool, tmp_path: Path
) -> None:
    stream = data.stream(Shorter(tmp_path, change), length=8)
    seen: list[int] = []
    with pytest.raises(ValueError, match=f"expected 8 data in an epoch, as length says; {message}"):
        seen.extend(len(index) for _, (index, *_) in stream.feed(3, drop_last=drop_last))
    assert sum(seen) < 8 - (2 if drop_last else 0)  # the last batch never comes


def test_stream_of_a_sequence_refuses_to_go_on_among_other_data() -> None:
    stream = data.stream(Of([torch.full((2,), float(i)) for i in range(N)]), length=N)
    (place, _), *_ = passed(stream, 4)
    other = data.stream(Of([torch.full((2,), float(i + 1)) for i in range(N)]), length=N)
    with pytest.raises(ValueError, match="expected the sequence to be the same again, to go on at datum 4 of it"):
        passed(other, 4, place=place)


class Deadly(TorchDataset[Any]):
    """A set whose reader is killed at a datum, in a worker."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        if i == 7 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((2,), float(i))


@pytest.mark.slow
def test_stream_names_a_worker_that_dies() -> None:
    stream = data.stream(Deadly(), workers=0)
    stream = data.stream(DataLoader(Deadly(), num_workers=2)) if stream.workers == 0 else stream
    assert stream.workers == 2
    with pytest.raises(RuntimeError, match="Stream 'Deadly': expected worker processes that live; got one that died"):
        list(stream.batches(4))


class Faulty(TorchDataset[Any]):
    """A set that cannot read a datum."""

    def __len__(self) -> int:
        return BEYOND

    def __getitem__(self, i: int) -> Any:
        if i not in _SAMPLE:
            raise KeyError("lost")
        return torch.full((2,), float(i))


_SAMPLE = {0, *_sampled(BEYOND)}


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_names_a_datum_that_cannot_be_read(workers: int) -> None:
    stream = data.stream(Faulty(), workers=workers)
    with pytest.raises(ValueError, match=r"Stream 'Faulty': expected a set of 6000 readable data; got KeyError"):
        list(stream.batches(100))


def test_stream_refuses_batches_that_some_rank_has_no_part_of(tmp_path: Path) -> None:
    stream = data.stream(file(tmp_path), rank=0, world_size=4)
    with pytest.raises(
        ValueError, match="expected at least one datum for each of 4 ranks in every batch; got 3 in one"
    ):
        stream.feed(5)
    assert len(list(stream.feed(5, drop_last=True))) == 4


@pytest.mark.parametrize(
    "place",
    [{}, {"position": -1}, {"position": N + 1}, {"position": 1.0}, {"position": True}, {"position": 0, "more": 1}],
)
def test_stream_refuses_places_that_are_none(place: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected a place with a position up to {N}"):
        data.stream(file(tmp_path)).feed(4, place=place)


@pytest.mark.parametrize("shuffle", [False, True])
def test_stream_refuses_to_go_on_in_another_order(shuffle: bool, tmp_path: Path) -> None:
    stream = data.stream(file(tmp_path))
    place, _ = next(stream.feed(4, shuffle=not shuffle, generator=generator()))
    with pytest.raises(ValueError, match=f"expected a place of a pass that is {'' if shuffle else 'not '}shuffled"):
        stream.feed(4, shuffle=shuffle, generator=generator(), place=place)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("labels", "expected 'labels' of a source that has them"),
        ("classes", "got 'classes' and no labels"),
        (np.arange(5), "expected context of length 23; got 5"),
        (TensorDataset(torch.ones(3, 2), torch.arange(3)), "of data with labels. Pass either by itself"),
    ],
)
def test_stream_refuses_contexts(context: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        data.stream(file(tmp_path)).conditioned_on(context)


def test_stream_of_a_sequence_refuses_contexts_by_number() -> None:
    stream = data.stream(Numbers(drawn=True), length=N)
    with pytest.raises(
        ValueError, match="expected 'labels' as the context of a sequence, which numbers its data as they"
    ):
        stream.conditioned_on(np.arange(N))


def test_as_dataset_of_a_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="got a Stream, which is not read as a whole"):
        data.as_dataset(data.stream(file(tmp_path)))
