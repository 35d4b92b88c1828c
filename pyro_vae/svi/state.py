"""Everything of an SVI that a later process needs to take the very steps that this one would have taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import pyro.optim
import torch
from torch import Size, Tensor, nn

from pyro_vae import internals
from pyro_vae.checks import is_plain, printable
from pyro_vae.elbo.gradients import Gradient
from pyro_vae.svi.optimizer_state import OptimizerCheck
from pyro_vae.svi.optimizers import FusedOptimizer, held_by
from pyro_vae.svi.svi import SVI

State = dict[str, Any]
_REPLACED = "replaced"


def state_of(svi: SVI, modules: Mapping[str, nn.Module]) -> State:
    """What steps change: parameters, buffers, optimizer, averages, baselines, and what is known of shapes.

    Args:
        svi: after :meth:`SVI.initialize` or a step.
        modules: the programs, by names that are the same in every process, as those of Pyro's store are not.
    """
    names = _Names(svi, modules)
    optimizer = svi.optimizer
    calls: dict[Any, set[str]] = dict(svi._calls.declared)  # by the shapes and the names of arguments
    state: State = {
        "num_steps": svi.num_steps,
        "parameters": names.present(),
        "trainable": {name: tensor.requires_grad for name, tensor in names.present().items()},
        "averages": {names[p]: average for p, average in svi.parameters._averages.items() if p in names},
        "moved": [names[p] for p in svi._update.moved if p in names],
        "loss": [[type(part).__qualname__, _plain(part)] for part in _parts_of_loss(svi)],
        "validated": [[_shape_of(each) for each in key] for key in svi._calls.validated],
        "declared": [
            [[_shape_of(each) for each in shapes], [names.stable[name] for name in declared if name in names.stable]]
            for (shapes, keywords), declared in calls.items()
            if not keywords
        ],
        "compiler": {
            "steps": [[list(map(list, shapes)), count] for shapes, count in svi.compiler.steps.items()],
            "gave_up": svi.compiler.gave_up,
        },
    }
    if isinstance(optimizer, torch.optim.Optimizer):
        # A parameter that was replaced stays with the optimizer; of it no run can go on, but its checkpoints are whole.
        state["groups"] = [
            [names[p] if p in names else _REPLACED for p in group["params"]]  # noqa: SIM401 - no dictionary
            for group in optimizer.param_groups
        ]
        state["optimizer"] = optimizer.state_dict()
    elif isinstance(optimizer, pyro.optim.PyroOptim):
        with svi.scope():
            waiting = {**internals.waiting_state(optimizer), **optimizer.get_state()}
        state["optimizer"] = {names.stable[name]: each for name, each in waiting.items() if name in names.stable}
    return state


def names_of(svi: SVI, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers by names that are the same in another process."""
    return _Names(svi, modules).present()


@torch.no_grad()
def restore(svi: SVI, modules: Mapping[str, nn.Module], state: State) -> None:
    """Gives an SVI the state of another one, of the same programs, loss and optimizer.

    Args:
        svi: after :meth:`SVI.initialize`.
        modules: as :func:`state_of` was given.
        state: what it returned.

    Raises:
        ValueError: the parameters are others.
    """
    _register_late_parameters(svi, _Names(svi, modules), state)
    names = _Names(svi, modules)
    present = names.present()
    differing = [
        n for n in present.keys() | state["parameters"].keys() if _kind(present, n) != _kind(state["parameters"], n)
    ]
    if differing:
        others = printable(", ".join(sorted(differing)[:5]), 500)
        raise ValueError(
            f"fit: expected the parameters and buffers of the run; got others: {others}. Build the "
            "program as it was, or use resume='weights'."
        )
    for name, tensor in present.items():
        tensor.requires_grad_(state["trainable"][name])
        tensor.copy_(state["parameters"][name])
    _check_counts(state["num_steps"], *(count for _, count in state["compiler"]["steps"]))
    if other := [name for name, average in state["averages"].items() if average.shape != present[name].shape]:
        raise ValueError(f"averages of other shapes, {', '.join(other[:5])}")
    svi.num_steps = state["num_steps"]
    svi.parameters._averages = {present[name]: average.to(present[name]) for name, average in state["averages"].items()}
    svi._update.moved = {present[name] for name in state["moved"]}
    _restore_loss(svi, next(iter(present.values())).device, state["loss"])
    svi._calls.validated = {tuple(map(_as_shape, key)) for key in state["validated"]}
    store = {stable: name for name, stable in names.stable.items()}
    svi._calls.declared = {
        (tuple(map(_as_shape, shapes)), ()): {store[name] for name in declared if name in store}
        for shapes, declared in state["declared"]
    }
    svi.compiler.steps.clear()
    svi.compiler.steps.update({tuple(map(Size, shapes)): count for shapes, count in state["compiler"]["steps"]})
    if state["compiler"]["gave_up"]:
        svi.compiler.give_up()
    _restore_optimizer(svi, present, store, state)


def _restore_loss(svi: SVI, device: torch.device, saved: list[Any]) -> None:
    parts = list(_parts_of_loss(svi))
    kinds, former = [type(part).__qualname__ for part in parts], [kind for kind, _ in saved]
    if kinds != former:
        wanted = printable(", ".join(map(str, former)))
        raise ValueError(
            f"fit: expected a loss made of {wanted}, as when the run's checkpoint was written; got one of "
            f"{', '.join(kinds)}. A gradient that a callback puts in place is not kept: give it from the start, or use "
            "resume='weights'."
        )
    for part, (_, values) in zip(parts, saved, strict=True):
        vars(part).update({n: v.to(device) if isinstance(v, Tensor) else v for n, v in values.items()})


def _restore_optimizer(svi: SVI, present: dict[str, Tensor], store: dict[str, str], state: State) -> None:
    optimizer = svi.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        held = held_by(optimizer)
        for group in state["groups"]:
            if new := [present[n] for n in group if n in present and id(present[n]) not in held]:
                optimizer.add_param_group({"params": new})
        order = [p for group in optimizer.param_groups for p in group["params"]]
        if list(map(id, order)) != [id(present.get(name)) for group in state["groups"] for name in group]:
            raise ValueError(
                "fit: expected the optimizer's parameters in the order of the run; got another, or the run replaced "
                "some. Build the optimizer as it was, or use resume='weights'."
            )
        check = OptimizerCheck(optimizer)
        optimizer.load_state_dict(state["optimizer"])
        check(optimizer)
        if isinstance(svi._update.make, FusedOptimizer):
            svi._update.make.share(optimizer, order)
    elif isinstance(optimizer, pyro.optim.PyroOptim):
        for parameter in svi.parameters.named.values():  # those that it has keep their own state
            optimizer.optim_objs.pop(parameter, None)
        optimizer.set_state({store[name]: each for name, each in state["optimizer"].items()})


def _check_counts(*counts: object) -> None:
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts of steps that are none")


def _register_late_parameters(svi: SVI, names: _Names, state: State) -> None:
    """Registers parameters that came up in the first step or later, where the programs will look for them."""
    known = names.present()
    late = [name for name in state["parameters"] if name.startswith("param.") and name not in known]
    if any(name.startswith("baseline") for group in state.get("groups", ()) for name in group):
        with svi.scope():
            svi.loss.gradient.declare()
            svi.parameters.adopt(set())
    if late:
        with svi.scope():
            store = pyro.get_param_store()
            for name in late:
                value = state["parameters"][name].clone().requires_grad_(True)
                # Without a constraint: the program's statement brings it.
                store.set_state({"params": {name.removeprefix("param."): value}, "constraints": {}})
            svi.parameters.adopt({name.removeprefix("param.") for name in late})


class _Names:
    """Names of tensors that are the same in every process.

    Attributes:
        stable: names by those in Pyro's param store.
    """

    def __init__(self, svi: SVI, modules: Mapping[str, nn.Module]) -> None:
        self._by_identity: dict[int, tuple[str, Tensor]] = {}
        for prefix, module in modules.items():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                self._by_identity.setdefault(id(tensor), (f"{prefix}.{name}", tensor))
        for name, tensor in svi.parameters.named.items():
            self._by_identity.setdefault(id(tensor), (f"param.{name}", tensor))
        self.stable = {name: self._by_identity[id(tensor)][0] for name, tensor in svi.parameters.named.items()}

    def __getitem__(self, tensor: Tensor) -> str:
        return self._by_identity[id(tensor)][0]

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._by_identity

    def present(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return dict(self._by_identity.values())


def _parts_of_loss(svi: SVI) -> Iterator[Any]:
    yield svi.loss
    gradient = getattr(svi.loss, "gradient", None)
    if isinstance(gradient, Gradient):
        yield from gradient.parts()


def _plain(part: object) -> dict[str, Any]:
    """Numbers, words, tensors and containers of these that an object holds: settings that change, running means."""
    return {name: value for name, value in vars(part).items() if name != "_name" and is_plain(value, Tensor)}


def _shape_of(value: Any) -> Any:
    """A shape and type as JSON, or None."""
    return [list(value[0]), str(value[1]).removeprefix("torch.")] if isinstance(value, tuple) else value


def _as_shape(value: Any) -> Any:
    return (Size(value[0]), getattr(torch, value[1])) if isinstance(value, list) else value


def _kind(tensors: Mapping[str, Tensor], name: str) -> Any:
    return (tensors[name].shape, tensors[name].dtype) if name in tensors else None
