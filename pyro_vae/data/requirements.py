"""What a data set must hold to mean what it says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_images(subject: str, images: Tensor, levels: int | None) -> None:
    """Raises for stored values of another dtype, shape or range than a data set has.

    Args:
        subject: of messages.
        images: (N, ...).
        levels: the stored value that stands for 1; None for values as they are.

    Raises:
        TypeError: another dtype.
        ValueError: no datum or no value; values over the levels; infinity.
    """
    if images.dtype != (torch.float32 if levels is None else torch.uint8):
        raise TypeError(
            f"{subject}: expected images of uint8 with levels, or of float32 without; got {images.dtype} with "
            f"levels={levels}. Use data.as_dataset to convert."
        )
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(
            f"{subject}: expected shape (N, ...) with at least one datum and one value each; got "
            f"{tuple(images.shape)}. Give images (N, C, H, W) or a table (N, D)."
        )
    if levels is not None and int(images.max()) > levels:
        raise ValueError(
            f"{subject}: expected values 0 to levels={levels}; got {int(images.max())}. Give the levels of "
            "the images, 255 for ordinary ones."
        )
    if levels is None and bool(images.isinf().any()):
        raise ValueError(
            f"{subject}: expected finite values, or NaN for missing ones; got infinity. Replace it by NaN."
        )


def check_labels(subject: str, labels: Tensor) -> None:
    """Raises for labels that are no classes from 0, int64 (N,)."""
    if labels.dtype != torch.int64:
        raise TypeError(
            f"{subject}: expected labels of torch.int64; got {labels.dtype}. Use labels.long(), or carry other "
            "covariates with conditioned_on."
        )
    if labels.ndim > 1:
        raise ValueError(
            f"{subject}: expected labels of shape (N,); got {tuple(labels.shape)}. Use labels.argmax(-1) of one-hot "
            "ones, or labels[:, 0]."
        )
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(
            f"{subject}: expected labels from 0; got {int(labels.min())}. Number the classes from 0. "
            "SemiSupervisedVAE takes -1 for none with conditioned_on(labels)."
        )


def check_rows(subject: str, kind: str, rows: Tensor, images: Tensor) -> None:
    """Raises for labels or context of another length, or on another device, than the images."""
    if rows.ndim == 0 or len(rows) != len(images):
        raise ValueError(
            f"{subject}: expected {kind} of length {len(images)}; got shape {tuple(rows.shape)}. "
            "Give one row for each datum."
        )
    if rows.device != images.device:
        raise ValueError(f"{subject}: expected {kind} on device {images.device}; got {rows.device}. Move it there.")


def check_width(subject: str, kind: str, named: Sequence[object], images: Tensor) -> None:
    """Raises for names of some columns, or categories of some, but not of all."""
    if named and len(named) != images.shape[-1]:
        raise ValueError(
            f"{subject}: expected {kind} of each of {images.shape[-1]}; got {len(named)}. Give all or none."
        )
