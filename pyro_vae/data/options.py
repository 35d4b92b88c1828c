"""Options that are words: a name among several, a device."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch


def unknown(subject: str, name: str, choices: Sequence[str]) -> str:
    """The message for a name that is none of the choices."""
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), choices, n=1)
    remedy = f"Did you mean {close[0]!r}?" if close else "Choose one of these."
    return f"{subject}: expected one of {', '.join(choices)}; got {name!r}. {remedy}"


def present_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if isinstance(device, str) else "no name of a device"
        raise ValueError(
            f'device: expected a device of this machine; got {str(device)[:40]!r} ({reason}). Use device="cpu".'
        ) from error
