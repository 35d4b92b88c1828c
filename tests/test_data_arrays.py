"""Data of other libraries: what comes in, and what is refused rather than cut."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from PIL import Image, features
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_vae import data


def values(x: Any) -> list[Any]:
    return data.as_dataset(x).tensor().nan_to_num(-1.0).tolist()  # -1 in place of NaN, which equals nothing


# Arrays


def test_as_dataset_masked_values_are_missing() -> None:
    x = np.ma.masked_values([[1.0, -999.0], [3.0, 4.0]], -999)
    assert values(x) == [[1.0, -1.0], [3.0, 4.0]]
    assert values(np.ma.masked_equal(np.array([[1, 7], [3, 4]]), 7)) == [[1.0, -1.0], [3.0, 4.0]]
    assert values(np.ma.array([[1.0, 2.0]])) == [[1.0, 2.0]]
    assert data.as_dataset(np.ma.array(np.zeros((2, 2), np.uint8))).levels == 1
    assert "1 missing" in repr(data.as_dataset(x))


def test_as_dataset_nullable_types_categories_and_bools_of_pandas() -> None:
    frame = pd.DataFrame(
        {
            "count": pd.array([1, None, 3], dtype="Int64"),
            "real": [0.5, np.nan, 2.5],
            "kind": pd.Categorical(["b", "a", None]),
            "flag": pd.array([True, False, None], dtype="boolean"),
            "whole": [1, 2, 3],
        }
    )
    dataset = data.as_dataset(frame)
    assert dataset.columns == ("count", "real", "kind", "flag", "whole")
    assert values(frame) == [[1, 0.5, 1, 1, 1], [-1, -1, 0, 0, 2], [3, 2.5, -1, -1, 3]]
    assert dataset.take(2).columns == dataset.columns
    with pytest.raises(TypeError, match=r"expected columns of numbers or categories; got 'name' of .*astype"):
        data.as_dataset(frame.assign(name=["x", "y", "z"]))
    with pytest.raises(TypeError, match="got 'day' of datetime64"):
        data.as_dataset(frame.assign(day=pd.to_datetime("2026-01-01")))


def test_as_dataset_sparse_matrices_are_made_dense_with_a_word() -> None:
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.coo_array):
        dataset = data.as_dataset(kind(np.array([[0.0, 2.0], [0.0, 0.0]])))
        assert dataset.tensor().tolist() == [[0, 2], [0, 0]]
        assert dataset.note == "made dense from 1 stored values"
    assert values(torch.eye(2).to_sparse()) == [[1, 0], [0, 1]]


def test_as_dataset_annotated_data_give_their_matrix_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    class AnnData(SimpleNamespace):
        __module__ = "anndata._core"

    monkeypatch.setitem(sys.modules, "anndata", ModuleType("anndata"))
    dataset = data.as_dataset(AnnData(X=scipy.sparse.csr_matrix(np.eye(2)), var_names=["g1", "g2"]))
    assert dataset.columns == ("g1", "g2")
    assert dataset.tensor().tolist() == [[1, 0], [0, 1]]


def test_as_dataset_sets_and_loaders_of_torch() -> None:
    x, y = torch.rand(5, 3), torch.arange(5)
    for source in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True)):
        dataset = data.as_dataset(source)
        assert torch.equal(dataset.tensor(), x)
        assert dataset.labels is not None
        assert torch.equal(dataset.labels, y)
    assert "DataLoader" in dataset.note
    assert torch.equal(data.as_dataset(TensorDataset(x)).tensor(), x)
    assert "left out" in data.as_dataset(TensorDataset(x, torch.rand(5))).note

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield from x

    with pytest.raises(TypeError, match="expected a set with a length; got the stream Stream"):
        data.as_dataset(Stream())


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.array([[2**24 + 1]]), ValueError, "whole numbers up to 2\\^24, which float32 holds; got 16777217"),
        (np.array([[1e300]]), ValueError, "numbers that float32 holds, up to 3.4e38 .*; got 1e\\+300"),
        (np.array([["a"]]), TypeError, "expected real numbers; got array of <U1"),
        (np.array([[1j]]), TypeError, "expected real numbers; got array of complex128"),
        (np.ma.masked_equal(np.array([["a", "b"]]), "a"), TypeError, "expected real numbers; got a masked array"),
        (torch.empty(2, 2, device="meta"), TypeError, "expected real numbers; got a tensor without values"),
        (3.0, TypeError, "expected a Dataset, a tensor, an array, a table or a set of torch; got float"),
    ],
)
def test_as_dataset_what_would_be_cut_is_refused(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.as_dataset(x)


def test_as_dataset_numbers_at_the_edge_of_float32_are_kept() -> None:
    assert values(np.array([[2**24, -(2**24)]])) == [[2**24, -(2**24)]]
    assert values(np.array([[3e38]])) == [[pytest.approx(3e38)]]
    assert values(np.array([[40000]], np.uint16)) == [[40000]]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, lambda y: pd.DataFrame(y), lambda y: y.tolist()])
def test_as_dataset_contexts_are_converted_as_data_are(make: Callable[[Any], Any]) -> None:
    dataset = data.as_dataset(torch.zeros(3, 2)).conditioned_on(make(np.eye(3)[[0, 2, 1]]))
    (context,) = dataset.context
    assert context.dtype == torch.float32
    assert context.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    (classes,) = data.as_dataset(torch.zeros(3, 2)).conditioned_on(np.array([0, 2, 1])).context
    assert classes.dtype == torch.int64


# Folders


def picture(path: Path, value: Any = 9, *, size: tuple[int, int] = (4, 4), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = value if isinstance(value, np.ndarray) else np.full(size, value, np.uint8)
    Image.fromarray(array).save(path, **options)


def test_load_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/0.png", ".ipynb_checkpoints/0.png", ".thumbnails/x.png", "a/.hidden.png"):
        picture(tmp_path / name)
    dataset = data.as_dataset(data.files.read(tmp_path))
    assert len(dataset) == 2
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1]


def test_load_other_suffixes_are_read_and_other_files_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.jfif", format="JPEG")
    picture(tmp_path / "c.tga")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "d.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    dataset = data.files.read(tmp_path)
    assert len(dataset) == 3
    assert dataset.note == "left out 2 other files: gone.png, notes.txt"
    assert dataset.note in repr(dataset)


def test_load_folder_that_is_split_keeps_its_parts(tmp_path: Path) -> None:
    for part, names in {"train": "aabb", "val": "b", "test": "bb"}.items():
        for i, name in enumerate(names):
            picture(tmp_path / part / name / f"{i}.png", i)
    train, validation, test = data.load(tmp_path)
    assert [len(part) for part in (train, validation, test)] == [4, 1, 2]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert validation.labels is not None
    assert validation.labels.tolist() == [1]  # the classes are those of all parts
    with pytest.raises(ValueError, match="expected no validation for a folder with a part of that name; got 1"):
        data.load(tmp_path, validation=1)


def test_load_pages_and_deep_colors_are_refused_by_name(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in range(3)]
    for name in ("pages.tif", "frames.gif"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match=rf"{name}: expected one image; got 3 pages or frames"):
            data.files.read(folder)
    deep = tmp_path / "deep"
    deep.mkdir()
    _write_png_of_16_bit_color(deep / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected 8 bits per channel; got 16 bits of color"):
        data.files.read(deep)


def _write_png_of_16_bit_color(path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + struct.pack(">6H", 1, 2, 3, 65535, 0, 256) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_load_deep_grays_keep_their_levels(tmp_path: Path) -> None:
    levels = np.array([[0, 1], [256, 65535]], np.uint16)
    picture(tmp_path / "a.png", levels)
    dataset = data.files.read(tmp_path)
    torch.testing.assert_close(dataset.tensor()[0, 0], torch.tensor(levels.astype(np.float32) / 65535))


def test_load_orientation_is_applied_and_transparency_named(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert data.files.read(tmp_path).event_shape == (1, 4, 2)
    seen_through = tmp_path / "alpha"
    picture(seen_through / "a.png", np.full((4, 4, 4), 100, np.uint8))
    assert data.files.read(seen_through).note == "transparency of 1 images is left out"
    opaque = np.full((4, 4, 4), 100, np.uint8)
    opaque[..., 3] = 255
    picture(tmp_path / "opaque" / "a.png", opaque)
    assert data.files.read(tmp_path / "opaque").note == ""


def test_load_gray_set_gets_the_channel_that_a_likelihood_of_images_asks_for() -> None:
    from pyro_vae import VAE, conditionals, fit, likelihoods, nets, priors

    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.ConvDecoder(2, (1, 8, 8), [4]), (1, 8, 8)),
        conditionals.DiagonalNormal(nets.ConvEncoder((1, 8, 8), [4]), 2),
    )
    x = (np.random.default_rng(0).random((6, 8, 8)) < 0.5).astype(np.float32)
    assert len(fit(vae, x, x, epochs=1, progress=False)) == 1


# What was dropped or rounded without a word


def test_as_dataset_masks_of_rows_and_of_items_are_kept() -> None:
    row = np.ma.masked_values(np.array([1.0, -999.0]), -999)

    class Items(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> Any:
            if i > 2:
                raise IndexError
            return row, np.int64(i)

    for source in ([row] * 3, Items()):
        images = data.as_dataset(source).images
        assert images[:, 0].tolist() == [1, 1, 1]
        assert bool(images[:, 1].isnan().all())
    labels = data.as_dataset(Items()).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]


BIG = {
    "frame": lambda: pd.DataFrame({"a": [16777217, 3]}),
    "nullable": lambda: pd.DataFrame({"a": pd.array([16777217, None], dtype="Int64")}),
    "masked": lambda: np.ma.masked_values(np.array([[16777217, 3], [-1, 2]]), -1),
    "the smallest": lambda: np.array([[-(2**63), 3], [1, 2]]),
    "tensor": lambda: torch.tensor([[2**63 - 1, 1]]),
    "uint64": lambda: torch.tensor([[2**63 + 5, 1]], dtype=torch.uint64),
}


@pytest.mark.parametrize("kind", BIG)
def test_as_dataset_whole_numbers_that_float32_would_round_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"expected whole numbers up to 2\^24, which float32 holds; got \d+"):
        data.as_dataset(BIG[kind]())


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.float8_e5m2, torch.bfloat16])
def test_as_dataset_every_real_dtype_of_torch_is_taken(dtype: torch.dtype) -> None:
    assert data.as_dataset(torch.tensor([[3.0, 1.0]]).to(dtype)).images.tolist() == [[3, 1]]


def test_as_dataset_special_tensors_are_taken_or_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked = torch.masked.masked_tensor(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]]))
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    images = data.as_dataset(masked).images
    assert images[0, 0] == 1
    assert images[0, 1].isnan()
    with pytest.raises(TypeError, match="expected real numbers; got a nested tensor"):
        data.as_dataset(nested)
    assert data.as_dataset([torch.ones(2, requires_grad=True)] * 3).images.shape == (3, 2)


def test_as_dataset_further_parts_of_items_are_noted_and_uneven_ones_refused() -> None:
    three = data.as_dataset(torch.utils.data.TensorDataset(torch.ones(4, 2), torch.arange(4), torch.eye(4)))
    assert "1 further parts of the data are left out" in repr(three)
    assert three.labels is not None
    uneven: Any = [(np.ones(2), 1), (np.ones(2),)]
    with pytest.raises(ValueError, match=r"expected items of as many parts each; got \[1, 2\]"):
        data.as_dataset(torch.utils.data.Subset(uneven, [0, 1]))


def test_as_dataset_refuses_loaders_that_select_and_items_that_fail() -> None:
    whole = torch.utils.data.TensorDataset(torch.arange(8.0).reshape(4, 2))
    sampler = torch.utils.data.SubsetRandomSampler([0, 1])
    with pytest.raises(ValueError, match="expected a DataLoader of a whole set; got one with SubsetRandomSampler"):
        data.as_dataset(torch.utils.data.DataLoader(whole, sampler=sampler))
    assert len(data.as_dataset(torch.utils.data.DataLoader(whole, shuffle=True))) == 4
    with pytest.raises(ValueError, match=r"expected a set of 2 readable data; got IndexError .* at 1"):
        data.as_dataset(torch.utils.data.Subset(whole, [0, 9]))


def test_Dataset_subset_by_index_and_by_mask() -> None:
    dataset = data.as_dataset(torch.arange(8.0).reshape(4, 2))
    assert dataset.subset(torch.tensor([2, 0])).images[:, 0].tolist() == [4, 0]
    assert dataset.subset([2, 0]).images[:, 0].tolist() == [4, 0]  # type: ignore[arg-type]
    assert dataset.subset(torch.tensor([False, True, False, False])).images[:, 0].tolist() == [2]
    with pytest.raises(TypeError, match=r"Dataset.subset: expected index int64 \(M,\) or bool \(4,\); got"):
        dataset.subset(torch.tensor([0.5]))
    with pytest.raises(IndexError, match=r"expected indices from 0 to 3; got -1 to 4"):
        dataset.subset(torch.tensor([-1, 4]))


def test_load_takes_seeds_of_numpy_and_refuses_too_large_ones() -> None:
    x = torch.arange(40.0).reshape(20, 2)
    first, second = (data.load(x, seed=seed).train.images for seed in (5, np.int64(5)))  # type: ignore[arg-type]
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match=r"data.load: expected seed below 2\^63; got"):
        data.load(x, seed=2**70)


def _images(folder: Path, *names: str, size: int = 4, mode: str = "L") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (size, size)).save(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train/a/1.png", "val/a/1.png", "validation/a/1.png"),
            "expected one folder for validation; got val and validation",
        ),
        (("test/a/1.png", "valid/a/1.png"), "expected a part train; got test, validation alone"),
    ],
)
def test_load_parts_that_are_not_clear_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    _images(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path)


def test_load_parts_are_found_whatever_their_case_and_what_is_beside_them_is_noted(tmp_path: Path) -> None:
    _images(tmp_path, *(f"Training/{i}.png" for i in range(5)), "TEST/1.png", "extra/1.png", "loose.png")
    train, _, test = data.load(tmp_path)
    assert len(train) + 1 == 5
    assert len(test) == 1
    assert "left out beside the parts: extra, loose.png" in repr(train)


def test_load_class_may_be_called_train(tmp_path: Path) -> None:
    _images(tmp_path, *(f"{kind}/{i}.png" for kind in ("train", "car") for i in range(5)))
    train = data.load(tmp_path).train
    assert "labels of 2 classes" in repr(train)


def test_load_links_to_folders_and_parts_of_other_depths_are_refused(tmp_path: Path) -> None:
    _images(tmp_path / "q", "b/1.png")
    _images(tmp_path / "p", "1.png")
    (tmp_path / "q" / "a").symlink_to(tmp_path / "p", target_is_directory=True)
    with pytest.raises(ValueError, match="expected folders; got links to some, a"):
        data.load(tmp_path / "q")
    _images(tmp_path / "d", "train/1.png", "train/2.png")
    _images(tmp_path / "d", "test/1.png", mode="I;16")
    with pytest.raises(ValueError, match="expected images of one depth in all parts; got levels"):
        data.load(tmp_path / "d")


def test_load_sixteen_bits_of_color_are_refused_in_every_format(tmp_path: Path) -> None:
    ppm = tmp_path / "ppm" / "1.ppm"
    ppm.parent.mkdir()
    ppm.write_bytes(b"P6\n# a comment\n2 2\n65535\n" + bytes(24))
    with pytest.raises(ValueError, match="expected 8 bits per channel; got 16 bits of color"):
        data.load(ppm.parent)
    tiff = tmp_path / "tiff" / "1.tiff"
    tiff.parent.mkdir()
    tags = [(256, 4, 1, 2), (257, 4, 1, 2), (258, 3, 3, 146), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 152)]
    tags += [(277, 3, 1, 3), (278, 4, 1, 2), (279, 4, 1, 24), (284, 3, 1, 1), (339, 3, 1, 1)]
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    assert len(head + entries) == 146
    tiff.write_bytes(head + entries + struct.pack("<HHH", 16, 16, 16) + bytes(24))
    with pytest.raises(ValueError, match="expected 8 bits per channel; got 16 bits of color"):
        data.load(tiff.parent)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": np.ones((3, 2)), "x": np.ones((3, 2))},
            r"one array of images, x, data; got \['images', 'x'\]",
        ),
        ({"x": np.ones((3, 2)), "labels": np.arange(3), "y": np.arange(3)}, r"expected one array of labels, y; got"),
        ({"x": np.ones((3, 2)), "y": np.array([1, 2, 2**63 + 5], dtype=np.uint64)}, "expected labels that int64 holds"),
    ],
)
def test_load_archives_that_are_not_clear_are_refused(tmp_path: Path, arrays: Any, message: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "set.npz")


class Items(torch.utils.data.Dataset[Any]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def test_as_dataset_masks_and_gradients_of_nested_rows_are_minded() -> None:
    row = np.ma.masked_values(np.array([1.0, -999.0]), -999)
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    for source in ([[row, row]] * 3, Items(*[([row, row], 0)] * 3)):
        assert data.as_dataset(source).images.isnan().tolist() == [[[False, True]] * 2] * 3
    for rows in ([tensor, [1.0, 2.0]], [[tensor, tensor]] * 2, [list(tensor)] * 2, Items([tensor, tensor])):
        assert set(data.as_dataset(rows).images.flatten().tolist()) == {1.0, 2.0}


def test_as_dataset_whole_numbers_within_other_kinds_are_not_rounded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked = torch.masked.masked_tensor(torch.tensor([[2**24 + 1, 2]]), torch.tensor([[True, False]]))
        hidden = torch.masked.masked_tensor(torch.tensor([[2**24 + 1, 2]]), torch.tensor([[False, True]]))
        assert values(hidden) == [[-1, 2]]
        sparse = pd.DataFrame({"a": pd.arrays.SparseArray([2**24 + 1, 0])})
        for source in (masked, sparse, [torch.tensor([2**24 + 1]), torch.tensor([0.5])]):
            with pytest.raises(
                ValueError, match=r"expected whole numbers up to 2\^24, which float32 holds; got 16777217"
            ):
                data.as_dataset(source)
    assert values(sparse - 1) == [[2**24], [-1]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, None], "expected a class for every datum; got NoneType at 1. Give all of them a label, or none"),
        ([1, 0.5], "expected a class for every datum; got float at 1"),
        ([1, np.uint64(2**63)], "expected labels that int64 holds; got 9223372036854775808. Number the classes"),
        ([1, -1], "expected labels from 0; got -1. Number the classes from 0"),
    ],
)
def test_Dataset_refuses_labels_that_are_no_classes(labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.as_dataset(Items(*((np.ones(2), label) for label in labels)))


@pytest.mark.filterwarnings("ignore:Dataset .array.")
def test_as_dataset_refuses_loaders_that_select_beneath_their_batches() -> None:
    whole = TensorDataset(torch.arange(8.0).reshape(4, 2))
    some = torch.utils.data.BatchSampler(torch.utils.data.SubsetRandomSampler([0, 1]), 2, False)
    few: Any = torch.utils.data.SequentialSampler([0, 1])
    for loader in (DataLoader(whole, batch_sampler=some), DataLoader(whole, sampler=few)):
        with pytest.raises(ValueError, match=r"expected a DataLoader of a whole set.*torch.utils.data.Subset"):
            data.as_dataset(loader)
    assert "collate_fn is not applied" in repr(data.as_dataset(DataLoader(whole, collate_fn=list)))


MASKED = np.ma.array([1, 2], mask=[False, True])


@pytest.mark.parametrize("index", ["a", None, slice(0, 2), [[1], [1, 2]], [2**70], [True, False], [0.5], MASKED])
def test_Dataset_subset_refuses_what_is_no_index(index: Any) -> None:
    with pytest.raises(TypeError, match=r"Dataset.subset: expected index int64 \(M,\) or bool \(4,\); got"):
        data.as_dataset(torch.arange(8.0).reshape(4, 2)).subset(index)


@pytest.mark.parametrize("index", [np.arange(3)[::-1], torch.tensor([2, 1, 0], dtype=torch.uint8), range(2, -1, -1)])
def test_Dataset_subset_takes_any_whole_numbers(index: Any) -> None:
    assert data.as_dataset(torch.arange(8.0).reshape(4, 2)).subset(index).images[:, 0].tolist() == [4, 2, 0]


def test_Dataset_labels_are_classes_from_0() -> None:
    with pytest.raises(ValueError, match=r"expected labels from 0; got -1. Number the classes from 0"):
        data.Dataset("a", torch.ones(3, 2), labels=torch.tensor([-1, 0, 1]))
    with pytest.raises(ValueError, match=r"expected labels of shape \(N,\); got \(3, 2\). Use labels.argmax"):
        data.Dataset("a", torch.ones(3, 2), labels=torch.zeros(3, 2, dtype=torch.int64))


@pytest.mark.parametrize("beside", ["README.txt", "extra/1.png"])
def test_load_parts_without_train_are_refused_whatever_is_beside_them(tmp_path: Path, beside: str) -> None:
    _images(tmp_path, "test/a/1.png", "valid/a/1.png")
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).touch()
    with pytest.raises(ValueError, match=r"expected a part train; got test, validation alone\. Add train"):
        data.load(tmp_path)


def test_load_train_alone_is_the_training_data_and_among_classes_a_class_with_a_note(tmp_path: Path) -> None:
    _images(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(3)))
    (tmp_path / "README.txt").touch()
    assert "left out beside the parts: README.txt" in repr(data.load(tmp_path).train)
    dataset = data.files.read_splits(tmp_path)[0]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    _images(tmp_path, "extra/1.png")
    assert "a class, not a part: train" in repr(data.load(tmp_path).train)


def test_load_folders_without_images_are_named_and_hidden_links_passed_over(tmp_path: Path) -> None:
    _images(tmp_path, *(f"b/{i}.png" for i in range(3)))
    (tmp_path / "a").mkdir()
    (tmp_path / ".cache").symlink_to(tmp_path / "b", target_is_directory=True)
    assert data.files.read(tmp_path).note == "no class, for want of images: a"


def test_load_arrays_that_are_not_used_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.ones((3, 2)), y=np.arange(3), weights=np.ones(3))
    assert "left out arrays: weights" in repr(data.load(tmp_path / "set.npz").train)


def _saved(kind: str, *changes: tuple[bytes, range, int]) -> bytes:
    """An image of a kind, whose header is made to say another depth."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    content = bytearray(file.getvalue())
    for mark, offsets, value in changes:
        for offset in offsets:
            content[content.index(mark) + offset] = value
    return bytes(content)


SGI = struct.pack(">HBBHHHH", 474, 0, 2, 3, 1, 1, 3).ljust(512, b"\0") + bytes(6)
DEEP: dict[str, Callable[[], bytes]] = {
    "plain.ppm": lambda: b"P3\n1 1\n65535\n300 300 300\n",
    "comment.ppm": lambda: b"P6\n#" + b"x" * 2000 + b"\n1 1\n65535\n" + bytes(6),
    "a.rgb": lambda: SGI,
    "a.jp2": lambda: _saved("JPEG2000", (b"\xff\x4f\xff\x51", range(42, 51, 3), 15)),
    "a.avif": lambda: _saved("AVIF", (b"av1C", range(6, 7), 0x4C), (b"pixi", range(9, 12), 10)),
}


@pytest.mark.parametrize("name", DEEP)
def test_load_deep_colors_of_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    codec = {"a.jp2": "jpg_2000", "a.avif": "avif"}.get(name)
    if codec and not features.check(codec):
        pytest.skip(f"PIL without {codec}")
    (tmp_path / name).write_bytes(DEEP[name]())
    with pytest.raises(ValueError, match=r"expected 8 bits per channel; got 1[06] bits of color. Convert it"):
        data.files.read(tmp_path)


@pytest.mark.parametrize("suffix", ["ppm", "rgb", "jp2", "avif", "tiff", "png", "bmp", "webp"])
def test_load_colors_of_eight_bits_are_read(tmp_path: Path, suffix: str) -> None:
    try:
        Image.new("RGB", (4, 4), (255, 255, 255)).save(tmp_path / f"a.{suffix}")
    except (OSError, KeyError, ValueError):
        pytest.skip(f"PIL cannot write {suffix}")
    assert data.files.read(tmp_path).images.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("content", [b"P1\n1 1\n1\n", b"P4\n1 1\n\x80", b"P2\n1 1\n15\n7\n", b"P5\n1 1\n15\n\x07"])
def test_load_bitmaps_and_grays_of_netpbm_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pnm").write_bytes(content)
    assert data.files.read(tmp_path).images.shape == (1, 1, 1, 1)


def test_as_dataset_keeps_the_scale_of_pixels_under_a_mask() -> None:
    pixels = np.ma.masked_equal(np.array([[255, 7], [128, 4]], dtype=np.uint8), 7)
    message = r"expected missing values among floats; got a mask over uint8.*Give x / 255 for pixels"
    for x in (pixels, list(pixels)):
        with pytest.raises(TypeError, match=message):
            data.as_dataset(x)
    assert values(pixels / 255)[0] == [1, -1]
    assert values(np.ma.array(np.array([[255, 0]], dtype=np.uint8))) == [[1, 0]]


# What a review found: silent faults first


@pytest.mark.parametrize("buffer", [torch.zeros(2), np.zeros(2, np.float32)])
@pytest.mark.parametrize("labeled", [False, True])
def test_a_set_that_hands_out_one_buffer_gives_every_datum(buffer: Any, labeled: bool) -> None:
    label = torch.tensor(0)

    class Reusing(Items):
        def __getitem__(self, i: int) -> Any:
            buffer[:] = i
            label.fill_(i)
            return (buffer, label) if labeled else buffer

    dataset = data.as_dataset(Reusing(0, 1, 2))
    assert dataset.images.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert dataset.labels is None or dataset.labels.tolist() == [0, 1, 2]


PIXELS = np.array([255, 0], np.uint8)


@pytest.mark.parametrize("other", [np.array([True, False]), np.array([0.5, 1.0]), np.array([3, 4])])
@pytest.mark.parametrize("make", [lambda *x: [*x], lambda *x: [*map(torch.from_numpy, x)], lambda *x: Items(*x)])
def test_pixels_beside_numbers_on_another_scale_are_refused(other: Any, make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"expected rows on one scale; got uint8.* and torch\.\w+. Convert them to one"):
        data.as_dataset(make(PIXELS, other))
    assert data.as_dataset(make(PIXELS, PIXELS)).levels == 255


class Augmented(Items):
    def __getitem__(self, i: int) -> Any:
        return torch.rand(2) + np.nan if self.items[i] else torch.rand(2)


class Doubled(DataLoader[Any]):
    def __iter__(self) -> Any:
        return (2 * x for (x,) in super().__iter__())


@pytest.mark.parametrize(
    ("x", "note"),
    [
        (Augmented(0, 0), "its data differ from one reading to the next, and are those of the first"),
        (Augmented(1, 1), ""),  # NaN at every reading
        (Doubled(TensorDataset(torch.eye(2))), "what Doubled does to batches is not applied"),
        (pd.DataFrame({"a": pd.Categorical([30, 10]), "b": [1.0, 2.0]}), "codes in place of categories: a"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}).set_index("a"), "the index is left out: a"),
    ],
)
@pytest.mark.filterwarnings("ignore:Dataset 'array'")  # of the first and the third, see test_data_sets.py
def test_what_was_changed_on_the_way_is_noted(x: Any, note: str) -> None:
    assert data.as_dataset(x).note.endswith(note)
    assert bool(note) == bool(data.as_dataset(x).note)


DAYS = np.array([[2459000.5], [2459000.6]])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (DAYS, r"whose differences float32 holds; got such as 2459000.5 to 2459000.6.*Subtract an offset first"),
        (pd.DataFrame({"a": [0.5, 1.5], "t": [1.7e9, 1.7e9 + 60]}), r"got such as 1700000000.0 to 1700000060.0"),
        (np.array([[1e-60, 2e-60]]), r"that float32 holds, up to 3.4e38 and down to 1.4e-45; got 2e-60"),
        (-DAYS, "whose differences float32 holds; got such as -2459000.6"),
        (np.vstack([DAYS, [[np.nan]]]), "whose differences float32 holds; got such as 2459000.5"),
        (TensorDataset(torch.from_numpy(DAYS)), "whose differences float32 holds; got such as 2459000.5"),
        ([*DAYS], "whose differences float32 holds; got such as 2459000.5"),
        ([*torch.from_numpy(DAYS)], "whose differences float32 holds; got such as 2459000.5"),
    ],
)
def test_numbers_that_float32_cannot_tell_apart_are_refused(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.as_dataset(x)


@pytest.mark.parametrize(
    "x",
    [
        DAYS - 2459000.0,
        np.array([[2459000.5], [2459000.5]]),  # constant
        np.array([[1e6 / 3], [1e6 / 3 * (1 + 1e-15)]]),  # constant but for rounding
        np.array([[1.0, 0.0], [1 - 1e-8, 1e-60]]),  # the ground of a drawn image
        np.array([[1e5, np.nan], [3e7, np.nan]]),
    ],
)
def test_numbers_that_lose_nothing_to_speak_of_are_taken(x: Any) -> None:
    torch.testing.assert_close(data.as_dataset(x).images, torch.from_numpy(x).float(), equal_nan=True)


def _annotated(x: Any, **parts: Any) -> Any:
    return type("AnnData", (SimpleNamespace,), {"__module__": "anndata._core"})(X=x, var_names=["g", "h"], **parts)


COUNTS = np.array([[0, 3], [255, 1]], np.uint8)
TWICE = (np.array([200, 100], np.uint8), ([0, 0], [1, 1]))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (pd.DataFrame(COUNTS), COUNTS),
        (scipy.sparse.csr_matrix(COUNTS), COUNTS),
        (_annotated(COUNTS), COUNTS),
        (scipy.sparse.coo_matrix(TWICE, shape=(1, 2)), [[0, 300]]),
        (type("Mine", (pd.DataFrame,), {"__module__": "mine"})(COUNTS), COUNTS),
        (type("View", (np.ndarray,), {"__module__": "anndata._core"})((2, 2), np.int16, COUNTS.astype("i2")), COUNTS),
        (type("View", (scipy.sparse.csr_matrix,), {"__module__": "anndata._core"})(COUNTS), COUNTS),
    ],
)
def test_tables_and_matrices_hold_numbers_and_not_pixels(x: Any, expected: Any) -> None:
    assert values(x) == np.asarray(expected).tolist()


def test_what_annotated_data_hold_besides_is_noted() -> None:
    x = _annotated(np.eye(2), layers={"counts": 0}, obs=pd.DataFrame({"batch": [0]}), obsm={})
    note = "X of AnnData; its layers are left out: counts; its obs are left out: batch"
    assert data.as_dataset(x).note == note


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (np.array([0, 2, 1], np.uint8), [0, 2, 1]),
        (pd.Series([0, 2, 1]), [0, 2, 1]),
        (pd.Series(pd.Categorical(["a", "c", "b"])), [0, 2, 1]),
        (pd.MultiIndex.from_tuples([(0, 1), (2, 3), (4, 5)]), [[0, 1], [2, 3], [4, 5]]),
        (pd.Series([0.0, 2.0, 1.0]), [0.0, 2.0, 1.0]),
        (pd.Series([True, False, True]), [1.0, 0.0, 1.0]),
    ],
)
def test_whole_numbers_beside_the_data_stay_whole(context: Any, expected: list[Any]) -> None:
    (found,) = data.as_dataset(torch.zeros(3, 2)).conditioned_on(context).context
    assert found.tolist() == expected
    assert found.dtype == (torch.float32 if isinstance(expected[0], float) else torch.int64)


def test_what_was_changed_of_a_context_is_noted() -> None:
    dataset = data.as_dataset(torch.zeros(2, 2)).conditioned_on(pd.Series(pd.Categorical(["b", "a"]), name="kind"))
    assert dataset.note == "context: codes in place of categories: kind"


def test_colored_images_of_a_set_have_their_channels_first() -> None:
    image = Image.new("RGB", (5, 4), (255, 0, 51))
    for source in ([image, image], Items((image, 0), (image, 1))):
        dataset = data.as_dataset(source)
        assert dataset.event_shape == (3, 4, 5)
        assert dataset.images[0, :, 0, 0].tolist() == [255, 0, 51]


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (TensorDataset(torch.zeros(3, 2), torch.arange(3)), ValueError, "expected one array; got a TensorDataset of"),
        (data.as_dataset(torch.zeros(3, 2)), TypeError, r"expected context tensors.*; got a Dataset. Pass its tensor"),
    ],
)
def test_a_context_that_is_more_than_one_is_refused(context: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.as_dataset(torch.zeros(3, 2)).conditioned_on(context)


def test_classes_of_tensors_are_left_behind() -> None:
    class Mine(torch.Tensor): ...

    assert type(data.as_dataset(torch.ones(2, 2).as_subclass(Mine)).images) is torch.Tensor


class Unsized(Items):
    def __len__(self) -> int:
        raise TypeError("no length")


FIELDS = [("a", int), ("b", float)]
SMALL: torch.dtype = getattr(torch, "uint4")  # noqa: B009 (unknown to mypy)
CUT = io.BytesIO()
Image.effect_noise((64, 64), 9).save(CUT, "PNG")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: np.ma.array([(1, 2.0)], dtype=FIELDS, mask=True),
            TypeError,
            "real numbers; got a masked array of",
        ),
        (lambda: pd.array([1, None], dtype="Int64"), TypeError, "a table or a set of torch; got IntegerArray"),
        (lambda: pd.DataFrame({"a": [1]}).groupby("a"), TypeError, "a set of torch; got DataFrameGroupBy"),
        (lambda: pd.DataFrame({"a": ["10", "9"]}), TypeError, r"pandas.to_numeric does, or of words .*astype"),
        (lambda: torch.ones(2, 2, dtype=torch.uint8).view(SMALL), TypeError, r"of torch.uint4. Unpack it"),
        (lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.quint8), TypeError, r"Give x.dequantize"),
        (lambda: [Image.new("P", (4, 4))] * 2, TypeError, r"got one of mode 'P'. Give image.convert\('RGB'\)"),
        (lambda: Items(*[Image.new("CMYK", (4, 4))] * 2), TypeError, r"got one of mode 'CMYK'"),
        (lambda: Items((Image.new("P", (4, 4)), 0)), TypeError, r"of mode 'P'.*It was the datum 0, a tuple"),
        (lambda: Items(Image.open(io.BytesIO(CUT.getvalue()[:900]))), ValueError, "got OSError .* at 0. Mend its"),
        (lambda: Items(()), TypeError, "with a label at most; got an empty tuple at 0. Give the values first"),
        (lambda: Items(np.ones(2), np.ones(3)), TypeError, r"rows of one shape; got \(2,\) and \(3,\)"),
        (lambda: Unsized(1), TypeError, "expected a set with a length; got the stream Unsized"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_is_no_data_is_refused_in_our_words(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.as_dataset(make())


def _tiff(bits: tuple[int, ...], body: bytes, *tags: tuple[int, int, int, int], photometric: int = 1) -> bytes:
    """A TIFF of one row of two grays, or of one pixel of several channels, as no writer at hand makes it."""
    samples = len(bits)
    own = [(256, 4, 1, 3 - min(samples, 2)), (257, 4, 1, 1), (259, 3, 1, 1), (262, 3, 1, photometric)]
    own += [(277, 3, 1, samples), (278, 4, 1, 1), (279, 4, 1, len(body)), (284, 3, 1, 1), *tags]
    start = 8 + 2 + 12 * (len(own) + 2) + 4
    own += [(258, 3, samples, bits[0] if samples == 1 else start)]
    depths = struct.pack(f"<{samples}H", *bits) if samples > 1 else b""
    own += [(273, 4, 1, start + len(depths))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(own))
    return struct.pack("<2sHIH", b"II", 42, 8, len(own)) + entries + bytes(4) + depths + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_tiff((12,), b"\xff\xf0\x00"), "expected grays of 16 bits with black as 0; got 12 bits. Convert it"),
        (_tiff((16,), bytes(4), photometric=0), "expected grays of 16 bits with black as 0; got white as 0"),
        (_tiff((8,), bytes(2), (339, 3, 1, 2)), "expected grays from 0; got signed ones"),
        (_tiff((8,) * 4, bytes(4), (338, 3, 1, 0), photometric=2), "expected 3 channels of RGB; got 4. Pass an array"),
        (_tiff((8,) * 5, bytes(5), (338, 3, 2, 0), photometric=2), "expected 3 channels of RGB; got 5"),
    ],
)
def test_what_would_be_cut_or_misread_of_a_tiff_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.files.read(tmp_path)


@pytest.mark.parametrize("photometric", [0, 1])
def test_grays_of_eight_bits_are_read_whichever_end_is_black(tmp_path: Path, photometric: int) -> None:
    (tmp_path / "a.tif").write_bytes(_tiff((8,), b"\x00\xff", photometric=photometric))
    assert data.files.read(tmp_path).tensor().flatten().tolist() == [1 - photometric, photometric]


TURNS: list[Image.Transpose | None] = [
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
def test_every_orientation_is_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = Image.fromarray(np.arange(15, dtype=np.uint8).reshape(3, 5) * 17)
    exif = image.getexif()
    exif[0x0112] = orientation
    turned: dict[str, Any] = {"tiffinfo": exif} if suffix == "tif" else {"exif": exif, "lossless": True}
    try:
        image.save(tmp_path / f"a.{suffix}", **turned)
    except (OSError, KeyError):
        pytest.skip(f"PIL cannot write {suffix}")
    turn = TURNS[orientation - 1]
    upright = np.asarray(image if turn is None else image.transpose(turn))
    assert data.files.read(tmp_path).images[0, 0].tolist() == upright.tolist()


@pytest.mark.parametrize(
    ("head", "grays"),
    [(b"P5\n2 1\n65535\n", [256, 65535]), (b"P5\n2 1\n1000\n", [1000, 1]), (b"P5\n2 1\n300\n", [0, 300])],
)
def test_deep_grays_of_netpbm_are_read_at_their_scale(tmp_path: Path, head: bytes, grays: list[int]) -> None:
    (tmp_path / "a.pgm").write_bytes(head + struct.pack(">2H", *grays))
    expected = torch.tensor(grays) / int(head.split()[-1])
    torch.testing.assert_close(data.files.read(tmp_path).tensor().flatten(), expected, rtol=0, atol=1e-5)


def test_transparency_of_deep_grays_is_noted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", np.array([[1, 65535]], np.uint16), transparency=1)
    picture(tmp_path / "b.png", np.array([[2, 65535]], np.uint16), transparency=1)
    assert data.files.read(tmp_path).note == "transparency of 1 images is left out"


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / "whole" / str(i) / "a.png", i)
        picture(tmp_path / "split" / "train" / str(i) / "a.png", i)
    picture(tmp_path / "split" / "test" / "11" / "a.png", 11)
    for part in (data.files.read(tmp_path / "whole"), *data.files.read_splits(tmp_path / "split")):
        if part is not None:
            assert part.labels is not None
            assert part.labels.tolist() == part.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    "names", [("set/train/a/1.png", "set/test/a/1.png"), ("a/train/1.png", "b/train/1.png", "a/val/1.png")]
)
def test_parts_that_are_not_at_the_top_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    _images(tmp_path, *names)
    with pytest.raises(ValueError, match=r"expected the parts of a set at its top; got .* and .*, which would be one"):
        data.load(tmp_path)


def test_folders_within_classes_and_files_that_pil_only_names_are_noted(tmp_path: Path) -> None:
    _images(tmp_path, "a/x/1.png", "a/train/1.png", "b/1.png")
    (tmp_path / "a" / "table.h5").touch()
    assert data.files.read(tmp_path).note == "left out 1 other files: table.h5; no classes of their own: a/train, a/x"


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _images(tmp_path, "a/1.png", "b/1.png")
    scan = os.scandir

    def forbid(path: Any) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(PermissionError, match="Permission denied"):
        data.files.read(tmp_path)


def _write_two(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones((3, 2)))
        np.save(file, np.zeros((3, 2)))


def _write_sparse(path: Path, kind: str) -> None:
    scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(np.eye(4)).asformat(kind))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npy", _write_two, "expected one array; got something after it. Save each array as a file"),
        ("a.npz", lambda path: _write_sparse(path, "bsr"), "got a sparse matrix of scipy. Pass scipy.sparse.load_npz"),
        ("a.npz", lambda path: _write_sparse(path, "dia"), "got a sparse matrix of scipy. Pass scipy.sparse.load_npz"),
    ],
)
def test_arrays_of_which_a_part_would_be_read_are_refused(
    tmp_path: Path, name: str, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        data.files.read(tmp_path / name)


def test_suffixes_of_arrays_may_be_in_capitals(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 2)))
    assert len(data.files.read((tmp_path / "a.npy").rename(tmp_path / "A.NPY"))) == 3
