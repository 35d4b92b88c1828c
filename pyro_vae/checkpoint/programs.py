"""A trained program as a folder: what it is built of, its weights, and a card that says what they are.

    pyro_vae.save("runs/digits", vae, figures={"test_elbo": -23.0})
    vae = pyro_vae.load("runs/digits")

The folder holds ``program.json``, the classes and arguments that the program was built with; ``weights.safetensors``,
where need be ``arguments.safetensors`` for tensors among the arguments; and ``README.md``. Nothing in it is code.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from pyro_vae import checks
from pyro_vae.checkpoint import files
from pyro_vae.checkpoint.card import card
from pyro_vae.checkpoint.description import build, describe
from pyro_vae.checkpoint.fingerprints import is_own, others_of
from pyro_vae.checkpoint.tree import alike, pack, unpack
from pyro_vae.distributed import check_whole

PROGRAM, ARGUMENTS, WEIGHTS, BEST, CARD = (
    "program.json",
    "arguments.safetensors",
    "weights.safetensors",
    "best.safetensors",
    "README.md",
)
CHECKPOINTS, RUN = "checkpoints", "run.json"
OF_FOLDER = (PROGRAM, ARGUMENTS, WEIGHTS, BEST, CHECKPOINTS, RUN)
"""What is read of a folder."""
_SLACK = 64 * 2**20  # bytes that building a program may take beside its weights
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def save(folder: str | os.PathLike[str], program: nn.Module, figures: Mapping[str, float] | None = None) -> None:
    """Writes a program to a folder, from which :func:`load` gives it back.

    Args:
        folder: made where it does not exist; a program in it is replaced.
        program: a VAE or another program of this package, or an object of a class that derives from
            :class:`~pyro_vae.checkpoint.Recorded`.
        figures: what the card is to say of it, by name: nats per datum, for example.

    Values of ``pyro.param`` statements are not the program's, and are not saved; make them parameters of its modules.

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
    check_whole("save", program)
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
    while True:
        unfinished = weights == "last" and not chosen.is_file()
        source = next(iter(checkpoints(path)), chosen) if unfinished else chosen
        try:
            budget = _SLACK + 8 * (source.stat().st_size if source.is_file() else 0)
            with generators_as_they_were():
                program = build(description, arguments, classes, budget)
            read_weights(source, program, of_run=unfinished)
            return program.eval()
        except (OSError, ValueError):
            # A run under way removes a checkpoint once a later one is whole.
            if not unfinished or source == chosen or source.is_file():
                raise


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
        raise ValueError(
            f"{subject}: expected the path of a folder; got {error}: {folder!r:.100}. Give another path."
        ) from error
    return path.absolute()  # also for a program that changes its working directory


def described(program: nn.Module) -> tuple[Any, dict[str, Tensor]]:
    """A program's description and the tensors in it, once building it has given the same modules.

    Raises:
        TypeError: something that cannot be built again.
        ValueError: the program is no longer what it was built as.
    """
    tensors: dict[str, Tensor] = {}
    own: dict[str, Any] = {}
    description = describe(program, tensors, own)
    with generators_as_they_were():
        again = build(json.loads(json.dumps(description)), tensors, own.values())
    _check_registered(program)
    _check_not_lazy(program)
    _check_not_lazy(again)
    files.check_storable(program.state_dict())
    before, after = _structure(again), _structure(program)
    # What is None in one of them is no difference.
    empty = {f"{n}.{k}" for each in (again, program) for n, h in attributes_of(each).items() for k in h if h[k] is None}
    changed = [name for name in (before.keys() | after.keys()) - empty if before.get(name) != after.get(name)]
    if changed:
        raise ValueError(
            f"Checkpoint: expected {type(program).__name__} as it was built; got one changed at "
            f"{', '.join(sorted(changed)[:5])}. Build it with what it has now, so that it can be built again."
        )
    return description, tensors


@contextlib.contextmanager
def generators_as_they_were() -> Iterator[None]:
    """Context manager that undoes what is drawn in it, of torch, NumPy and Python."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - constructors may draw from it
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    run = files.read_json(folder / RUN).get("run") if (folder / RUN).is_file() else None
    found = sorted((p for p in (folder / CHECKPOINTS).glob(f"{run}-*.safetensors") if p.is_file()), reverse=True)
    files.check_links(folder, found)
    return found


def attributes_of(program: nn.Module, *, tensors: bool = True) -> dict[str, dict[str, Any]]:
    """What modules hold beside what a ``state_dict`` has, by module.

    That is numbers, words, None and containers of these, such as a temperature that a callback lowers; plain tensors;
    and buffers that are not persistent.

    Args:
        program: of the modules.
        tensors: whether to list tensors.
    """
    others = (Tensor,) if tensors else ()
    persistent = program.state_dict(keep_vars=True).keys() if tensors else set[str]()
    found: dict[str, dict[str, Any]] = {}
    for name, module in program.named_modules():
        own = {key: _without_numpy(value) for key, value in vars(module).items() if is_own(key)}
        held = {key: value for key, value in own.items() if checks.is_plain(value, *others)}
        if tensors:
            buffers = module.named_buffers(recurse=False)
            held |= {key: buffer for key, buffer in buffers if (f"{name}.{key}" if name else key) not in persistent}
        if held:
            found[name] = held
    return found


@torch.no_grad()
def set_attributes(program: nn.Module, attributes: Any) -> None:
    """Gives modules what :func:`attributes_of` found, where they have such.

    Raises:
        ValueError: it is nothing that such modules can have.
    """
    present = attributes_of(program)
    given = {} if attributes is None else attributes
    if not (isinstance(given, dict) and all(isinstance(held, dict) for held in given.values())):
        raise _other_attributes("attributes by module", attributes)
    for name, module in program.named_modules():
        for key, value in given.get(name, {}).items():
            if key not in present.get(name, {}):
                continue
            before = present[name][key]
            if not alike(value, before):
                raise _other_attributes(f"{name}.{key} like {type(before).__name__} {before!r:.40}", value)
            if key not in vars(module):  # a buffer
                before.copy_(value)
            elif (filled := _filled(before, value)) is not vars(module)[key]:
                try:
                    setattr(module, key, filled)
                except (AttributeError, RuntimeError, TypeError, ValueError):
                    raise _other_attributes(f"{name}.{key} like {before!r:.60}", value) from None


def _filled(before: Any, value: Any) -> Any:
    """A value in the place of a present one; within it, where that is a tensor or container that others may hold."""
    if isinstance(before, Tensor) and isinstance(value, Tensor):
        value = value.to(before.device)
        return before.copy_(value) if (before.shape, before.dtype) == (value.shape, value.dtype) else value
    if isinstance(before, list) and isinstance(value, list):
        before[:] = [_filled(*pair) for pair in zip(before, value, strict=False)] + value[len(before) :]
        return before
    if isinstance(before, dict) and isinstance(value, dict):
        filled = {name: _filled(before.get(name), each) for name, each in value.items()}
        before.clear()
        before.update(filled)
        return before
    same = type(value) is type(before) and not isinstance(value, Tensor | tuple) and value == before
    return before if same else value


def _other_attributes(expected: str, got: Any) -> ValueError:
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
    files.check_links(folder, [folder / name for name in OF_FOLDER])
    content = files.read_json(folder / PROGRAM)
    if "program" not in content:
        problem = checks.printable(str(content.get("problem")).partition(". ")[0], 300)
        raise ValueError(
            f"load: expected a program that can be built again in {os.fspath(folder)!r}; got one that could not be "
            f"described when it was saved ({problem}). Build it yourself, and give it its weights: "
            f"checkpoint.load({os.fspath(folder / WEIGHTS)!r}, program)."
        )
    arguments = folder / ARGUMENTS
    return content["program"], files.read(arguments)[0] if arguments.is_file() else {}


def write_weights(path: Path, program: nn.Module) -> None:
    """Writes the weights of a program, and what its modules hold beside them, under names that begin with $."""
    tensors = dict(program.state_dict())
    attributes = pack(attributes_of(program), tensors, files.BESIDE)
    files.write(path, tensors, {"attributes": attributes})


def read_weights(path: Path, program: nn.Module, *, of_run: bool = False) -> None:
    """Gives a program the weights of a file, and what its modules held beside them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another program.

    Args:
        path: the file.
        program: as the saved one was built.
        of_run: whether the file is a checkpoint of a run, which holds more.
    """
    if not isinstance(program, nn.Module):
        raise ValueError(f"load: expected the description of a module; got {type(program).__name__}. Save it again.")
    found, metadata = files.read(path)
    prefix = "program." if of_run else ""
    saved = {n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix) and not n.startswith("$")}
    for name, tensor in tensors_of(program):  # in the precision that it was saved in
        kept = saved.get(name, tensor).dtype
        if tensor.is_floating_point() and kept in _FLOATS:
            tensor.data = tensor.data.to(kept)
    own = dict(tensors_of(program)) if of_run else program.state_dict()
    files.check(path, type(program).__name__, own, saved)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    try:
        attributes = metadata["state"]["attributes"]["program"] if of_run else metadata.get("attributes")
    except (KeyError, TypeError) as error:
        raise _other_attributes("a checkpoint with the attributes of its program", error) from error
    set_attributes(program, unpack(attributes, found))


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, those that no ``state_dict`` has too."""
    return itertools.chain(module.named_parameters(), module.named_buffers())


def _without_numpy(value: Any) -> Any:
    """A number of NumPy as the plain one that a file gives back."""
    return value.item() if isinstance(value, np.generic) else value


def _structure(program: nn.Module) -> dict[str, Any]:
    """What two programs share that are built alike: classes of modules, kinds of what they hold, shapes of tensors."""
    modules: dict[str, Any] = {f"{name or 'it'}": _class_of(module) for name, module in program.named_modules()}
    held = {
        f"{name}.{key}": _kind(value)
        for name, attributes in attributes_of(program).items()
        for key, value in attributes.items()
        if value is not None  # None may have become something
    }
    return modules | held | others_of(program) | {n: (t.shape, t.is_floating_point()) for n, t in tensors_of(program)}


def _class_of(module: nn.Module) -> type:
    """The class of a module; of one with parametrizations, which has a class of its own, that which it had before."""
    return type(module).__mro__[1] if is_parametrized(module) else type(module)


def _kind(value: Any) -> Any:
    kinds = (bool, int, float, str, list, tuple, dict)
    return value.shape if isinstance(value, Tensor) else next(kind for kind in kinds if isinstance(value, kind))


def _check_not_lazy(program: nn.Module) -> None:
    """Raises for weights whose shapes the constructor does not know."""
    lazy = [name for name, tensor in tensors_of(program) if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"Checkpoint: expected a program whose constructor makes all its weights; got lazy ones, {lazy[0]!r}. Use "
            "nn.Linear in place of nn.LazyLinear, and the like."
        )


def _check_registered(program: nn.Module) -> None:
    """Raises for modules in plain containers, whose weights no ``state_dict`` has."""
    known = set(program.modules())
    for name, module in program.named_modules():
        for key, value in vars(module).items():
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if is_own(key) and any(isinstance(each, nn.Module) and each not in known for each in inner):
                raise ValueError(
                    f"Checkpoint: expected every module to be registered; got some in {f'{name}.{key}'.lstrip('.')}, a "
                    f"{type(value).__name__}. Use nn.ModuleList or nn.ModuleDict, so that their weights are saved."
                )
