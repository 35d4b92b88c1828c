"""What holds numbers, of whatever library, as a tensor: nothing is cut, rounded or dropped without a word."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)
from torch.utils.data import Dataset as TorchDataset

_NUMBERS = "biuf"  # of numpy's kinds
_READ_AGAIN = 8  # data of a set, to see whether it draws them: a flip at random escapes once in 256 times


@dataclass(frozen=True)
class Numbers:
    """A tensor, and what it came with.

    Attributes:
        values: bool, uint8, int64 or float32, (N, ...); NaN where a value is missing.
        labels: int64 (N,), of a set that has some.
        columns: names, of a table.
        categories: of each column those that its codes stand for, none of numbers; of a table that has some.
        note: what was done that the values do not show.
    """

    values: Tensor
    labels: Tensor | None = None
    columns: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    note: str = ""


def numbers(subject: str, x: Any) -> Numbers:
    """The numbers of a tensor, an array, nested lists, a pandas table, a scipy matrix, AnnData, or a set of torch.

    Masked and missing values become NaN, categories their codes.

    Raises:
        TypeError: something else, values that are not real numbers, or rows on several scales.
        ValueError: numbers that float32 cannot hold or cannot tell apart.
    """
    found = _found(subject, x)
    # Once for all the data: what float32 cannot tell apart is not seen in one datum by itself.
    return replace(found, values=_single(subject, found.values)) if found.values.dtype == torch.float64 else found


def _found(subject: str, x: Any) -> Numbers:
    """The numbers, of which float64 is yet to be made float32."""
    if isinstance(x, DataLoader | TorchDataset):
        return _of_torch_set(subject, x)
    if isinstance(x, tuple) and hasattr(x, "train"):
        raise TypeError(f"{subject}: expected one set; got the {type(x).__name__} of data.load. Pass its .train.")
    if isinstance(x, list | tuple | Tensor | np.ndarray):
        return Numbers(_of_part(subject, x))
    # Bases too, so that a table of a user's own class and a view that AnnData makes of a matrix are what they are.
    packages = {kind.__module__.split(".")[0] for kind in type(x).__mro__}
    if "scipy" in packages and hasattr(x, "toarray"):
        return _of_scipy(subject, x)
    if "pandas" in packages and (hasattr(x, "to_frame") or hasattr(x, "to_records")):
        return _of_pandas(subject, x)
    if "anndata" in packages and hasattr(x, "var_names"):
        return _of_anndata(subject, x)
    if isinstance(x, str):
        raise TypeError(f"{subject}: expected data; got the word {x!r}. Load a set with data.load({x!r}).train.")
    raise TypeError(
        f"{subject}: expected a Dataset, a tensor, an array, a table or a set of torch; got {type(x).__name__}. "
        "Convert it first, for instance with numpy.asarray(x, dtype=numpy.float32)."
    )


def beside(subject: str, x: Any) -> tuple[Tensor, str]:
    """A context and a note: whole numbers, such as classes, become int64; all others float32.

    Raises:
        TypeError, ValueError: as those of :func:`numbers`; a set with labels, which is two contexts.
    """
    found = numbers(subject, x)
    if found.labels is not None:
        raise ValueError(
            f"{subject}: expected one array; got a {type(x).__name__} of data with labels. Pass either by itself."
        )
    values = _no_pixels(found.values)
    return values if values.dtype == torch.int64 else values.to(torch.float32), found.note


def listed(what: str, names: Collection[str]) -> str:
    """A note of the first few names, or none of no names."""
    shown = ", ".join(list(names)[:5])
    return f"{what}: {shown}{', ...' if len(names) > 5 else ''}" if names else ""


def joined(*notes: str) -> str:
    """Notes as one."""
    return "; ".join(filter(None, notes))


def _of_array(subject: str, x: Any) -> Tensor:
    if x.dtype.kind not in _NUMBERS:
        kind = "a masked array" if isinstance(x, np.ma.MaskedArray) else "array"
        raise _no_numbers(subject, f"{kind} of {x.dtype}")
    if isinstance(x, np.ma.MaskedArray):
        if x.mask is not np.ma.nomask and bool(np.any(x.mask)):
            if x.dtype == np.uint8:  # NaN makes reals of pixels, which are not scaled as pixels are
                raise TypeError(
                    f"{subject}: expected missing values among floats; got a mask over uint8, whose scale of 0 to 255 "
                    "would be lost. Give x / 255 for pixels, x.astype('float32') for numbers."
                )
            _check_whole(subject, x.compressed())
            x = np.ma.filled(x.astype(np.float64), np.nan)
        else:
            x = x.data
    _check_whole(subject, x)
    if x.dtype.kind == "u" and x.dtype.itemsize > 1:
        x = x.astype(np.int64)
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        x = x.astype(np.float64)
    return _of_tensor(subject, torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"])))


def _check_whole(subject: str, x: Any) -> None:
    """Raises for whole numbers, of an array, that float32 would round."""
    if x.dtype.kind in "iu" and x.size and (largest := max(int(x.max()), -int(x.min()))) > 2**24:
        raise ValueError(
            f"{subject}: expected whole numbers up to 2^24, which float32 holds; got {largest}, which it would round. "
            "Subtract an offset, or scale them."
        )


def _of_tensor(subject: str, x: Tensor) -> Tensor:
    if type(x).__name__ == "MaskedTensor":
        mask, kept = x.get_mask().to_dense(), x.get_data().to_dense()  # type: ignore[attr-defined]
        return torch.where(mask, _of_tensor(subject, kept.masked_fill(~mask, 0)).double(), torch.nan)
    if x.is_nested:
        raise _no_numbers(subject, "a nested tensor", "Pad it with torch.nested.to_padded_tensor(x, float('nan')).")
    if x.is_quantized:
        raise _no_numbers(subject, f"a tensor of {x.dtype}", "Give x.dequantize().")
    if x.is_complex():
        raise _no_numbers(subject, f"a tensor of {x.dtype}", "Give torch.view_as_real(x), x.abs() or the like.")
    if x.device.type == "meta":
        raise _no_numbers(subject, "a tensor without values", "Give one on a device that stores them.")
    if x.layout != torch.strided:
        x = x.to_dense()
    x = x.as_subclass(Tensor)  # of a class with operations of its own, such as images of torchvision, the values
    if x.dtype in (torch.bool, torch.uint8, torch.float32, torch.float64):
        return x
    try:
        if not x.is_floating_point():
            _check_whole(subject, x.cpu().numpy())
            return x.to(torch.int64)
        return x.to(torch.float32)
    except (NotImplementedError, TypeError) as error:  # packed numbers of less than a byte
        raise _no_numbers(subject, f"a tensor of {x.dtype}", "Unpack it to float32.") from error


def _single(subject: str, x: Tensor) -> Tensor:
    """Numbers, float64 (N, ...), as float32, unless that does not hold their size or their differences."""
    single = x.to(torch.float32)
    if bool((single.isinf() & ~x.isinf()).any()) or (bool((single == 0).all()) and bool((x != 0).any())):
        raise ValueError(
            f"{subject}: expected numbers that float32 holds, up to 3.4e38 and down to 1.4e-45; got "
            f"{float(x.nan_to_num(0).abs().max()):.4g}. Scale them, or take their logarithm."
        )
    # Seconds since 1970 would be rounded to two minutes, Julian days to six hours. Only where numbers are large: what
    # is constant but for a trace, like the white ground of drawn images, may well be rounded to its constant.
    if x.ndim == 0 or not bool((x.abs() > 1e4).any()):
        return single
    lowest = x.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(0)
    highest = x.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(0)
    largest, spread = torch.maximum(-lowest, highest), highest - lowest
    lost = (x - single).nan_to_num(0).abs().amax(0) > 0.01 * spread
    lost &= (spread > 1e-10 * largest) & (largest > 1e4) & spread.isfinite()
    if bool(lost.any()):
        raise ValueError(
            f"{subject}: expected numbers whose differences float32 holds; got such as {float(lowest[lost][0])!r} to "
            f"{float(highest[lost][0])!r}, of which it would lose a hundredth or more. Subtract an offset first."
        )
    return single


def _no_pixels(x: Tensor) -> Tensor:
    """Of a table or a context, whose uint8 values are whole numbers and not pixels to be scaled."""
    return x.to(torch.int64) if x.dtype == torch.uint8 else x


def _of_scipy(subject: str, x: Any) -> Numbers:
    if x.dtype.kind in "iu":  # what is stored twice adds up, to more than a byte may hold
        x = x.astype(f"{x.dtype.kind}8")
    return Numbers(_of_array(subject, x.toarray()), note=f"made dense from {x.nnz} stored values")


def _of_anndata(subject: str, x: Any) -> Numbers:
    inner = numbers(f"{subject}, X of AnnData", x.X)
    parts = {part: list(getattr(x, part, None) or ()) for part in ("layers", "obsm")}
    parts["obs"] = list(getattr(getattr(x, "obs", None), "columns", ()))
    left = [listed(f"its {part} are left out", list(map(str, names))) for part, names in parts.items()]
    note = joined("X of AnnData", inner.note, *left)
    return Numbers(_no_pixels(inner.values), columns=tuple(map(str, x.var_names)), note=note)


def _of_pandas(subject: str, x: Any) -> Numbers:
    """A DataFrame, Series or Index: every column as numbers, those of categories as codes."""
    frame = x.to_frame() if hasattr(x, "to_frame") else x
    columns, categories, whole = [], [], True
    for name, column in frame.items():
        kind = getattr(column.dtype, "kind", "O")
        categories.append(tuple(map(str, getattr(column.dtype, "categories", ()))))
        if str(column.dtype) == "category":
            codes = column.cat.codes.to_numpy().astype(np.float64)
            columns.append(np.where(codes < 0, np.nan, codes))
        elif kind in _NUMBERS:
            if kind in "iu":
                dtype = getattr(column.dtype, "numpy_dtype", getattr(column.dtype, "subtype", column.dtype))
                _check_whole(f"{subject}, column {name!r}", column.dropna().to_numpy(dtype=dtype))
            columns.append(column.to_numpy(dtype=np.float64, na_value=np.nan))
            whole = whole and kind in "iu"
        else:
            raise TypeError(
                f"{subject}: expected columns of numbers or categories; got {name!r} of {column.dtype}. Drop it, or "
                f"make numbers of it, as pandas.to_numeric does, or of words frame[{name!r}].astype('category')."
            )
    array = np.stack(columns, -1) if columns else np.empty((len(frame), 0))
    if whole and not np.isnan(array).any():
        array = array.astype(np.int64)
    values = _of_array(subject, array[:, 0] if x.ndim == 1 and array.shape[1] == 1 else array)
    names = tuple(map(str, frame.columns))
    coded = [name for name, known in zip(names, categories, strict=True) if known]
    index = [str(name) for name in frame.index.names if name is not None]
    note = joined(listed("codes in place of categories", coded), listed("the index is left out", index))
    return Numbers(values, None, names, tuple(categories) if coded else (), note)


def _of_torch_set(subject: str, x: Any) -> Numbers:
    of = x.dataset if isinstance(x, DataLoader) else x
    notes = _loader_notes(subject, x) if isinstance(x, DataLoader) else []
    size = _size(subject, of)
    if not size:
        raise ValueError(f"{subject}: expected at least one datum; got none. Give data.")
    items = [_item(subject, of, i) for i in range(size)]
    widths = sorted({len(item) for item in items})
    if len(widths) > 1:
        raise ValueError(
            f"{subject}: expected items of as many parts each; got {widths}. Give all of them a label, or none."
        )
    again = [_item(subject, of, i)[0] for i in range(min(size, _READ_AGAIN))]
    if not all(_equal(item[0], other) for item, other in zip(items, again, strict=False)):
        notes.append("its data differ from one reading to the next, and are those of the first")
    values = _stacked(subject, [item[0] for item in items])
    labels = _labels(subject, [item[1] for item in items]) if widths[0] > 1 else None
    if widths[0] > 1 and labels is None:
        notes.append("second parts of the data, which are no classes, are left out")
    if widths[0] > 2:
        notes.append(f"{widths[0] - 2} further parts of the data are left out")
    return Numbers(values, labels, note=joined(*notes))


def _size(subject: str, x: Any) -> int:
    try:
        if not isinstance(x, IterableDataset):
            return len(x)
    except (TypeError, NotImplementedError):
        pass
    raise TypeError(
        f"{subject}: expected a set with a length; got the stream {type(x).__name__}. Read it into an array first."
    )


def _loader_notes(subject: str, loader: Any) -> list[str]:
    _size(subject, loader.dataset)
    _check_order(subject, loader)
    notes = ["of a DataLoader, whose batches and order are left out"]
    if loader.collate_fn not in (default_collate, default_convert):
        notes.append("its collate_fn is not applied")
    if type(loader).__iter__ is not DataLoader.__iter__:
        notes.append(f"what {type(loader).__name__} does to batches is not applied")
    return notes


def _check_order(subject: str, loader: Any) -> None:
    """Raises for a loader that selects or weighs data, which its set does not show."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)  # the loader's own is unused beside batches
    whole = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    whole = whole and type(loader.batch_sampler) in (BatchSampler, type(None))
    if not whole or len(sampler) != len(loader.dataset):
        raise ValueError(
            f"{subject}: expected a DataLoader of a whole set; got one with {type(sampler).__name__}, which may select "
            "or repeat. Pass the data themselves, torch.utils.data.Subset(set, indices) for a part."
        )


def _item(subject: str, x: Any, i: int) -> tuple[Any, ...]:
    """The values of a datum and its further parts, copied: a set may hand out one buffer for all its data."""
    try:
        item = x[i]
        parts = tuple(item) if isinstance(item, list | tuple) else (item,)
        if isinstance(parts[0] if parts else None, Image.Image):
            parts[0].load()
    except Exception as error:
        raise ValueError(
            f"{subject}: expected a set of {len(x)} readable data; got {type(error).__name__} ({error}) at {i}. Mend "
            "its __getitem__."
        ) from error
    if not parts:
        raise TypeError(
            f"{subject}: expected data, with a label at most; got an empty {type(item).__name__} at {i}. Give "
            "the values first."
        )
    try:
        values = _of_part(subject, parts[0]).clone()
    except TypeError as error:
        raise TypeError(f"{error} It was the datum {i}, a {type(item).__name__}.") from error
    return values, *(int(part) if _is_whole(part) else part for part in parts[1:])


def _of_part(subject: str, part: Any) -> Tensor:
    """A tensor, an array, an image of PIL, or nested rows of them."""
    if isinstance(part, list | tuple):
        part = _of_rows(subject, part)
    if isinstance(part, Image.Image):
        if part.mode == "RGB":
            return _of_array(subject, np.asarray(part).transpose(2, 0, 1))
        if len(part.getbands()) > 1 or part.mode == "P":  # a palette's numbers only point at colors
            raise TypeError(
                f"{subject}: expected images of grays or of red, green and blue; got one of mode {part.mode!r}. Give "
                "image.convert('RGB')."
            )
    return _of_tensor(subject, part.detach()) if isinstance(part, Tensor) else _of_array(subject, np.asanyarray(part))


def _of_rows(subject: str, x: Any) -> Any:
    """Nested rows as one tensor or array, with the masks of their parts."""
    if _with_parts(x):
        x = [_of_rows(subject, row) if isinstance(row, list | tuple) else row for row in x]
    arrays = {row.dtype for row in x if isinstance(row, np.ndarray)}
    if len(arrays) > 1 or any(isinstance(row, Tensor | np.ma.MaskedArray | Image.Image) for row in x):
        return _stacked(subject, [_of_part(subject, row) for row in x])
    try:
        return np.asarray(x)
    except ValueError as error:
        raise TypeError(f"{subject}: expected rows of one length; got ragged ones. Pad them.") from error


def _stacked(subject: str, rows: list[Tensor]) -> Tensor:
    dtypes = {row.dtype for row in rows}
    if torch.uint8 in dtypes and len(dtypes) > 1:
        others = ", ".join(sorted(str(dtype) for dtype in dtypes - {torch.uint8}))
        raise TypeError(
            f"{subject}: expected rows on one scale; got uint8, whose scale is 0 to 255, and {others}. Convert them to "
            "one dtype."
        )
    shapes = list(dict.fromkeys(tuple(row.shape) for row in rows))
    if len(shapes) > 1:
        raise TypeError(f"{subject}: expected rows of one shape; got {shapes[0]} and {shapes[1]}. Pad or resize them.")
    return torch.stack([row.to(rows[0].device) for row in rows])


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())


def _with_parts(x: Any) -> bool:
    """Whether there are tensors, arrays or images in nested rows, of which numpy by itself may lose something."""
    return any(
        isinstance(row, Tensor | np.ndarray | Image.Image) or (isinstance(row, list | tuple) and _with_parts(row))
        for row in x
    )


def _labels(subject: str, second: list[Any]) -> Tensor | None:
    """Classes, int64 (N,), or None where nothing is one."""
    others = [i for i, label in enumerate(second) if not _is_whole(label)]
    if len(others) == len(second):
        return None
    if others:
        raise ValueError(
            f"{subject}: expected a class for every datum; got {type(second[others[0]]).__name__} at {others[0]}. Give "
            "all of them a label, or none."
        )
    labels = [int(label) for label in second]
    if max(labels) >= 2**63:
        raise ValueError(f"{subject}: expected labels that int64 holds; got {max(labels)}. Number the classes from 0.")
    return torch.tensor(labels)


def _is_whole(label: Any) -> bool:
    if isinstance(label, Tensor):
        return label.ndim == 0 and not label.is_floating_point() and not label.is_complex()
    return isinstance(label, int) or (
        isinstance(label, np.generic | np.ndarray) and label.ndim == 0 and label.dtype.kind in "biu"
    )


def _no_numbers(
    subject: str, got: str, remedy: str = "Convert it first, for instance with numpy.asarray(x, dtype=numpy.float32)."
) -> TypeError:
    return TypeError(f"{subject}: expected real numbers; got {got}. {remedy}")
