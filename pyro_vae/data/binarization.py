"""Ways of making grays binary, which read a gray as the probability of a one."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Binarize: TypeAlias = Literal["none", "dynamic", "static", "threshold"]


def floats(stored: Tensor, levels: int | None) -> Tensor:
    """The values that a model sees, float32: grays in [0, 1] where there are levels, else what is stored."""
    return stored if levels is None else stored.float().div_(levels)


def given(generator: torch.Generator | None, purpose: str) -> torch.Generator:
    """The generator of what a set draws, which cannot do without."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"Dataset: expected a generator of torch for {purpose}; got {type(generator).__name__}. Pass such a one."
        )
    if generator is None:
        raise ValueError(
            f"Dataset: expected a generator for {purpose}; got None. Pass "
            "generator=torch.Generator(dataset.device).manual_seed(0), one for all epochs."
        )
    return generator


def bits(grays: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of each gray, bool, on its device."""
    return torch.rand(grays.shape, generator=generator, device=generator.device).to(grays.device) < grays


def check_unit(name: str, images: Tensor, levels: int | None) -> None:
    """Raises for values that are no probabilities: outside of [0, 1], or missing.

    Args:
        name: of the set.
        images: its stored values.
        levels: the stored value that stands for 1; None for values as they are.
    """
    if bool(images.isnan().any()):
        raise ValueError(
            f"Dataset {name!r}: expected values in [0, 1] to binarize; got NaN, for missing ones. Fill them "
            'in, or use binarize="none".'
        )
    if levels is None and not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError(
            f"Dataset {name!r}: expected values in [0, 1] to binarize; got {images.min().item():.4g} to "
            f'{images.max().item():.4g}. Scale them, or use binarize="none".'
        )
