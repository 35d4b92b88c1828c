"""Convolutions of a recorded graph on the CPU, with their channels last in memory.

So oneDNN wants them, and so Inductor lays them out where it may choose; the operations of a gradient have the layout
that was recorded. Recorded with channels first, as users write them, every feature map is copied back and forth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def convolution(x: Tensor, *arguments: Any) -> Any:
    """``aten.convolution`` of maps whose channels are last; left as it is where they are, or on another device.

    Shapes: N data, C channels, H rows, W columns.

    Args:
        x: maps (N, C, H, W) in any layout.
        arguments: the others of ``aten.convolution``.
    """
    if x.device.type != "cpu" or x.dim() != 4 or x.is_contiguous(memory_format=torch.channels_last):
        return NotImplemented
    return torch.ops.aten.convolution.default(x.contiguous(memory_format=torch.channels_last), *arguments)


def replication_pad2d_backward(gradient: Tensor, x: Tensor, padding: Sequence[int]) -> Any:
    """``aten.replication_pad2d_backward`` of maps whose channels are first: Inductor fails at others (torch 2.14)."""
    if gradient.is_contiguous() and x.is_contiguous():
        return NotImplemented
    return torch.ops.aten.replication_pad2d_backward.default(gradient.contiguous(), x.contiguous(), padding)
