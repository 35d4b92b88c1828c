"""What is done to an input before a network sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_vae import checks
from pyro_vae.recorded import Recorded

InputTransform = Literal["log1p"] | Callable[[Tensor], Tensor]


class Standardize(Recorded, nn.Module):
    """(x - mean) / deviation, elementwise: what a network is given of reals on any scale.

    Args:
        mean: in the units of x, of a shape that broadcasts with the event's.
        deviation: likewise; 0, of an element that never varies, counts as 1.

    Raises:
        ValueError: NaN, infinity or a negative deviation.

    Example:
        >>> x = torch.tensor([[1000.0, 7.0], [3000.0, 7.0]])
        >>> Standardize.of(x)(x)
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        if not bool(mean.isfinite().all() & deviation.isfinite().all() & (deviation >= 0).all()):
            raise ValueError(
                "Standardize: expected a finite mean and a finite deviation of at least 0; got others. Use "
                "Standardize.of(x)."
            )
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("deviation", torch.where(deviation > 0, deviation, 1.0).detach())

    @classmethod
    def of(cls, x: Tensor) -> Standardize:
        """For data x (N, \\*event_shape), of the values that are not NaN.

        Raises:
            TypeError: no tensor.
            ValueError: no datum, or infinite values.
        """
        checks.instance("Standardize.of", "x", x, Tensor, "Use data.as_dataset(x).tensor() for other data.")
        if x.dim() == 0 or not len(x) or bool(x.isinf().any()):
            raise ValueError(
                f"Standardize.of: expected finite data of shape (N, ...) or NaN for missing; got {tuple(x.shape)}"
                f"{' with infinite values' if x.numel() and bool(x.isinf().any()) else ''}. Give the training data."
            )
        x = x if x.is_floating_point() else x.float()
        observed = ~x.isnan()
        # What never varies has deviation 0, however its mean rounds.
        varies = x.nan_to_num(-math.inf).amax(0) > x.nan_to_num(math.inf).amin(0)
        count = observed.sum(0).clamp(min=1)
        mean = torch.where(observed, x.double(), 0.0).sum(0) / count
        variance = torch.where(observed, (x.double() - mean) ** 2, 0.0).sum(0) / count
        kept = torch.get_default_dtype()  # that of parameters; data are made float32 too
        return cls(mean.to(kept), torch.where(varies, variance.sqrt(), 0.0).to(kept))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class StandardizeLog(Recorded, nn.Module):
    """(log x - mean) / deviation, elementwise: what a network is given of values above 0 that vary by factors.

    Args:
        standardize: of the logarithms, ``Standardize.of(x.log())``.

    Example:
        >>> x = torch.tensor([[1.0], [100.0]])
        >>> StandardizeLog(Standardize.of(x.log()))(x)
        tensor([[-1.],
                [ 1.]])
    """

    def __init__(self, standardize: Standardize) -> None:
        super().__init__()
        checks.instance("StandardizeLog", "standardize", standardize, Standardize, "Use Standardize.of(x.log()).")
        self.standardize = standardize

    def forward(self, x: Tensor) -> Tensor:
        return self.standardize(x.log())


def input_transform(name: str, transform: InputTransform | None) -> Callable[[Tensor], Tensor] | None:
    """The function that a name or a module stands for, or an error that says what to give."""
    if transform == "log1p":
        return torch.log1p
    if transform is not None and not callable(transform):
        raise TypeError(
            f"{name}: expected transform 'log1p', a module or a function; got {transform!r}. Use nets.Standardize "
            "for reals."
        )
    return transform
