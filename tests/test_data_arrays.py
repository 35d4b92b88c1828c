"""Data of other libraries: what comes in, and what is refused rather than cut."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_vae import data


def values(x: Any) -> list[Any]:
    return data.as_dataset(x).tensor().nan_to_num(-1.0).tolist()  # -1 in place of NaN, which equals nothing


# Arrays


def test_masked_values_are_missing() -> None:
    x = np.ma.masked_values([[1.0, -999.0], [3.0, 4.0]], -999)
    assert values(x) == [[1.0, -1.0], [3.0, 4.0]]
    assert values(np.ma.masked_equal(np.array([[1, 7], [3, 4]]), 7)) == [[1.0, -1.0], [3.0, 4.0]]
    assert values(np.ma.array([[1.0, 2.0]])) == [[1.0, 2.0]]
    assert data.as_dataset(np.ma.array(np.zeros((2, 2), np.uint8))).levels == 1
    assert "1 missing" in repr(data.as_dataset(x))


def test_nullable_types_categories_and_bools_of_pandas() -> None:
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


def test_sparse_matrices_are_made_dense_with_a_word() -> None:
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.coo_array):
        dataset = data.as_dataset(kind(np.array([[0.0, 2.0], [0.0, 0.0]])))
        assert dataset.tensor().tolist() == [[0, 2], [0, 0]]
        assert dataset.note == "made dense from 1 stored values"
    assert values(torch.eye(2).to_sparse()) == [[1, 0], [0, 1]]


def test_annotated_data_give_their_matrix_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    class AnnData(SimpleNamespace):
        __module__ = "anndata._core"

    monkeypatch.setitem(sys.modules, "anndata", ModuleType("anndata"))
    dataset = data.as_dataset(AnnData(X=scipy.sparse.csr_matrix(np.eye(2)), var_names=["g1", "g2"]))
    assert dataset.columns == ("g1", "g2")
    assert dataset.tensor().tolist() == [[1, 0], [0, 1]]


def test_sets_and_loaders_of_torch() -> None:
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
        (np.array([[1e300]]), ValueError, "numbers that float32 holds, up to 3.4e38; got 1e\\+300"),
        (np.array([["a"]]), TypeError, "expected real numbers; got array of <U1"),
        (np.array([[1j]]), TypeError, "expected real numbers; got array of complex128"),
        (np.ma.masked_equal(np.array([["a", "b"]]), "a"), TypeError, "expected real numbers; got a masked array"),
        (torch.empty(2, 2, device="meta"), TypeError, "expected real numbers; got a tensor without values"),
        (3.0, TypeError, "expected a Dataset, a tensor, an array, a table or a set of torch; got float"),
    ],
)
def test_what_would_be_cut_is_refused(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.as_dataset(x)


def test_numbers_at_the_edge_of_float32_are_kept() -> None:
    assert values(np.array([[2**24, -(2**24)]])) == [[2**24, -(2**24)]]
    assert values(np.array([[3e38]])) == [[pytest.approx(3e38)]]
    assert values(np.array([[40000]], np.uint16)) == [[40000]]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, lambda y: pd.DataFrame(y), lambda y: y.tolist()])
def test_contexts_are_converted_as_data_are(make: Callable[[Any], Any]) -> None:
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


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/0.png", ".ipynb_checkpoints/0.png", ".thumbnails/x.png", "a/.hidden.png"):
        picture(tmp_path / name)
    dataset = data.as_dataset(data.files.read(tmp_path))
    assert len(dataset) == 2
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1]


def test_other_suffixes_are_read_and_other_files_named(tmp_path: Path) -> None:
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


def test_a_folder_that_is_split_keeps_its_parts(tmp_path: Path) -> None:
    for part, names in {"train": "aabb", "val": "b", "test": "bb"}.items():
        for i, name in enumerate(names):
            picture(tmp_path / part / name / f"{i}.png", i)
    train, valid, test = data.load(tmp_path)
    assert [len(part) for part in (train, valid, test)] == [4, 1, 2]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert valid.labels is not None
    assert valid.labels.tolist() == [1]  # the classes are those of all parts
    with pytest.raises(ValueError, match="expected no validation for a folder with a part of that name; got 1"):
        data.load(tmp_path, validation=1)


def test_pages_and_deep_colors_are_refused_by_name(tmp_path: Path) -> None:
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


def test_deep_greys_keep_their_levels(tmp_path: Path) -> None:
    levels = np.array([[0, 1], [256, 65535]], np.uint16)
    picture(tmp_path / "a.png", levels)
    dataset = data.files.read(tmp_path)
    torch.testing.assert_close(dataset.tensor()[0, 0], torch.tensor(levels.astype(np.float32) / 65535))


def test_orientation_is_applied_and_transparency_named(tmp_path: Path) -> None:
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


def test_a_grey_set_gets_the_channel_that_a_likelihood_of_images_asks_for() -> None:
    from pyro_vae import VAE, conditionals, fit, likelihoods, nets, priors

    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.ConvDecoder(2, (1, 8, 8), [4]), (1, 8, 8)),
        conditionals.DiagonalNormal(nets.ConvEncoder((1, 8, 8), [4]), 2),
    )
    x = (np.random.default_rng(0).random((6, 8, 8)) < 0.5).astype(np.float32)
    assert len(fit(vae, x, x, epochs=1, progress=False)) == 1
