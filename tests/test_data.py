"""Sets are read, split, made binary and batched as told, and what cannot be is refused with the remedy."""

import io
import os
import pickle
import re
import socket
import struct
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pyro
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from pyro_vae import data
from pyro_vae.data import named

MNIST_ROOT = Path(os.environ.get("PYRO_VAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
LEVELS = torch.arange(256, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grays(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator(seed), dtype=torch.uint8)


def write_idx(path: Path, values: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.to(torch.uint8).numpy().tobytes())


def write_mnist(raw: Path, train: str = "train", test: str = "t10k") -> dict[str, Tensor]:
    """30 training and 12 test images in the layout of MNIST."""
    parts = {train: (grays(30, 28, 28, seed=1), torch.arange(30)), test: (grays(12, 28, 28, seed=2), torch.arange(12))}
    for part, (images, labels) in parts.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return {"train": parts[train][0], "test": parts[test][0]}


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# Named sets on disk


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_load_idx_sets_keep_their_test_split_and_hold_out_the_last_training_images(
    name: str, folder: str, tmp_path: Path
) -> None:
    written = write_mnist(tmp_path / folder / "raw")
    train, validation, test = data.load(name, tmp_path, validation=10)
    assert (train.name, train.levels, train.event_shape, train.binarization) == (name, 255, (1, 28, 28), "none")
    torch.testing.assert_close(train.images[:, 0], written["train"][:20], rtol=0, atol=0)
    torch.testing.assert_close(validation.images[:, 0], written["train"][20:], rtol=0, atol=0)
    torch.testing.assert_close(test.images[:, 0], written["test"], rtol=0, atol=0)
    assert train.labels is not None
    assert validation.labels is not None
    assert test.labels is not None
    assert [*train.labels, *validation.labels, *test.labels] == [*range(30), *range(12)]


def test_load_emnist_letters_stand_upright(tmp_path: Path) -> None:
    written = write_mnist(tmp_path / "EMNIST" / "raw", "emnist-balanced-train", "emnist-balanced-test")
    train, validation, test = data.load("emnist", tmp_path, validation=0.1)
    assert (len(train), len(validation), len(test)) == (27, 3, 12)
    torch.testing.assert_close(train.images[:, 0], written["train"][:27].transpose(1, 2), rtol=0, atol=0)


def test_load_omniglot_averages_the_ink_over_cells(tmp_path: Path) -> None:
    page = np.full((105, 105), 255, np.uint8)
    page[:45, :30] = 0  # 45 x 30 pixels of ink are 12 x 8 cells of 3.75 pixels
    folder = tmp_path / "omniglot-py"
    folder.mkdir()
    for part, characters in [("background", ["B/two", "A/one"]), ("evaluation", ["C/one"])]:
        with zipfile.ZipFile(folder / f"images_{part}.zip", "w") as archive:
            for character in characters:
                for drawer in range(3):
                    png = io.BytesIO()
                    Image.fromarray(page if character == "A/one" else np.full_like(page, 255)).save(png, "png")
                    archive.writestr(f"images_{part}/{character}/{drawer}.png", png.getvalue())
    train, validation, test = data.load("omniglot", tmp_path, validation=1)
    expected = torch.zeros(28, 28)
    expected[:12, :8] = 1
    torch.testing.assert_close(train.tensor()[:, 0], torch.stack([expected] * 3 + [torch.zeros(28, 28)] * 2))
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert (len(validation), len(test)) == (1, 3)


def test_load_svhn_and_cifar10_come_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savemat = import_module("scipy.io").savemat
    images = grays(4, 3, 32, 32)
    for part in ("train", "test"):
        columns = {"X": images.permute(2, 3, 1, 0).numpy(), "y": np.array([[10], [1], [2], [3]])}
        savemat(tmp_path / f"{part}_32x32.mat", columns)
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    (tmp_path / "cifar-10-batches-py").mkdir()
    for batch in batches:
        content = {"data": images.reshape(4, -1).numpy(), "labels": [4, 5, 6, 7]}
        (tmp_path / "cifar-10-batches-py" / batch).write_bytes(pickle.dumps(content))
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"]}))

    with pytest.raises(ValueError, match=r"expected a complete file.*Delete the set's files there and load it again"):
        data.load("cifar10", tmp_path)
    splits = {part: ["", f"{part}_32x32.mat", None] for part in ("train", "test")}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", [[batch, None] for batch in batches[:5]])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setitem(torchvision.datasets.CIFAR10.meta, "md5", None)
    for name, size, labels in [("svhn", 4, [0, 1, 2, 3]), ("cifar10", 20, [4, 5, 6, 7])]:
        assert data.available(name, tmp_path)
        train, validation, test = data.load(name, tmp_path)
        assert (len(train), len(validation)) == (size - max(1, size // 10), max(1, size // 10))
        torch.testing.assert_close(test.images, images, rtol=0, atol=0)
        torch.testing.assert_close(train.images[:3], images[:3], rtol=0, atol=0)
        assert test.labels is not None
        assert test.labels.tolist() == labels


def test_load_digits_need_no_files() -> None:
    assert data.available("digits")
    splits = data.load("digits")
    train, validation, test = splits
    assert (len(train), len(validation), len(test)) == (1349, 149, 299)
    assert (train.event_shape, train.levels) == ((1, 8, 8), 16)
    assert (train.tensor().min().item(), train.tensor().max().item()) == (0, 1)

    from sklearn.datasets import load_digits

    rows = []
    for part in splits:
        assert part.labels is not None
        rows += torch.cat([part.images.flatten(1), part.labels[:, None]], dim=1).tolist()
    stored = load_digits()
    assert sorted(rows) == sorted(np.column_stack([stored.data, stored.target]).tolist())


@pytest.mark.skipif(not data.available("mnist", MNIST_ROOT), reason="MNIST is not on disk")
def test_load_mnist_is_mnist() -> None:
    train, validation, test = data.load("mnist", MNIST_ROOT)
    assert (len(train), len(validation), len(test)) == (50_000, 10_000, 10_000)
    assert train.labels is not None
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    mean = (5 * train.mean() + validation.mean()).mean().item() / 6
    assert mean == pytest.approx(0.1307, abs=5e-5)  # the figure that everyone normalizes by, to its last digit


def test_load_finds_the_root_by_argument_then_environment_then_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, environment, argument = (tmp_path / name for name in ("cache", "environment", "argument"))
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda application: str(cache / application))
    assert named.folder(None) == cache / "pyro_vae"
    monkeypatch.setenv("PYRO_VAE_DATA", str(environment))
    assert named.folder(None) == environment
    write_mnist(environment / "MNIST" / "raw")
    assert data.available("mnist")
    assert not data.available("mnist", argument)
    assert len(data.load("mnist", validation=1).test) == 12


def test_load_reading_leaves_the_root_as_it_is(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    before = tree(tmp_path)
    for folder in (tmp_path / "MNIST" / "raw", tmp_path / "MNIST", tmp_path):
        folder.chmod(0o500)
    try:
        data.load("mnist", tmp_path, validation=1)
        assert tree(tmp_path) == before
    finally:
        for folder in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
            folder.chmod(0o700)


@pytest.mark.parametrize("kept", [0, 3, 16, 500], ids=["empty", "half a header", "a header", "some images"])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_load_truncated_file_is_named(file: str, kept: int, tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / file
    content = path.read_bytes()
    path.write_bytes(content[: min(kept, len(content) - 1)])
    with pytest.raises(
        ValueError, match=rf"File {re.escape(str(path))}: expected a complete.*Delete it and load the set"
    ):
        data.load("mnist", tmp_path, validation=1)


def test_load_damaged_archive_is_named(tmp_path: Path) -> None:
    for part in ("background", "evaluation"):
        path = tmp_path / "omniglot-py" / f"images_{part}.zip"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"PK not an archive")
    with pytest.raises(ValueError, match=r"images_background\.zip: expected a complete.*Delete it and load"):
        data.load("omniglot", tmp_path)


def test_load_labels_and_images_that_differ_in_number_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", torch.arange(29))
    with pytest.raises(ValueError, match=r"'mnist': expected labels of length 30; got shape \(29,\)"):
        data.load("mnist", tmp_path)


# Downloads


class Answer:
    def close(self) -> None: ...


def reachable(*args: object, **kwargs: object) -> Answer:
    return Answer()


def downloading(monkeypatch: pytest.MonkeyPatch, download: Callable[[Any], object]) -> None:
    """Puts a server within reach and ``download`` in the place of torchvision's."""
    monkeypatch.setattr(urllib.request, "urlopen", reachable)
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)


@pytest.mark.parametrize("name", [*named.SOURCES])
def test_load_no_file_and_no_network_is_one_error_with_the_ways_out(name: str, tmp_path: Path) -> None:
    root = tmp_path / "new"
    with pytest.raises(
        data.DatasetNotFoundError, match=rf"'{name}': expected .* in {root}.*\(.*no network.*PYRO_VAE_DATA.*digits"
    ):
        data.load(name, root)
    assert not root.exists()


def test_load_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*args: object, **kwargs: object) -> Answer:
        over.wait(60)
        return Answer()

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    monkeypatch.setattr(named, "_PROBE_SECONDS", 0.1)
    try:
        with pytest.raises(data.DatasetNotFoundError, match=r"no answer within 0\.1 seconds"):
            data.load("mnist", tmp_path)
    finally:
        over.set()


def test_load_one_answering_mirror_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torchvision.datasets.MNIST.mirrors

    def urlopen(request: urllib.request.Request, timeout: float) -> Answer:
        if request.full_url.startswith(first):
            raise urllib.error.URLError("down")
        assert timeout == named._PROBE_SECONDS
        raise urllib.error.HTTPError(second, 405, "Method Not Allowed", Message(), None)

    downloading(monkeypatch, lambda self: write_mnist(Path(self.raw_folder)))
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert len(data.load("mnist", tmp_path, validation=1).test) == 12


def test_load_download_is_moved_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = []

    def download(self: Any) -> None:
        assert Path(self.root).parent == tmp_path / "root"  # so that a move stays on one disk
        timeouts.append(socket.getdefaulttimeout())
        write_mnist(Path(self.raw_folder))
        Path(self.raw_folder, "train-images-idx3-ubyte.gz").write_bytes(b"archive")

    downloading(monkeypatch, download)
    kept = tmp_path / "root" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    write_idx(kept, torch.full((30,), 7))
    assert not data.available("mnist", tmp_path / "root")
    train, _, _ = data.load("mnist", tmp_path / "root", validation=1)
    assert train.labels is not None
    assert train.labels.unique().tolist() == [7]  # a file that is there is never overwritten
    assert tree(tmp_path / "root") == ["MNIST", "MNIST/raw", *(sorted(named.SOURCES["mnist"].files))]
    assert data.available("mnist", tmp_path / "root")
    assert set(timeouts) == {named._STALL_SECONDS}
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("error", [RuntimeError("File not found or corrupted."), TimeoutError("timed out"), EOFError()])
def test_load_half_a_download_is_not_left_behind(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(self: Any) -> None:
        write_idx(Path(self.raw_folder) / "train-images-idx3-ubyte", grays(30, 28, 28))
        raise error

    downloading(monkeypatch, download)
    with pytest.raises(data.DatasetNotFoundError, match=rf"no download \({error}\)"):
        data.load("mnist", tmp_path)
    assert tree(tmp_path) == []


def test_load_root_that_cannot_be_written_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    downloading(monkeypatch, lambda self: None)
    with pytest.raises(data.DatasetNotFoundError, match=r"no download .*Not a directory"):
        data.load("mnist", tmp_path / "file" / "root")


# Splits


def test_load_splits_arrays_by_a_seeded_permutation() -> None:
    table = np.arange(120, dtype=np.float64).reshape(60, 2)
    splits = data.load(table)
    assert [len(part) for part in splits] == [45, 5, 10]
    assert sorted(torch.cat([part.images for part in splits]).tolist()) == table.tolist()
    again, other = data.load(table), data.load(table, seed=1)
    for part, same, different in zip(splits, again, other, strict=True):
        assert torch.equal(part.images, same.images)
        assert not torch.equal(part.images, different.images)


def test_load_splits_a_set_with_its_labels_and_context() -> None:
    number = torch.arange(60)
    dataset = data.Dataset("mine", number[:, None] / 60, number).conditioned_on(-number)
    for part in data.load(dataset):
        assert part.labels is not None
        assert torch.equal(part.labels, (part.images[:, 0] * 60).round().long())
        assert torch.equal(part.labels, -part.context[0])
    with pytest.raises(ValueError, match="'mine': expected a set not yet made binary; got binarization='dynamic'"):
        data.load(replace(dataset, binarization="dynamic"))


@pytest.mark.parametrize(("validation", "size"), [(7, 7), (0.5, 25), (0.001, 1), (None, 5)])
def test_load_takes_a_number_or_a_fraction_for_validation(validation: int | float | None, size: int) -> None:
    assert [len(part) for part in data.load(torch.zeros(60, 2), validation=validation)] == [50 - size, size, 10]


@pytest.mark.parametrize("validation", [0, 50, -1, 1.0, 0.0, float("nan")])
def test_load_leaves_something_on_both_sides_of_validation(validation: float) -> None:
    with pytest.raises(ValueError, match=r"validation: expected a number from 1 to 49 or a fraction.*; got .* Pass"):
        data.load(torch.zeros(60, 2), validation=validation)


# Making binary


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_binarize_bits_have_the_grays_for_means(mode: data.Binarize) -> None:
    gray = LEVELS.expand(30_000, 256)
    train, _, _ = data.load(gray, binarize=mode)
    (x,) = train.batch(torch.arange(len(train)), generator())
    assert x.dtype == torch.float32
    assert set(x.unique().tolist()) == {0, 1}
    g = LEVELS.double() / 255
    standard_error = (g * (1 - g) / len(train)).sqrt()
    assert ((x.double().mean(0) - g).abs() <= 5 * standard_error).all()  # exact at black and white, whose error is 0


def test_binarize_dynamic_draws_afresh_from_the_generator_given() -> None:
    train, validation, test = data.load("digits", binarize="dynamic")
    assert [part.binarization for part in (train, validation, test)] == ["dynamic", "static", "static"]
    index, stream = torch.arange(50), generator(3)
    (first,), (second,) = train.batch(index, stream), train.batch(index, stream)
    assert not torch.equal(first, second)
    assert torch.equal(first, train.batch(index, generator(3))[0])
    assert torch.equal(validation.batch(index)[0], validation.batch(index)[0])
    assert validation.levels == test.levels == 1


@pytest.mark.parametrize("mode", ["dynamic", "static", "threshold", "none"])
def test_binarize_seed_fixes_what_is_drawn_once(mode: data.Binarize) -> None:
    source = grays(600, 1, 4, 4)
    first, again, other = (data.load(source, binarize=mode, seed=seed) for seed in (5, 5, 6))
    for part, same, different in zip(first, again, other, strict=True):
        assert torch.equal(part.tensor(), same.tensor())
        assert not torch.equal(part.tensor(), different.tensor())


def test_binarize_seed_fixes_the_bits_of_an_official_split(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    first, again, other = (data.load("mnist", tmp_path, binarize="static", validation=9, seed=s) for s in (5, 5, 6))
    dynamic = data.load("mnist", tmp_path, binarize="dynamic", validation=9, seed=5)
    for part, same, different in zip(first, again, other, strict=True):
        assert torch.equal(part.images, same.images)
        assert not torch.equal(part.images, different.images)
    assert torch.equal(first.test.images, dynamic.test.images)
    assert torch.equal(first.validation.images, dynamic.validation.images)


def test_binarize_threshold_is_half_the_scale() -> None:
    train, _, _ = data.load(LEVELS.expand(9, 256), binarize="threshold")
    assert torch.equal(train.images[0], (LEVELS > 127.5).byte())
    assert (train.binarization, train.levels) == ("threshold", 1)
    halves, _, _ = data.load(np.tile([0, 0.5, 0.500001, 1], (9, 1)), binarize="threshold")
    assert halves.tensor()[0].tolist() == [0, 0, 1, 1]
    digits, grayscale = data.load("digits", binarize="threshold").train, data.load("digits").train
    assert torch.equal(digits.images, (grayscale.images > 8).byte())


@pytest.mark.parametrize("mode", ["dynamic", "static", "threshold"])
@pytest.mark.parametrize(("value", "remedy"), [(-0.01, "Scale"), (1.01, "Scale"), (float("nan"), "Fill")])
def test_binarize_refuses_values_outside_the_unit_interval(mode: data.Binarize, value: float, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"'array': expected values in \[0, 1\] to binarize; got .* {remedy} them"):
        data.load(torch.full((9, 2), value), binarize=mode)


def test_load_leaves_global_generators_alone() -> None:
    def state() -> tuple[object, ...]:
        states = pyro.util.get_rng_state()
        return states["torch"].tolist(), states["random"], str(states["numpy"])

    before = state()
    for mode in ("dynamic", "static"):
        train, _, _ = data.load("digits", binarize=mode)
        list(train.batches(64, shuffle=True, generator=generator()))
    assert state() == before


# Batches


def test_Dataset_batches_go_through_the_set_once_in_order() -> None:
    dataset = data.as_dataset(torch.arange(20.0).reshape(10, 2))
    batches = [x for (x,) in dataset.batches(4)]
    assert [len(x) for x in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), dataset.images)
    assert [len(x) for (x,) in dataset.batches(4, drop_last=True)] == [4, 4]
    assert [len(x) for (x,) in dataset.batches(99)] == [10]


def test_Dataset_shuffled_batches_are_a_fresh_permutation_of_the_generator() -> None:
    dataset = data.as_dataset(torch.arange(50.0)[:, None])

    def epoch(stream: torch.Generator) -> list[float]:
        return torch.cat([x for (x,) in dataset.batches(7, shuffle=True, generator=stream)]).flatten().tolist()

    stream = generator(1)
    first, second = epoch(stream), epoch(stream)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == epoch(generator(1))


def test_Dataset_context_goes_with_its_datum() -> None:
    dataset = data.as_dataset(torch.arange(10.0)[:, None]).conditioned_on(torch.arange(10))
    dataset = dataset.conditioned_on(torch.arange(20).reshape(10, 2))
    for part in (dataset, dataset.take(6), dataset.subset(torch.tensor([3, 1, 8])), dataset.to("cpu")):
        for x, number, pair in part.batches(4, shuffle=True, generator=generator()):
            assert torch.equal(x[:, 0].long(), number)
            assert torch.equal(pair, torch.stack([2 * number, 2 * number + 1], dim=1))


def test_Dataset_what_batches_cannot_do_is_refused_at_once() -> None:
    dataset = data.as_dataset(grays(8, 4))
    dynamic = replace(dataset, binarization="dynamic")
    with pytest.raises(ValueError, match="batch_size at least 1; got 0"):
        dataset.batches(0)
    with pytest.raises(ValueError, match=r"a generator for shuffling; got None\. Pass generator=torch\.Generator"):
        dataset.batches(4, shuffle=True)
    with pytest.raises(ValueError, match="a generator for dynamic binarization; got None"):
        dynamic.batches(4)
    with pytest.raises(ValueError, match="a generator for dynamic binarization; got None"):
        dynamic.batch(torch.arange(2))


# The stored set


def test_Dataset_mean_is_of_values_on_the_unit_scale() -> None:
    dataset = data.as_dataset(grays(9000, 1, 2, 2))  # several chunks and a part of one
    torch.testing.assert_close(dataset.mean(), (dataset.images.double() / 255).mean(0).float())
    torch.testing.assert_close(replace(dataset, binarization="dynamic").mean(), dataset.mean(), rtol=0, atol=0)
    gaps = data.as_dataset(torch.tensor([[1.0, float("nan")], [2.0, 7.0]]))
    assert gaps.mean().tolist() == [1.5, 7.0]


def test_Dataset_tensor_has_the_grays_and_no_draw() -> None:
    dataset = replace(data.as_dataset(LEVELS[None]), binarization="dynamic")
    torch.testing.assert_close(dataset.tensor(), torch.linspace(0, 1, 256)[None])


def test_Dataset_take_and_subset() -> None:
    dataset = data.Dataset("counted", torch.arange(5.0)[:, None], torch.arange(5))
    assert dataset.take(2).images.flatten().tolist() == [0, 1]
    assert len(dataset.take(9)) == 5
    part = dataset.subset(torch.tensor([4, 0]))
    assert part.labels is not None
    assert (part.images.flatten().tolist(), part.labels.tolist(), part.name) == ([4, 0], [4, 0], "counted")
    with pytest.raises(ValueError, match="expected n at least 1; got 0"):
        dataset.take(0)


def test_Dataset_repr_is_one_short_line() -> None:
    dataset = data.as_dataset(grays(5, 8, 8), name="squares")
    assert repr(dataset) == "Dataset('squares', 5 x (8, 8), 256 levels, binarization='none', device='cpu')"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"images": torch.zeros(3, 2, dtype=torch.float64)},
            TypeError,
            "got torch.float64 with levels=None.*as_dataset",
        ),
        ({"levels": 255}, TypeError, "got torch.float32 with levels=255"),
        ({"images": torch.zeros(0, 2)}, ValueError, r"at least one datum.*got \(0, 2\)"),
        ({"images": torch.zeros(3)}, ValueError, r"at least one datum.*got \(3,\)"),
        ({"images": torch.full((3, 2), 17, dtype=torch.uint8), "levels": 16}, ValueError, "0 to levels=16; got 17"),
        ({"images": torch.full((3, 2), -torch.inf)}, ValueError, "finite values.*got infinity"),
        ({"labels": torch.zeros(3)}, TypeError, "labels of torch.int64; got torch.float32"),
        ({"labels": torch.arange(4)}, ValueError, r"labels of length 3; got shape \(4,\)"),
        ({"context": (torch.zeros(3), torch.zeros(2, 5))}, ValueError, r"context of length 3; got shape \(2, 5\)"),
        ({"context": (torch.tensor(1.0),)}, ValueError, r"context of length 3; got shape \(\)"),
        ({"context": (torch.zeros(3, device="meta"),)}, ValueError, "context on device cpu; got meta"),
        ({"binarization": "dinamic"}, ValueError, "got 'dinamic'. Did you mean 'dynamic'"),
        ({"images": torch.full((3, 2), 2.0), "binarization": "dynamic"}, ValueError, r"values in \[0, 1\]"),
    ],
)
def test_Dataset_set_that_cannot_be_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.Dataset(**{"name": "array", "images": torch.zeros(3, 2), **changes})


def test_Dataset_missing_values_are_allowed() -> None:
    (x,) = data.as_dataset(torch.tensor([[1.0, float("nan")]])).batch(torch.tensor([0]))
    assert x.isnan().tolist() == [[False, True]]


# Arrays


COUNTS = np.array([[0, 300], [2, 70_000], [1, 5]])


@pytest.mark.parametrize(
    ("x", "levels", "values"),
    [
        (COUNTS, None, COUNTS),
        (torch.from_numpy(COUNTS), None, COUNTS),
        (COUNTS.astype(">i4"), None, COUNTS),
        (COUNTS.astype(">f8"), None, COUNTS),
        (COUNTS[::-1], None, COUNTS[::-1]),
        (COUNTS[:1][::-1], None, COUNTS[:1]),
        (np.frombuffer(b"-" + COUNTS.tobytes(), np.uint8)[1:].view(COUNTS.dtype)[:, None], None, COUNTS.reshape(-1, 1)),
        (np.frombuffer(COUNTS.tobytes(), COUNTS.dtype)[:, None], None, COUNTS.reshape(-1, 1)),
        (COUNTS.astype(np.uint16), None, COUNTS.astype(np.uint16)),
        (np.array([[0.5], [-3.0]], dtype=np.float16), None, [[0.5], [-3.0]]),
        (np.broadcast_to(np.uint8(51), (3, 2)), 255, np.full((3, 2), 0.2)),
        (torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8), 1, [[0, 1], [1, 0]]),
        (np.array([[True, False]]), 1, [[1, 0]]),
        (torch.ones(2, 2, requires_grad=True), None, np.ones((2, 2))),
    ],
)
@pytest.mark.filterwarnings("error")  # torch warns of arrays that are read-only
def test_as_dataset_takes_arrays(x: Any, levels: int | None, values: Any) -> None:
    dataset = data.as_dataset(x, name="mine")
    assert (dataset.name, dataset.levels) == ("mine", levels)
    torch.testing.assert_close(dataset.tensor(), torch.from_numpy(np.array(values, dtype=np.float32)))
    assert not dataset.images.requires_grad


def test_as_dataset_keeps_the_shape_of_data_and_sets() -> None:
    dataset = data.as_dataset(grays(5, 8, 9))
    assert dataset.event_shape == (8, 9)
    assert data.as_dataset(torch.zeros(2, 1, 3, 1, 4)).event_shape == (1, 3, 1, 4)
    assert data.as_dataset(grays(5, 3, 8, 8)).event_shape == (3, 8, 8)
    assert data.as_dataset(dataset) is dataset


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.array([[None, 1]]), TypeError, "expected real numbers; got array of object"),
        (np.array([["a"]]), TypeError, "got array of <U1"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "expected real numbers; got a tensor of torch.complex64"),
        ([[1.0], [1.0, 2.0]], TypeError, "expected rows of one length; got ragged ones"),
        ({}, TypeError, r"got dict\. Convert it"),
        (torch.zeros(5), ValueError, r"expected shape \(N, D\).*got \(5,\)"),
        (grays(5, 8, 8, 3), ValueError, r"got channels last, \(5, 8, 8, 3\).*permute\(0, 3, 1, 2\)"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), ValueError, "at least one datum"),
    ],
)
def test_as_dataset_refuses_arrays_that_are_no_set(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.as_dataset(x)
    with pytest.raises(error, match=message):
        data.load(x)


def test_load_set_too_small_to_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 3 data to split; got 2\. Use data\.as_dataset"):
        data.load(torch.zeros(2, 2))
    assert [len(part) for part in data.load(torch.zeros(3, 2))] == [1, 1, 1]


# Files


def everything(splits: data.Splits) -> list[tuple[float, int | None]]:
    """The first value, to six digits, and the label of every datum, sorted."""
    return sorted(
        (round(image.flatten()[0].item(), 6), None if part.labels is None else int(part.labels[i]))
        for part in splits
        for i, image in enumerate(part.tensor())
    )


@pytest.mark.parametrize("images_key", ["images", "x", "data"])
@pytest.mark.parametrize("labels_key", ["labels", "y", None])
def test_load_npz_files(images_key: str, labels_key: str | None, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {images_key: np.arange(12.0).reshape(6, 2)}
    if labels_key is not None:
        arrays[labels_key] = np.arange(6, dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", **arrays)
    splits = data.load(tmp_path / "mine.npz")
    assert splits.train.name == "mine"
    assert everything(splits) == [(2.0 * i, None if labels_key is None else i) for i in range(6)]


def test_load_npy_files_and_the_only_array_of_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(6, 2))
    np.savez(tmp_path / "b.npz", anything=np.arange(12.0).reshape(6, 2))
    assert everything(data.load(str(tmp_path / "a.npy"))) == everything(data.load(tmp_path / "b.npz"))


def save_objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def save_half(path: Path) -> None:
    np.savez_compressed(path, images=grays(40, 9).numpy())
    path.write_bytes(path.read_bytes()[:200])


def save_damaged(path: Path) -> None:
    np.savez(path, images=grays(40, 90).numpy())
    content = path.read_bytes()
    path.write_bytes(content[:500] + bytes(300) + content[800:])  # the checksum differs


def save_garbled(path: Path) -> None:
    np.savez_compressed(path, images=grays(40, 90).numpy())
    content = path.read_bytes()
    start = 30 + sum(struct.unpack("<HH", content[26:30]))  # of the compressed stream, after the member's header
    path.write_bytes(content[:start] + b"\xff" * 10 + content[start + 10 :])  # a block type that does not exist


@pytest.mark.parametrize(
    ("file", "write", "message"),
    [
        ("a.npy", save_objects, r"a\.npy: expected a complete file.*objects are not unpickled"),
        ("a.npy", lambda path: path.write_bytes(b"\x93NUMPY"), r"a\.npy: expected a complete file.*Write it again"),
        ("a.npy", lambda path: path.touch(), r"a\.npy: expected a complete file"),
        ("a.npz", save_half, r"a\.npz: expected a complete file.*Write it again"),
        ("a.npz", save_damaged, r"a\.npz: expected a complete file.*Write it again"),
        ("a.npz", save_garbled, r"a\.npz: expected a complete file.*Write it again"),
        ("a.npz", lambda path: np.savez(path, p=np.zeros(1), q=np.zeros(1)), "named images, x or data; got p, q"),
        ("a.npz", lambda path: np.savez(path), "named images, x or data; got none"),
        ("a.npz", lambda path: np.savez(path, x=np.zeros((2, 2)), y=np.zeros(2)), "labels of integers.*got float64"),
        ("a.npz", lambda path: np.savez(path, x=np.zeros((2, 2)), y=np.arange(3)), "labels of length 2; got shape"),
        (
            "a.txt",
            lambda path: path.touch(),
            r"a \.npy, \.npz, \.csv, \.parquet or \.h5ad file or a folder of images; got '\.txt'",
        ),
        ("a", lambda path: path.mkdir(), "expected images; got none"),
    ],
)
def test_load_files_that_hold_no_set_are_refused(
    file: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / file)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / file)


@pytest.mark.parametrize("source", ["nowhere.npz", "no/where", Path("nowhere")])
def test_load_path_that_is_not_there(source: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"where.*: expected a file or folder; got none"):
        data.load(source)


def save_image(path: Path, gray: int, size: tuple[int, int] = (6, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, gray).convert(mode).save(path)


def test_load_folders_of_images(tmp_path: Path) -> None:
    for i in range(6):
        save_image(tmp_path / "flat" / f"{i}.png", 51 * i, mode="LA" if i % 2 else "L")
        save_image(tmp_path / "classes" / f"class {i // 2}" / "deeper" / f"{i}.PNG", 51 * i, mode="RGB")
    (tmp_path / "flat" / "._0.png").write_bytes(b"not an image")
    (tmp_path / "flat" / "notes.txt").touch()
    flat, classes = data.load(tmp_path / "flat"), data.load(str(tmp_path / "classes"))
    assert everything(flat) == [(i / 5, None) for i in range(6)]
    assert everything(classes) == [(i / 5, i // 2) for i in range(6)]
    assert (flat.train.name, flat.train.event_shape) == ("flat", (1, 4, 6))
    assert (classes.train.name, classes.train.event_shape, classes.train.levels) == ("classes", (3, 4, 6), 255)


def test_load_images_that_are_no_set_are_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 0)
    save_image(tmp_path / "b.png", 0, size=(5, 4))
    with pytest.raises(
        ValueError, match=r"b\.png: expected an image \(C, H, W\) like the first, \(1, 4, 6\) of uint8; got \(1, 4, 5\)"
    ):
        data.load(tmp_path)
    save_image(tmp_path / "b.png", 0, mode="RGB")
    with pytest.raises(ValueError, match=r"b\.png.*got \(3, 4, 6\).*convert them to one mode"):
        data.load(tmp_path)
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: expected an image .* of uint8; got \(1, 4, 6\) of float32"):
        data.load(tmp_path)
    save_image(tmp_path / "b.png", 0)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"b\.png: expected a complete file.*Write it again"):
        data.load(tmp_path)
    (tmp_path / "b.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"b\.png: expected a complete file.*Write it again"):
        data.load(tmp_path)
    (tmp_path / "b.png").unlink()
    save_image(tmp_path / "class" / "a.png", 0)
    with pytest.raises(ValueError, match="images in the folder alone or in class subfolders alone; got both"):
        data.load(tmp_path)


# Names and devices


@pytest.mark.parametrize(
    ("name", "meant"), [("minst", "mnist"), ("Fashion-MNIST", "fashion_mnist"), ("digit", "digits")]
)
def test_load_unknown_names_are_told_the_known_ones(name: str, meant: str) -> None:
    with pytest.raises(
        ValueError, match=rf"expected one of digits, mnist, .*cifar10; got '{name}'\. Did you mean '{meant}'"
    ):
        data.load(name)
    with pytest.raises(ValueError, match=rf"data\.available: .*Did you mean '{meant}'"):
        data.available(name)


def test_load_unknown_modes_are_told_the_known_ones() -> None:
    mode: Any = "bits"
    with pytest.raises(ValueError, match="binarize: expected one of none, dynamic, static, threshold; got 'bits'"):
        data.load("digits", binarize=mode)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_load_device_that_is_not_there_is_told_before_anything(device: str) -> None:
    message = rf"device: expected a device of this machine; got '{device}' \(.*\)\. Use device=\"cpu\"\."
    with pytest.raises(ValueError, match=message):
        data.load("no such set", device=device)
    with pytest.raises(ValueError, match=message):
        data.as_dataset(torch.zeros(2, 2)).to(device)


@pytest.mark.cuda
def test_Dataset_draws_on_cuda_as_its_generator_on_the_cpu_does() -> None:
    here, there = (data.load("digits", binarize="dynamic", device=device) for device in ("cpu", "cuda"))
    assert there.train.device.type == "cuda"
    assert torch.equal(here.test.images, there.test.images.cpu())
    for (x,), (y,) in zip(
        here.train.batches(256, shuffle=True, generator=generator()),
        there.train.batches(256, shuffle=True, generator=generator()),
        strict=True,
    ):
        assert y.device.type == "cuda"
        assert torch.equal(x, y.cpu())
    own = torch.Generator("cuda").manual_seed(0)
    x = torch.cat([x for (x,) in there.train.batches(256, shuffle=True, generator=own)]).cpu()
    g = here.train.tensor().double()
    standard_error = (g * (1 - g)).sum(0).sqrt() / len(g)
    assert ((x.double().mean(0) - here.train.mean()).abs() <= 5 * standard_error + 1e-6).all()
