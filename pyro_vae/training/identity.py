"""What makes a run the one that it is: program, data, loss, optimizer and settings, as JSON that can be compared."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.optim
import torch
from torch import nn

from pyro_vae import checks
from pyro_vae.checkpoint.files import bytes_of
from pyro_vae.checkpoint.fingerprints import class_of, described, others_of
from pyro_vae.checkpoint.programs import attributes_of, tensors_of
from pyro_vae.data import Dataset, Stream
from pyro_vae.training.run import Run
from pyro_vae.version import __version__

_MAY_DIFFER = {"epochs", "steps", "threads"}
"""What a run that goes on may have otherwise: its length, and what only bears on the last bits of its numbers."""
_MAY_CHANGE = {"nonfinite", "max_grad_norm"}
"""What it may be given for the steps to come, with a warning: the remedies for a step that is not finite."""


def identity(run: Run) -> dict[str, Any]:
    """What makes a run the one that it is, so that another one does not go on in its place."""
    optimizer, scheduler = run.svi.optimizer, run.scheduler
    program = run.program
    settings = run.history.settings
    return {
        "versions": versions(run),
        "settings": {
            "train": fingerprint(run.train),
            "validation": fingerprint(run.validation),
            "program": {
                "class": class_of(type(program)),
                "holds": None if isinstance(program, nn.Module) else described(program),
                "modules": {
                    name: {
                        "classes": {n: class_of(type(each)) for n, each in module.named_modules()},
                        "settings": attributes_of(module, tensors=False),
                        "others": others_of(module),
                        "tensors": {n: list(t.shape) for n, t in tensors_of(module)},
                    }
                    for name, module in run.modules().items()
                },
                "functions": [described(f) for f in (program.model, program.guide) if not isinstance(f, nn.Module)],
            },
            "loss": described(run.svi.loss),
            "optimizer": [type(optimizer).__qualname__, _settings_of(optimizer)],
            "scheduler": described(scheduler),
            "beta": described(run.beta),
            **{name: settings[name] for name in ("epochs", "steps", "batch_size", "seed")},
            "drop_last": run.budget.drop_last,
            "patience": run.stopping and run.stopping.patience,
            "max_grad_norm": run.svi.max_grad_norm,
            "ema_decay": run.svi.ema_decay,
            "accumulate": run.accumulate,
            "nonfinite": run.nonfinite,
            "precision": run.svi.precision,
            "compile": run.svi.compiler.mode,
        },
    }


def _settings_of(optimizer: Any) -> Any:
    """The settings of an optimizer, of torch or of Pyro, without its state."""
    if isinstance(optimizer, pyro.optim.PyroOptim):
        return described([optimizer.pt_optim_constructor, optimizer.pt_optim_args, optimizer.pt_clip_args])
    groups = getattr(optimizer, "param_groups", [])
    settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    return described(settings[0] if len(settings) == 1 else settings)


def fingerprint(dataset: Dataset | Stream | None) -> Any:
    """What tells a data set from others: shape, how it is read, a checksum of values; of a stream, of its sample's."""
    if dataset is None:
        return None
    if isinstance(dataset, Stream):
        source, sample = dataset.source.fingerprint(), fingerprint(dataset.sample)
        return {**sample, "shape": [len(dataset), *dataset.event_shape], "source": source}
    digest = hashlib.sha256()
    for tensor in (dataset.images, *dataset.context):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor.cpu().contiguous()))
    return {
        "shape": list(dataset.images.shape),
        "levels": dataset.levels,
        "columns": None if dataset.table is None else [[c.name, c.kind, list(c.values)] for c in dataset.table.columns],
        "binarization": dataset.binarization,
        "sha256": digest.hexdigest(),
    }


def versions(run: Run) -> dict[str, Any]:
    """What else the last bits of a run's numbers hang on."""
    return {
        "pyro_vae": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "device": run.train.device.type,
        "threads": torch.get_num_threads(),
    }


def _as_json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return value


def check_same(former: Mapping[str, Any], present: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Raises for a run that is another one than the folder's.

    Args:
        former: the identity of the folder's run.
        present: that of this one.
        kept: what its modules held at its last checkpoint, as this one's may in the process that it was begun in.

    Raises:
        ValueError: naming what differs.
    """
    present = _as_json(present)
    if former.keys() != present.keys() or not all(isinstance(each, dict) for each in former.values()):
        raise ValueError(
            f"fit: expected a run with {' and '.join(present)}; got {sorted(former)!r:.80}. Begin anew in "
            "another folder."
        )
    differing: dict[str, list[str]] = {"refused": [], "changed": []}
    for name, before, now in _differences("", former, present):
        setting = name.split(".")[1]
        if setting not in _MAY_DIFFER and not _as_kept(name, now, kept):
            words = (
                f"{name.partition('.')[2]} {checks.printable(repr(before), 60)}, now {checks.printable(repr(now), 60)}"
            )
            differing["changed" if setting in _MAY_CHANGE else "refused"].append(words)
    if differing["refused"]:
        raise ValueError(
            "fit: expected the run that the folder holds; got another one: "
            f"{checks.printable('; '.join(differing['refused'][:5]), 1000)}. Ask for what it was begun with; or begin "
            "another run from its weights, pyro_vae.load(...) and a folder of its own. resume='weights' does so in "
            "this one, and removes its history and checkpoints."
        )
    if differing["changed"]:
        warnings.warn(
            f"fit goes on with {checks.printable('; '.join(differing['changed']), 500)}: its numbers are no longer "
            "those of the run as it was begun.",
            stacklevel=6,
        )
    if (threads := former["versions"].get("threads")) != present["versions"]["threads"]:
        warnings.warn(
            f"fit: the run was begun with {threads!r:.60} threads, and goes on with "
            f"{present['versions']['threads']}: sums are rounded otherwise, so that its numbers are not those of an "
            "undisturbed run to the last bit. Use torch.set_num_threads to have the same.",
            stacklevel=6,
        )


def _as_kept(name: str, now: Any, kept: Mapping[str, Any]) -> bool:
    """Whether a setting of a module is what a callback had made of it."""
    found = re.fullmatch(r"settings\.program\.modules\.(\w+)\.settings\.(.*)\.(\w+)", name)
    held = kept.get(found[1]) if found else None
    return isinstance(held, Mapping) and found is not None and held.get(found[2], {}).get(found[3], name) == now


def _differences(path: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        found = (_differences(f"{path}.{n}" if path else n, before.get(n), now.get(n)) for n in names)
        return [each for some in found for each in some]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        found = (_differences(path, b, n) for b, n in zip(before, now, strict=True))  # such as ["Adam", {"lr": ...}]
        return [each for some in found for each in some]
    same = before == now or (before != before and now != now)  # NaN
    return [] if same else [(path, before, now)]
