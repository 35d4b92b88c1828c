"""What holds numbers, of whatever library, as a tensor: nothing is cut, rounded or dropped without a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
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


@dataclass(frozen=True)
class Numbers:
    """A tensor, and what it came with.

    Attributes:
        values: bool, uint8, int64 or float32, (N, ...); NaN where a value is missing.
        labels: int64 (N,), of a set that has some.
        columns: names, of a table.
        note: what was done that the values do not show.
    """

    values: Tensor
    labels: Tensor | None = None
    columns: tuple[str, ...] = ()
    note: str = ""


def numbers(subject: str, x: Any) -> Numbers:
    """The numbers of a tensor, an array, nested lists, a pandas table, a scipy matrix, AnnData, or a set of torch.

    Masked and missing values become NaN, categories their codes.

    Raises:
        TypeError: something else, or values that are not real numbers.
        ValueError: numbers that float32 cannot hold.
    """
    package = type(x).__module__.split(".")[0]
    if isinstance(x, DataLoader | TorchDataset):
        return _of_torch_set(subject, x)
    if package == "anndata":
        inner = numbers(subject, x.X)
        return Numbers(inner.values, None, tuple(map(str, x.var_names)), inner.note)
    if package == "pandas":
        return _of_pandas(subject, x)
    if package == "scipy" and hasattr(x, "toarray"):
        return Numbers(_of_array(subject, x.toarray()), note=f"made dense from {x.nnz} stored values")
    if isinstance(x, tuple) and hasattr(x, "train"):
        raise TypeError(f"{subject}: expected one set; got the {type(x).__name__} of data.load. Pass its .train.")
    if isinstance(x, list | tuple | Tensor | np.ndarray):
        return Numbers(_of_part(subject, x))
    if isinstance(x, str):
        raise TypeError(f"{subject}: expected data; got the word {x!r}. Load a set with data.load({x!r}).train.")
    raise TypeError(
        f"{subject}: expected a Dataset, a tensor, an array, a table or a set of torch; got {type(x).__name__}. "
        "Convert it first, for instance with numpy.asarray(x, dtype=numpy.float32)."
    )


def beside(subject: str, x: Any) -> Tensor:
    """A context: whole numbers, such as classes, stay; all others become float32."""
    values = numbers(subject, x).values
    return values if values.dtype == torch.int64 else values.to(torch.float32)


def _of_array(subject: str, x: Any) -> Tensor:
    if isinstance(x, np.ma.MaskedArray):
        if x.mask is not np.ma.nomask and bool(np.any(x.mask)):
            if x.dtype.kind not in _NUMBERS:
                raise _no_numbers(subject, f"a masked array of {x.dtype}")
            if x.dtype == np.uint8:  # NaN makes reals of pixels, which are not scaled as pixels are
                raise TypeError(
                    f"{subject}: expected missing values among floats; got a mask over uint8, whose scale of 0 to 255 "
                    "would be lost. Give x / 255 for pixels, x.astype('float32') for numbers."
                )
            _check_whole(subject, x.compressed())
            x = np.ma.filled(x.astype(np.float64), np.nan)
        else:
            x = x.data
    if x.dtype.kind not in _NUMBERS:
        raise _no_numbers(subject, f"array of {x.dtype}")
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
        mask, kept = x.get_mask(), x.get_data()  # type: ignore[attr-defined]
        return torch.where(mask, _of_tensor(subject, kept.masked_fill(~mask, 0)).float(), torch.nan)
    if x.is_nested:
        raise _no_numbers(subject, "a nested tensor")
    if x.layout != torch.strided:
        x = x.to_dense()
    if x.is_complex() or x.is_quantized or x.device.type == "meta":
        kind = "without values" if x.device.type == "meta" else f"of {x.dtype}"
        raise _no_numbers(subject, f"a tensor {kind}")
    if x.dtype in (torch.bool, torch.uint8, torch.float32):
        return x
    if not x.is_floating_point():
        _check_whole(subject, x.cpu().numpy())
        return x.to(torch.int64)
    single = x.to(torch.float32)
    if x.element_size() == 1:  # the largest is within float32, and torch has no isinf of it
        return single
    if bool((single.isinf() & ~x.isinf()).any()):
        raise ValueError(
            f"{subject}: expected numbers that float32 holds, up to 3.4e38; got "
            f"{float(x.nan_to_num(0).abs().max()):.4g}. Scale them, or take their logarithm."
        )
    return single


def _of_pandas(subject: str, x: Any) -> Numbers:
    """A DataFrame or Series: every column as numbers, those of categories as codes."""
    frame = x.to_frame() if x.ndim == 1 else x
    columns = []
    for name, column in frame.items():
        if str(column.dtype) == "category":
            codes = column.cat.codes.to_numpy().astype(np.float64)
            columns.append(np.where(codes < 0, np.nan, codes))
        elif getattr(column.dtype, "kind", "O") in _NUMBERS:
            if column.dtype.kind in "iu":
                dtype = getattr(column.dtype, "numpy_dtype", getattr(column.dtype, "subtype", column.dtype))
                _check_whole(f"{subject}, column {name!r}", column.dropna().to_numpy(dtype=dtype))
            columns.append(column.to_numpy(dtype=np.float64, na_value=np.nan))
        else:
            raise TypeError(
                f"{subject}: expected columns of numbers or categories; got {name!r} of {column.dtype}. Drop it, or "
                f"make it one: frame[{name!r}].astype('category')."
            )
    values = _of_array(subject, np.stack(columns, -1)) if columns else torch.empty(len(frame), 0)
    return Numbers(values[:, 0] if x.ndim == 1 else values, None, tuple(map(str, frame.columns)))


def _of_torch_set(subject: str, x: Any) -> Numbers:
    notes = []
    of = x.dataset if isinstance(x, DataLoader) else x
    if isinstance(of, IterableDataset) or not hasattr(of, "__len__"):
        raise TypeError(
            f"{subject}: expected a set with a length; got the stream {type(of).__name__}. Read it into an array first."
        )
    if isinstance(x, DataLoader):
        _check_order(subject, x)
        notes.append("of a DataLoader, whose batches and order are left out")
        if x.collate_fn not in (default_collate, default_convert):
            notes.append("its collate_fn is not applied")
    items = [_item(subject, of, i) for i in range(len(of))]
    if not items:
        raise ValueError(f"{subject}: expected at least one datum; got none. Give data.")
    parts = [item if isinstance(item, tuple | list) else (item,) for item in items]
    if len({len(part) for part in parts}) > 1:
        raise ValueError(
            f"{subject}: expected items of as many parts each; got {sorted({len(part) for part in parts})}. Give all "
            "of them a label, or none."
        )
    try:
        values = torch.stack([_of_part(subject, part[0]) for part in parts])
    except (TypeError, RuntimeError, IndexError) as error:
        raise TypeError(
            f"{subject}: expected data of one shape, with a label at most; got {type(items[0]).__name__} that cannot "
            f"be stacked ({error}). Transform them to tensors."
        ) from error
    labels = _labels(subject, [part[1] for part in parts]) if len(parts[0]) > 1 else None
    if len(parts[0]) > 1 and labels is None:
        notes.append("second parts of the data, which are no classes, are left out")
    if len(parts[0]) > 2:
        notes.append(f"{len(parts[0]) - 2} further parts of the data are left out")
    return Numbers(values, labels, (), "; ".join(notes))


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


def _item(subject: str, x: Any, i: int) -> Any:
    try:
        return x[i]
    except Exception as error:
        raise ValueError(
            f"{subject}: expected a set of {len(x)} readable data; got {type(error).__name__} ({error}) at {i}. Mend "
            "its __getitem__."
        ) from error


def _of_part(subject: str, part: Any) -> Tensor:
    """A tensor, an array, or nested rows of them."""
    if isinstance(part, list | tuple):
        part = _of_rows(subject, part)
    return _of_tensor(subject, part.detach()) if isinstance(part, Tensor) else _of_array(subject, np.asanyarray(part))


def _of_rows(subject: str, x: Any) -> Any:
    """Nested rows as one tensor or array, with the masks of their parts."""
    if _with_parts(x):
        x = [_of_rows(subject, row) if isinstance(row, list | tuple) else row for row in x]
    tensors = [_of_part(subject, row) for row in x] if any(isinstance(row, Tensor) for row in x) else []
    masked = any(isinstance(row, np.ma.MaskedArray) for row in x)
    try:
        return torch.stack(tensors) if tensors else np.ma.stack(x) if masked else np.asarray(x)
    except RuntimeError as error:
        raise TypeError(f"{subject}: expected rows of one shape; got others ({error}). Pad them.") from error
    except ValueError as error:
        raise TypeError(f"{subject}: expected rows of one length; got ragged ones. Pad them.") from error


def _with_parts(x: Any) -> bool:
    """Whether there are tensors or masked arrays in nested rows, of which numpy by itself would lose something."""
    return any(
        isinstance(row, Tensor | np.ma.MaskedArray) or (isinstance(row, list | tuple) and _with_parts(row)) for row in x
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


def _no_numbers(subject: str, got: str) -> TypeError:
    return TypeError(
        f"{subject}: expected real numbers; got {got}. Convert it first, for instance with "
        "numpy.asarray(x, dtype=numpy.float32)."
    )
