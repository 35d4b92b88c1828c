"""The card of a folder: what a person who finds it reads first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

_UNITS = {"skipped": "steps", "seconds": "s"}
_IN_NATS = re.compile("loss|elbo|likelihood|kl|nll")
# What the Hugging Face hub reads of a card: programs are found by these, also those that are put there by hand.
_FRONT_MATTER = ["---", "library_name: pyro_vae", "tags:", "- pyro", "- variational-autoencoder", "---", ""]
_HERE = """Load it, from the folder that this file is in:

```python
import pyro_vae

program = pyro_vae.load("path/to/this/folder")
```"""
_ON_THE_HUB = """Load it:

```python
import pyro_vae  # pip install 'pyro-vae[hub]'

program = pyro_vae.from_pretrained({repository})
```"""


def card(program: object, figures: Mapping[str, float], about: Mapping[str, Any]) -> str:
    """A page in Markdown: the program, its figures with units, how to load it.

    Args:
        program: what the folder holds.
        figures: by name.
        about: further lines, by name: the data it was trained on, versions.
    """
    name = type(program).__name__
    lines = [*_FRONT_MATTER, f"# {name}", ""]
    if isinstance(program, nn.Module):
        count = sum(parameter.numel() for parameter in program.parameters())
        parts = [
            type(part).__name__
            for role in ("prior", "likelihood", "posterior")
            if (part := getattr(program, role, None))
        ]
        made = f", made of {', '.join(parts)}" if parts else ""
        lines += [f"A probabilistic program in pyro_vae{made}, with {count:,} parameters.", ""]
    if about:
        lines += [*(f"- {key}: {_line(value)}" for key, value in about.items()), ""]
    if figures:
        lines += ["| figure | value | unit |", "| --- | ---: | --- |"]
        lines += [f"| {key} | {value:.6g} | {_unit(key)} |" for key, value in figures.items()]
        lines += [""]
    lines += [_HERE, ""]
    lines += [
        "Classes of your own that it is built of are given with `classes=[...]`. Loading a folder runs no code of it."
    ]
    return "\n".join(lines) + "\n"


def on_the_hub(text: str, repository: str) -> str:
    """The card as it is in a repository of the hub: what it says of loading names that repository.

    Args:
        text: what :func:`card` returned, or a person made of it.
        repository: the arguments of ``from_pretrained`` that stand for it.

    Example:
        >>> print(on_the_hub(card(nn.Linear(1, 1), {}, {}), "'ada/digits'").split("```")[1])
        python
        import pyro_vae  # pip install 'pyro-vae[hub]'
        <BLANKLINE>
        program = pyro_vae.from_pretrained('ada/digits')
        <BLANKLINE>
    """
    return text.replace(_HERE, _ON_THE_HUB.format(repository=repository))


def _unit(figure: str) -> str:
    """The unit of a figure, where its name tells."""
    return _UNITS.get(figure, "nats per datum" if _IN_NATS.search(figure) else "")


def _line(value: Any) -> str:
    return " ".join(str(value).split())
