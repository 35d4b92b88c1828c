"""Streams: every datum exactly once an epoch, whatever reads it, by how many, and wherever it goes on."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_vae import data
from pyro_vae.data.streams.order import Permutation

N = 23


def rows(n: int = N) -> np.ndarray[Any, Any]:
    """Pixels (n, 1, 2, 3), of which the first is the datum's number."""
    x = np.random.default_rng(0).integers(0, 256, (n, 1, 2, 3), dtype=np.uint8)
    x[:, 0, 0, 0] = np.arange(n)
    x[0, 0, 0, 1] = 255
    return x


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Numbers(IterableDataset[Any]):
    """Data one after the other, with their numbers as labels; in an order of their own where they are drawn."""

    def __init__(self, n: int = N, *, drawn: bool = False) -> None:
        self.n, self.drawn = n, drawn

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(self.n) if self.drawn else torch.arange(self.n)
        x = torch.from_numpy(rows(self.n))
        return iter([(x[i], int(i)) for i in order])


def file(folder: Path) -> Any:
    np.save(folder / "x.npy", rows())
    return folder / "x.npy"


def shards(folder: Path) -> Any:
    for name, part in zip("abc", np.split(rows(), [9, 10]), strict=True):
        np.save(folder / f"{name}.npy", part)
    return str(folder / "?.npy")


def images(folder: Path) -> Any:
    for i, x in enumerate(rows()):
        (folder / "images" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0]).save(folder / "images" / str(i % 2) / f"{i:03}.png")
    return folder / "images"


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(x: np.ndarray[Any, Any]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(x).save(content, "PNG")
    return content.getvalue()


def npy(x: np.ndarray[Any, Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, x)
    return content.getvalue()


def tars(folder: Path) -> Any:
    encoded = [(".npy", npy(x)) if i % 2 else (".png", png(x[0])) for i, x in enumerate(rows())]
    named = [{f"s/{i}{suffix}": content, f"s/{i}.cls": str(i).encode()} for i, (suffix, content) in enumerate(encoded)]
    paths = []
    for i, part in enumerate((named[:15], named[15:])):
        paths.append(archive(folder / f"{i}.tar", {k: v for each in part for k, v in each.items()}))
    return paths


def hugging_face(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"x": datasets.Array3D((1, 2, 3), "uint8"), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"x": rows(), "label": list(range(N))}, features=features)


def hugging_face_images(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "more": datasets.Value("string")})
    made = {"image": [Image.fromarray(x[0]) for x in rows()], "more": ["a"] * N}
    return datasets.Dataset.from_dict(made, features=features)


def torch_set(folder: Path) -> Any:
    return TensorDataset(torch.from_numpy(rows()), torch.arange(N))


def loader(folder: Path) -> Any:
    return DataLoader(torch_set(folder), batch_size=4, shuffle=True)


PLACED: dict[str, Callable[[Path], Any]] = {
    "a file": file,
    "shards": shards,
    "images": images,
    "tars": tars,
    "Hugging Face": hugging_face,
    "images of Hugging Face": hugging_face_images,
    "a set of torch": torch_set,
    "a loader of it": loader,
}
SEQUENCES: dict[str, Callable[[], Any]] = {
    "a sequence": Numbers,
    "a drawn sequence": lambda: Numbers(drawn=True),
    "a loader of a sequence": lambda: DataLoader(Numbers(), batch_size=4),
    "a loader with a worker": lambda: DataLoader(Numbers(), batch_size=5, num_workers=1),
    "a loader with a function": lambda: DataLoader(
        TensorDataset(torch.from_numpy(rows())),
        3,
        shuffle=True,
        collate_fn=lambda items: torch.stack([x for (x,) in items]),
    ),
    "a sequence of Hugging Face": lambda: hugging_face(Path()).to_iterable_dataset(),
}


def numbers_in(batches: Any) -> list[int]:
    """The numbers of the data of batches, which their first pixels say."""
    return [round(float(v) * 255) for x, *_ in batches for v in x.flatten(1)[:, 0]]


def passed(stream: data.Stream, batch_size: int, seed: int = 0, **how: Any) -> list[tuple[Any, list[int]]]:
    """The places of a shuffled pass, and the numbers of the data of each batch, by their first pixels."""
    feed = stream.feed(batch_size, shuffle=True, generator=generator(seed), **how)
    return [(place, images.flatten(1)[:, 0].tolist()) for place, (_, images, *_) in feed]


# The order


@pytest.mark.parametrize("n", [*range(1, 40), 1_000, 10_007])
def test_Permutation_goes_through_each_datum_once(n: int) -> None:
    for seed in range(5):
        found = Permutation(n, seed)(np.arange(n))
        assert np.array_equal(np.sort(found), np.arange(n))
        assert np.array_equal(Permutation(n, seed)(np.arange(n // 2, n)), found[n // 2 :])


def test_Permutation_of_very_many_stays_among_them_and_repeats_none() -> None:
    n = 10**12 + 7
    found = Permutation(n, 3)(np.arange(n - 100_000, n))
    assert len(np.unique(found)) == 100_000
    assert found.min() >= 0
    assert found.max() < n
    assert abs(found.mean() / n - 0.5) < 5 / np.sqrt(12 * 100_000)  # five standard errors of a uniform mean


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_Permutation_orders_are_equally_frequent(n: int) -> None:
    runs, orders = 3_000, int(np.prod(np.arange(1, n + 1)))
    counts = Counter(tuple(Permutation(n, seed)(np.arange(n)).tolist()) for seed in range(runs))
    expected = runs / orders
    squares = sum((count - expected) ** 2 / expected for count in counts.values()) + (orders - len(counts)) * expected
    assert squares - (orders - 1) < 5 * np.sqrt(2 * (orders - 1))  # chi^2 of orders - 1 degrees of freedom


def test_Permutation_places_and_neighbors_are_uniform() -> None:
    n, runs = 30, 2_000
    places, pairs = np.zeros((n, n)), np.zeros((n, n))
    for seed in range(runs):
        order = Permutation(n, seed)(np.arange(n))
        places[np.arange(n), order] += 1
        pairs[order[:-1], order[1:]] += 1
    for counts, freedom in ((places.ravel(), (n - 1) ** 2), (pairs[~np.eye(n, dtype=bool)], n * (n - 1) - 1)):
        squares = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert abs(squares - freedom) < 5 * np.sqrt(2 * freedom)


# Each datum once


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("name", PLACED)
def test_stream_each_datum_once_from_wherever_it_goes_on(name: str, world_size: int, tmp_path: Path) -> None:
    source = PLACED[name](tmp_path)
    ranks = [data.stream(source, rank=rank, world_size=world_size) for rank in range(world_size)]
    passes = [passed(rank, 5) for rank in ranks]
    assert sorted(n for each in passes for _, batch in each for n in batch) == list(range(N))
    assert [len(each) for each in passes] == [5] * world_size
    assert passes[0] != passed(ranks[0], 5, seed=1)
    for step, (place, _) in enumerate(passes[0]):
        assert place["position"] == min(5 * (step + 1), N)
        for rank, undisturbed in zip(ranks, passes, strict=True):
            assert passed(rank, 5, place=place) == undisturbed[step + 1 :]


@pytest.mark.parametrize("drop_last", [False, True])
def test_stream_goes_on_with_other_ranks_and_batches(drop_last: bool, tmp_path: Path) -> None:
    source = shards(tmp_path)
    for first in range(1, 4):
        ranks = [data.stream(source, rank=rank, world_size=2) for rank in range(2)]
        parts = [passed(rank, 6) for rank in ranks]
        place = parts[0][first - 1][0]
        seen = [n for part in parts for _, batch in part[:first] for n in batch]
        for world_size, batch_size in ((1, 4), (3, 7), (2, 3)):
            left = [
                n
                for rank in range(world_size)
                for _, batch in passed(
                    data.stream(source, rank=rank, world_size=world_size), batch_size, place=place, drop_last=drop_last
                )
                for n in batch
            ]
            dropped = (N - 6 * first) % batch_size if drop_last else 0
            assert len(seen + left) == N - dropped
            assert len(set(seen + left)) == N - dropped


@pytest.mark.slow
@pytest.mark.parametrize("name", SEQUENCES)
def test_stream_of_a_sequence_has_each_datum_once_from_wherever_it_goes_on(name: str) -> None:
    ranks = [data.stream(SEQUENCES[name](), length=N, rank=rank, world_size=2) for rank in range(2)]
    passes = [passed(rank, 4) for rank in ranks]
    assert sorted(n for each in passes for _, batch in each for n in batch) == list(range(N))
    assert passes[0] != passed(ranks[0], 4, seed=1)
    for step, (place, _) in enumerate(passes[0]):
        for rank, undisturbed in zip(ranks, passes, strict=True):
            assert passed(rank, 4, place=place) == undisturbed[step + 1 :]


def test_stream_of_a_sequence_has_each_datum_once() -> None:
    stream = data.stream(Numbers(drawn=True), length=N)
    first = passed(stream, 4)
    assert sorted(n for _, batch in first for n in batch) == list(range(N))
    assert passed(stream, 4, place=first[2][0]) == first[3:]


def test_stream_of_a_sequence_goes_on_across_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.data.streams.sequences._WINDOW", 6)
    stream = data.stream(DataLoader(Numbers(), batch_size=5, num_workers=1), length=N)
    windows = [numbers.tolist() for _, numbers, _ in stream.source.windows(3)]  # type: ignore[union-attr]
    assert [sorted(each) for each in windows] == [[*range(k, min(k + 6, N))] for k in range(0, N, 6)]
    assert windows != [sorted(each) for each in windows]
    first = passed(stream, 4)
    assert sorted(n for _, batch in first for n in batch) == list(range(N))
    for step in (0, 1, 3, 5):
        assert passed(stream, 4, place=first[step][0]) == first[step + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACED)
def test_stream_workers_read_what_the_thread_reads(name: str, tmp_path: Path) -> None:
    source = PLACED[name](tmp_path)
    here, there = (passed(data.stream(source, workers=workers), 4) for workers in (0, 2))
    assert here == there
    assert passed(data.stream(source, workers=2), 4, place=here[2][0]) == here[3:]


def test_stream_workers_read_what_the_thread_reads_of_a_file(tmp_path: Path) -> None:
    here, there = (passed(data.stream(file(tmp_path), workers=workers), 4) for workers in (0, 2))
    assert here == there


@pytest.mark.parametrize("name", PLACED)
def test_stream_batches_are_the_data_in_order(name: str, tmp_path: Path) -> None:
    stream = data.stream(PLACED[name](tmp_path))
    batches = [x for (x,) in stream.batches(6)]
    assert [len(x) for x in batches] == [6, 6, 6, 5]
    found = torch.cat(batches)
    expected = data.as_dataset(rows()).tensor()
    if name == "images":  # in the order of classes
        expected = torch.cat([expected[::2], expected[1::2]])
    if name == "images of Hugging Face":  # grays of PIL, of which fit gives the axis of a channel
        stream = stream.with_channel()
        assert torch.equal(found, expected[:, 0])
        found = torch.cat([x for (x,) in stream.batches(6)])
    assert torch.equal(found, expected)
    assert stream.event_shape == (1, 2, 3)
    assert [len(x) for (x,) in stream.batches(6, drop_last=True)] == [6, 6, 6]


def test_stream_reads_the_environment_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    stream = data.stream(file(tmp_path))
    assert (stream.rank, stream.world_size) == (1, 4)
    assert numbers_in(stream.batches(8, drop_last=True)) == [1, 5, 9, 13]
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="expected RANK a whole number; got 'first'"):
        data.stream(file(tmp_path))


# Values


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int16", "int64", "bool", "uint8"])
def test_stream_values_are_those_of_an_array_in_memory(dtype: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 200, (9, 4)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    (found,) = next(data.stream(tmp_path / "x.npy").batches(9))
    assert torch.equal(found, data.as_dataset(x).tensor())


def test_stream_bits_are_drawn_for_every_batch(tmp_path: Path) -> None:
    gray = np.full((400, 50), 51, np.uint8)
    np.save(tmp_path / "x.npy", gray)
    stream = data.stream(tmp_path / "x.npy", binarize="dynamic")
    draws = generator()
    first, second = (torch.cat([x for (x,) in stream.batches(64, generator=draws)]) for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    error = (0.2 * 0.8 / first.numel()) ** 0.5
    assert abs(float(first.mean()) - 0.2) < 5 * error
    with pytest.raises(ValueError, match="expected a generator for dynamic binarization"):
        stream.batches(64)


def test_stream_context_goes_with_its_datum(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.arange(N, dtype=np.int32) * 2)
    stream = data.stream(tars(tmp_path)).conditioned_on("labels", tmp_path / "y.npy", torch.arange(N) * 3)
    for workers in (0, 1):
        found = list(replace(stream, workers=workers).batches(5, shuffle=True, generator=generator()))
        for x, label, double, triple in found:
            number = (x[:, 0, 0, 0] * 255).round().long()
            assert torch.equal(label, number)
            assert torch.equal(double, 2 * number)
            assert torch.equal(triple, 3 * number)
        assert sum(len(x) for x, *_ in found) == N
    number = (stream.sample.tensor()[:, 0, 0, 0] * 255).round().long()
    assert all(torch.equal(each, k * number) for k, each in enumerate(stream.sample.context, 1))


def test_stream_labels_of_a_sequence_go_with_their_data() -> None:
    stream = data.stream(Numbers(drawn=True), length=N).conditioned_on("labels")
    found = [(x, label) for x, label in stream.batches(4, shuffle=True, generator=generator())]
    assert torch.equal(torch.cat([label for _, label in found]), torch.tensor(numbers_in(found)))


def test_stream_sample_is_drawn_from_all_and_bounded(tmp_path: Path) -> None:
    x = np.arange(12_000, dtype=np.float32)[:, None].repeat(2, 1)
    np.save(tmp_path / "x.npy", x)
    sample = data.stream(tmp_path / "x.npy").sample.images[:, 0]
    assert len(sample.unique()) == 5_000
    assert abs(float(sample.mean()) - 6_000) < 5 * 12_000 / (12 * 5_000) ** 0.5


def test_stream_says_what_it_is(tmp_path: Path) -> None:
    stream = data.stream(tars(tmp_path), binarize="dynamic", rank=1, world_size=2)
    assert repr(stream).endswith("23 x (1, 2, 3), 256 levels, binarization='dynamic', device='cpu', rank 1 of 2)")


def test_Dataset_feed_goes_on_where_it_was() -> None:
    dataset = data.as_dataset(torch.arange(20.0).reshape(10, 2)).conditioned_on(torch.arange(10))
    whole = list(dataset.feed(4, shuffle=True, generator=generator()))
    assert [index.tolist() for _, (index, *_) in whole] == [
        index.tolist() for index in dataset.indices(4, shuffle=True, generator=generator())
    ]
    assert all(images is dataset.images for _, (_, images, _) in whole)
    for step, (place, _) in enumerate(whole):
        left = list(dataset.feed(4, shuffle=True, generator=generator(), place=place))
        assert [index.tolist() for _, (index, *_) in left] == [index.tolist() for _, (index, *_) in whole[step + 1 :]]
    with pytest.raises(ValueError, match="expected a place at which a batch of 3 begins; got 4"):
        dataset.feed(3, place={"position": 4})


@pytest.mark.cuda
def test_stream_batches_are_on_the_device(tmp_path: Path) -> None:
    stream = data.stream(file(tmp_path), device="cuda")
    found = [x for (x,) in stream.batches(4, shuffle=True, generator=generator())]
    assert all(x.is_cuda for x in found)
    assert sorted(numbers_in((x.cpu(),) for x in found)) == list(range(N))


def test_stream_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    def state() -> list[Any]:
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]  # type: ignore[index]  # noqa: NPY002

    before = state()
    stream = data.stream(DataLoader(Numbers(drawn=True), batch_size=5, num_workers=1), length=N)
    list(stream.batches(4, shuffle=True, generator=generator()))
    list(data.stream(file(tmp_path)).batches(4, shuffle=True, generator=generator()))
    assert state() == before


def test_stream_that_is_left_ends_its_thread(tmp_path: Path) -> None:
    feed = data.stream(file(tmp_path)).batches(1, shuffle=True, generator=generator())
    next(feed)
    assert any(thread.name == "pyro_vae stream" for thread in threading.enumerate())
    del feed
    assert not any(thread.name == "pyro_vae stream" for thread in threading.enumerate())


@pytest.mark.parametrize("column", ["label", "y", "fine_label", "species"])
def test_stream_of_Hugging_Face_takes_the_labels_that_as_dataset_takes(column: str) -> None:
    datasets = pytest.importorskip("datasets")
    kind = datasets.ClassLabel(names=["a", "b"]) if column == "species" else datasets.Value("int64")
    features = datasets.Features({"x": datasets.List(datasets.Value("float32"), length=3), column: kind})
    rows = datasets.Dataset.from_dict({"x": [[0.0, 1.0, 2.0]] * 6, column: [0, 1, 1, 0, 1, 0]}, features=features)
    expected = data.as_dataset(rows).labels
    found = data.stream(rows).sample.labels
    assert expected is not None
    assert found is not None
    assert sorted(found.tolist()) == sorted(expected.tolist()) == [0, 0, 0, 1, 1, 1]
