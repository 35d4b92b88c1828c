"""What several bodies are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor, nn

from pyro_vae.nets.shapes import as_size


def layer(activation: Callable[[], nn.Module]) -> nn.Module:
    """A module of the class, or an error that says what to give."""
    try:
        made = activation()
    except TypeError:
        made = None
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"Body: expected activation a class that makes a module; got {activation!r:.80}. Give a class, such as "
            "nn.ReLU."
        )
    return made


def image_shape(name: str, shape: Sequence[int], channels: Sequence[int]) -> Size:
    """The size of an image (C, H, W), or an error; likewise for no channels.

    Shapes: C channels, H rows, W columns.
    """
    if len(shape) != 3:
        raise ValueError(
            f"{name}: expected an image shape (channels, height, width); got {tuple(shape)}. "
            "Reshape the data, or use MLP for vectors."
        )
    if not channels:
        raise ValueError(f"{name}: expected at least one layer in channels; got none. Give for example channels=[32].")
    as_size(channels)
    return as_size(shape)


def concatenated(inputs: Sequence[Tensor]) -> Tensor:
    """Flattens inputs of shape (B, \\*shape), scalars among them, and joins them to (B, total)."""
    flat = [value.unsqueeze(-1).flatten(1) for value in inputs]
    return flat[0] if len(flat) == 1 else torch.cat(flat, -1)


def with_contexts(image: Tensor, contexts: Sequence[Tensor]) -> Tensor:
    """Contexts as constant feature maps beside the channels of an image, (B, C + total, H, W).

    Shapes: B data, C channels, H rows, W columns.
    """
    if not contexts:
        return image
    maps = concatenated(contexts)[..., None, None].expand(-1, -1, *image.shape[-2:])
    return torch.cat([image, maps], 1)


def halvings(image: Size, times: int) -> list[tuple[int, int]]:
    """Heights and widths from the full image down, each half of the one before, rounded up."""
    sizes = [(image[1], image[2])]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes
