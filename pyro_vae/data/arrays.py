"""Arrays, tensors and nested rows of them as one tensor, the numbers of which are real and not rounded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyro_vae import checks
from pyro_vae.tables import Table

KINDS = "biuf"  # of numpy's kinds of dtypes, those of real numbers


@dataclass(frozen=True)
class Numbers:
    """A tensor, and what it came with.

    Attributes:
        values: bool, uint8, int64 or float32, (N, ...); NaN where a value is missing.
        labels: int64 (N,), of a set that has some.
        columns: names, of a table.
        categories: of each column those that its codes stand for, none of numbers; of a table that has some.
        note: what was done that the values do not show.
        table: what the columns of a DataFrame are.
    """

    values: Tensor
    labels: Tensor | None = None
    columns: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    note: str = ""
    table: Table | None = None


def first(names: Collection[str]) -> str:
    """The first few names, as a message shows them."""
    return ", ".join(checks.printable(name, 60) for name in list(names)[:5]) + (", ..." if len(names) > 5 else "")


def listed(what: str, names: Collection[str]) -> str:
    """A note of the first few names, or none of no names."""
    return f"{what}: {first(names)}" if names else ""


def joined(*notes: str) -> str:
    """Notes as one."""
    return "; ".join(filter(None, notes))


def of_array(subject: str, x: Any) -> Tensor:
    """An array of numpy, masked or not; float64 stays, for :func:`to_float32`."""
    if x.dtype.kind not in KINDS:
        kind = "a masked array" if isinstance(x, np.ma.MaskedArray) else "array"
        raise _no_numbers(subject, f"{kind} of {x.dtype}")
    if isinstance(x, np.ma.MaskedArray):
        if x.mask is not np.ma.nomask and bool(np.any(x.mask)):
            if x.dtype == np.uint8:  # NaN makes reals of pixels, which are not scaled as pixels are
                raise TypeError(
                    f"{subject}: expected missing values among floats; got a mask over uint8, whose scale of 0 to 255 "
                    "would be lost. Give x / 255 for pixels, x.astype('float32') for numbers."
                )
            check_whole(subject, x.compressed())
            x = np.ma.filled(x.astype(np.float64), np.nan)
        else:
            x = x.data
    check_whole(subject, x)
    if x.dtype.kind == "u" and x.dtype.itemsize > 1:
        x = x.astype(np.int64)
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        x = x.astype(np.float64)
    x = np.require(x, x.dtype.newbyteorder("="), ["A", "C", "W"])
    if min(x.strides, default=0) < 0:  # of one turned datum, which numpy takes for contiguous and torch does not take
        x = x.copy()
    return _of_tensor(subject, torch.from_numpy(x))


def check_whole(subject: str, x: Any) -> None:
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
            check_whole(subject, x.cpu().numpy())
            return x.to(torch.int64)
        return x.to(torch.float32)
    except (NotImplementedError, TypeError) as error:  # packed numbers of less than a byte
        raise _no_numbers(subject, f"a tensor of {x.dtype}", "Unpack it to float32.") from error


def to_float32(subject: str, x: Tensor) -> Tensor:
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


def no_pixels(x: Tensor) -> Tensor:
    """Of a table or a context, whose uint8 values are whole numbers and not pixels to be scaled."""
    return x.to(torch.int64) if x.dtype == torch.uint8 else x


def of_part(subject: str, part: Any) -> Tensor:
    """A tensor, an array, an image of PIL, or nested rows of them."""
    if isinstance(part, list | tuple):
        part = _of_rows(subject, part)
    if isinstance(part, Image.Image):
        if part.mode == "RGB":
            return of_array(subject, np.asarray(part).transpose(2, 0, 1))
        if len(part.getbands()) > 1 or part.mode == "P":  # a palette's numbers only point at colors
            raise TypeError(
                f"{subject}: expected images of grays or of red, green and blue; got one of mode {part.mode!r}. Give "
                "image.convert('RGB')."
            )
    return _of_tensor(subject, part.detach()) if isinstance(part, Tensor) else of_array(subject, np.asanyarray(part))


def _of_rows(subject: str, x: Any) -> Any:
    """Nested rows as one tensor or array, with the masks of their parts."""
    if _with_parts(x):
        x = [_of_rows(subject, row) if isinstance(row, list | tuple) else row for row in x]
    arrays = {row.dtype for row in x if isinstance(row, np.ndarray)}
    if len(arrays) > 1 or any(isinstance(row, Tensor | np.ma.MaskedArray | Image.Image) for row in x):
        return stacked(subject, [of_part(subject, row) for row in x])
    try:
        return np.asarray(x)
    except ValueError as error:
        raise TypeError(f"{subject}: expected rows of one length; got ragged ones. Pad them.") from error


def stacked(subject: str, rows: list[Tensor]) -> Tensor:
    """Rows of one shape, and of pixels alone or of none."""
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


def _with_parts(x: Any) -> bool:
    """Whether there are tensors, arrays or images in nested rows, of which numpy by itself may lose something."""
    return any(
        isinstance(row, Tensor | np.ndarray | Image.Image) or (isinstance(row, list | tuple) and _with_parts(row))
        for row in x
    )


def _no_numbers(
    subject: str, got: str, remedy: str = "Convert it first, for instance with numpy.asarray(x, dtype=numpy.float32)."
) -> TypeError:
    return TypeError(f"{subject}: expected real numbers; got {got}. {remedy}")
