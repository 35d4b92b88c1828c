"""What evaluation, training and the lab ask of a program: a model, a guide, and the names of their sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Program(Protocol):
    """A pair of Pyro programs that take the same arguments, ``(x, *context)``.

    :class:`~pyro_vae.vae.VAE` is one; so is any object with these four attributes.
    """

    @property
    def model(self) -> Callable[..., Any]:
        """The generative model, a module or a function."""

    @property
    def guide(self) -> Callable[..., Any]:
        """The approximate posterior; takes the model's arguments."""

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the sites that the guide samples."""

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the sites that hold data."""
