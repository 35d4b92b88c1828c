"""A trained program as a folder: what it is built of, its weights, and a card that says what they are.

    pyro_vae.save("runs/digits", vae, figures={"test_elbo": -23.0})
    vae = pyro_vae.load("runs/digits")

The folder holds ``program.json``, the classes and arguments that the program was built with; ``weights.safetensors``,
where need be ``arguments.safetensors`` for tensors among the arguments; and ``README.md``. Nothing in it is code.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_vae import checks
from pyro_vae.checkpoint import files
from pyro_vae.checkpoint.card import card
from pyro_vae.checkpoint.description import build, describe
from pyro_vae.checkpoint.tree import alike

PROGRAM, ARGUMENTS, WEIGHTS, BEST, CARD = (
    "program.json",
    "arguments.safetensors",
    "weights.safetensors",
    "best.safetensors",
    "README.md",
)
CHECKPOINTS, RUN = "checkpoints", "run.json"
_SLACK = 64 * 2**20  # bytes that building a program may take beside its weights
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_OF_EVERY_MODULE = vars(nn.Module()).keys()


def save(folder: str | os.PathLike[str], program: nn.Module, figures: Mapping[str, float] | None = None) -> None:
    """Writes a program to a folder, from which :func:`load` gives it back.

    Args:
        folder: made where it does not exist; a program in it is replaced.
        program: a VAE or another program of this package, or an object of a class that derives from
            :class:`~pyro_vae.checkpoint.Recorded`.
        figures: what the card is to say of it, by name: nats per datum, for example.

    Raises:
        OSError: the folder cannot be written.
        TypeError: something in the program that cannot be built again; the message says what.
        ValueError: the program was changed after it was built, so that another one would be loaded; the folder is that
            of a run.

    Example:
        >>> import tempfile
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     prior=priors.StandardNormal(2),
        ...     likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), 4),
        ...     posterior=conditionals.DiagonalNormal(nets.MLP(4, [8]), 2),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, vae, {"test_elbo": -2.5})
        ...     loaded = load(folder)
        >>> torch.equal(loaded.encode(torch.ones(1, 4)).mean, vae.encode(torch.ones(1, 4)).mean)
        True
    """
    path = a_path("save", folder)
    checks.instance("save", "program", program, nn.Module, "Pass a VAE, or another program that is a module.")
    if figures is not None:
        checks.instance("save", "figures", figures, Mapping, 'Give numbers by name, {"test_elbo": -23.0}, or none.')
    for name, value in (figures or {}).items():
        checks.number("save", f"figures[{name!r}]", value)
    if (path / RUN).is_file():
        raise ValueError(
            f"save: expected a folder without a run; got {os.fspath(path)!r}, whose weights and card are the run's. "
            "Give another folder."
        )
    description = described(program)
    path.mkdir(parents=True, exist_ok=True)
    write_description(path, *description)
    write_weights(path / WEIGHTS, program)
    files.replace(path / CARD, card(program, figures or {}, {}).encode())


def load(
    folder: str | os.PathLike[str], *, classes: Iterable[Any] = (), weights: Literal["last", "best"] = "last"
) -> Any:
    """Builds the program of a folder, with its weights, on the CPU and in evaluation mode.

    Args:
        folder: what :func:`save` or ``fit(..., folder=...)`` wrote.
        classes: classes and functions of yours that the program is built of.
        weights: those that training ended with, or, while it runs, of its last checkpoint; or those of the epoch with
            the best validation ELBO, which ``fit(..., keep_best=True)`` keeps.

    Raises:
        FileNotFoundError: there is no such program, or no such weights.
        ValueError: a damaged file; a class that is neither this package's nor given; arguments that it does not take.
    """
    path = a_path("load", folder)
    checks.choice("load", "weights", weights, ["last", "best"])
    checks.instance("load", "classes", classes, (list, tuple, set, frozenset), "Give a list: classes=[MyBody].")
    description, arguments = read_description(path)
    chosen = path / (BEST if weights == "best" else WEIGHTS)
    if weights == "best" and not chosen.is_file():
        raise FileNotFoundError(
            f"load: expected the best weights in {os.fspath(path)!r}; got none. Load the last ones, or train with "
            "fit(..., keep_best=True), which keeps them."
        )
    unfinished = weights == "last" and not chosen.is_file()
    if unfinished:
        chosen = next(iter(checkpoints(path)), chosen)
    budget = _SLACK + 8 * (chosen.stat().st_size if chosen.is_file() else 0)
    with torch.random.fork_rng(devices=[]):
        program = build(description, arguments, classes, budget)
    if not isinstance(program, nn.Module):
        raise ValueError(f"load: expected the description of a module; got {type(program).__name__}. Save it again.")
    read_weights(chosen, program, prefix="program." if unfinished else "")
    return program.eval()


def a_path(subject: str, folder: object) -> Path:
    """The path of a folder.

    Raises:
        TypeError: it is none.
        ValueError: it is a file, or a path that the system does not take.
    """
    checks.instance(subject, "folder", folder, (str, os.PathLike), "Give a path.")
    try:
        path = Path(folder)  # type: ignore[arg-type]
        if path.exists() and not path.is_dir():
            raise ValueError("a file")
    except (ValueError, OSError, TypeError) as error:
        raise ValueError(f"{subject}: expected the path of a folder; got {error}: {folder!r:.100}.") from error
    return path


def described(program: nn.Module) -> tuple[Any, dict[str, Tensor]]:
    """A program's description and the tensors in it, once building it has given the same modules.

    Raises:
        TypeError: something that cannot be built again.
        ValueError: the program is no longer what it was built as.
    """
    tensors: dict[str, Tensor] = {}
    own: dict[str, Any] = {}
    description = describe(program, tensors, own)
    with torch.random.fork_rng(devices=[]):
        again = build(json.loads(json.dumps(description)), tensors, own.values())
    before, after = _structure(again), _structure(program)
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    if changed:
        raise ValueError(
            f"Checkpoint: expected {type(program).__name__} as it was built; got one changed at "
            f"{', '.join(sorted(changed)[:5])}. Build it with what it has now, so that it can be built again."
        )
    return description, tensors


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = [path for path in (folder / CHECKPOINTS).glob("*.safetensors") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def settings_of(program: nn.Module) -> dict[str, dict[str, Any]]:
    """The numbers and words that modules hold, by module: a temperature that a callback lowers, for example."""
    found = {
        name: {key: value for key, value in vars(module).items() if _is_setting(key, value)}
        for name, module in program.named_modules()
    }
    return {name: held for name, held in found.items() if held}


def set_settings(program: nn.Module, settings: Any) -> None:
    """Gives modules the numbers and words that :func:`settings_of` found, where they have such.

    Raises:
        ValueError: they are none that such modules can have.
    """
    present = settings_of(program)
    given = {} if settings is None else settings
    if not (isinstance(given, dict) and all(isinstance(held, dict) for held in given.values())):
        raise _other_settings("settings", settings)
    for name, module in program.named_modules():
        for key, value in given.get(name, {}).items():
            before = present.get(name, {}).get(key)
            if before is None or before == value:
                continue
            if not alike(value, before):
                raise _other_settings(f"{name}.{key} like {before!r:.60}", value)
            try:
                setattr(module, key, value)
            except (AttributeError, RuntimeError, TypeError, ValueError):
                raise _other_settings(f"{name}.{key} like {before!r:.60}", value) from None


def _other_settings(expected: str, got: Any) -> ValueError:
    return ValueError(
        f"Checkpoint: expected {expected}; got {got!r:.60}. It was saved by another program: save it again."
    )


def write_description(folder: Path, description: Any, tensors: Mapping[str, Tensor]) -> None:
    """Writes what a program is built of."""
    if tensors:
        files.write(folder / ARGUMENTS, tensors, {})
    else:
        (folder / ARGUMENTS).unlink(missing_ok=True)
    files.write_json(folder / PROGRAM, {"program": description})


def read_description(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """What :func:`write_description` wrote."""
    content = files.read_json(folder / PROGRAM)
    if "program" not in content:
        raise ValueError(
            f"load: expected a program that can be built again in {os.fspath(folder)!r}; got {content.get('problem')} "
            "Build it yourself, and use checkpoint.load for its weights."
        )
    arguments = folder / ARGUMENTS
    return content["program"], files.read(arguments)[0] if arguments.is_file() else {}


def write_weights(path: Path, program: nn.Module, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes the weights of a program, and the numbers and words that its modules hold."""
    files.write(path, program.state_dict(), {"settings": settings_of(program), **(metadata or {})})


def read_weights(path: Path, program: nn.Module, prefix: str = "") -> None:
    """Gives a program the weights of a file.

    Args:
        path: the file.
        program: as the saved one was built.
        prefix: of the program's tensors, in a checkpoint of a run, which holds others too.
    """
    saved, metadata = files.read(path)
    saved = {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}
    floats = {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()}
    if len(floats) == 1 and floats <= _FLOATS:
        program.to(floats.pop())
    own = dict(tensors_of(program)) if prefix else program.state_dict()
    files.check(path, type(program).__name__, own, saved)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    set_settings(program, metadata.get("settings"))


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, those that no ``state_dict`` has too."""
    return itertools.chain(module.named_parameters(), module.named_buffers())


def _is_setting(name: str, value: Any) -> bool:
    return name not in _OF_EVERY_MODULE and name != "_pyro_name" and isinstance(value, bool | int | float | str)


def _structure(program: nn.Module) -> dict[str, Any]:
    """What two programs share that are built alike: classes of modules, and shapes of tensors."""
    modules: dict[str, Any] = {f"{name or 'it'}": type(module) for name, module in program.named_modules()}
    settings = {
        f"{name}.{key}": type(value) for name, held in settings_of(program).items() for key, value in held.items()
    }
    return modules | settings | {n: (tensor.shape, tensor.is_floating_point()) for n, tensor in tensors_of(program)}
