"""The parameters of a model and a guide, where Pyro's programs find them, and their averages."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_vae.distributed import is_sharded, settle_shards
from pyro_vae.traces.modules import Binding, bindings_of, is_bound, roots_of


class Parameters:
    """What the programs have registered, by name in Pyro's param store.

    Parameters of the programs' modules are the modules' own, and Pyro's global store holds them only within
    :meth:`scope`: two programs that name a module alike would share an entry there, and one of them would silently stay
    untrained. Parameters of ``pyro.param`` statements live in the global store, where users of Pyro and other programs
    look for them, unless they are isolated.

    Args:
        programs: model, guide, and the modules that the loss calls, at the time of asking.
        isolated: keep the parameters of ``pyro.param`` statements here too.

    Attributes:
        named: unconstrained parameters by name.
        held: identities of the parameters of the programs' modules, as of the last :meth:`refresh`.
    """

    def __init__(self, programs: Callable[[], tuple[Any, ...]], *, isolated: bool = False) -> None:
        self.named: dict[str, Tensor] = {}
        self.held: set[int] = set()
        self._programs = programs
        self._former: tuple[Any, ...] = ()
        self._bindings: list[Binding] = []
        self._roots: list[nn.Module] = []
        self._buffers: list[Tensor] = []
        self._isolated = isolated
        self._own = _state()
        self._of_modules: set[str] = set()
        self._averages: dict[Tensor, Tensor] = {}

    def module_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the programs' modules, by their name in these; with the module's where several share it."""
        own = [(i, name, p) for i, root in enumerate(self._roots, 1) for name, p in root.named_parameters()]
        count = Counter(name for _, name, _ in own)
        kinds = [type(root).__name__ for root in self._roots]
        return {
            name if count[name] == 1 else f"{name} of module {i} of {len(kinds)}, a {kinds[i - 1]}": p
            for i, name, p in own
        }

    def buffers(self) -> list[Tensor]:
        """The buffers of the programs' modules, as of the last :meth:`refresh`."""
        return self._buffers

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Context manager in which Pyro's param store holds what the programs see, and nothing of other modules."""
        store = pyro.get_param_store()
        outside, seen = store.get_state(), _state()
        if not self._isolated:
            _move(outside, seen, [name for name, p in outside["params"].items() if self._shares(name, p)])
        _move(self._own, seen, self._own["params"])
        after = seen
        try:
            with store.scope(seen):
                try:
                    yield
                finally:  # also what was registered before an error, since the optimizer may hold it already
                    after = store.get_state()
        finally:
            if any(isinstance(p, nn.Parameter) and id(p) not in self.held for p in after["params"].values()):
                self._look()  # a lazy guide has made them
            own = [name for name, p in after["params"].items() if self._isolated or id(p) in self.held]
            self._own = _move(after, _state(), own)
            store.set_state(_move(after, _state(), after["params"].keys() - self._own["params"].keys()))

    def _shares(self, name: str, parameter: Tensor) -> bool:
        """Whether an entry of the global store is for these programs: any but that of another program's module."""
        if not isinstance(parameter, nn.Parameter) or (name in self.named and name not in self._own["params"]):
            return True
        # pyro.module writes "name$$$parameter", a PyroModule of a name "name.parameter" and one without "parameter".
        return not ("$$$" in name or "." in name or any(name == own for root in self._roots for own in _names(root)))

    def refresh(self) -> bool:
        """Looks at the programs' modules, and forgets parameters that were replaced; whether there were any."""
        programs = self._programs()
        if programs != self._former or not all(map(is_bound, self._bindings)):
            self._former, self._bindings, self._roots = programs, bindings_of(programs), roots_of(programs)
        self._look()
        own, current = self._own["params"], dict(pyro.get_param_store().named_parameters())
        gone = [name for name in self._of_modules if id(self.named[name]) not in self.held]
        gone += [name for name, p in self.named.items() if name not in own and current.get(name) is not p]
        self._of_modules.difference_update(gone)
        for name in gone:
            del self.named[name]
            if name in own:
                del own[name], self._own["constraints"][name]
        return bool(gone)

    def _look(self) -> None:
        settle_shards(self._roots)
        self._buffers = [buffer for root in self._roots for buffer in root.buffers()]
        self.held = {id(parameter) for root in self._roots for parameter in root.parameters()}

    def in_store(self) -> bool:
        """Whether Pyro's global store has the parameters that it had; fast, for steps that look at no program."""
        if len(self.named) == len(self._own["params"]):
            return True
        own, current = self._own["params"], dict(pyro.get_param_store().named_parameters())
        return all(name in own or current.get(name) is p for name, p in self.named.items())

    def adopt(self, declared: set[str]) -> list[Tensor]:
        """Takes in what the programs have registered; to be called within the scope.

        Args:
            declared: names of the ``pyro.param`` statements that were run.

        Returns:
            New parameters with a gradient.
        """
        known = {id(parameter) for parameter in self.named.values()}
        if len(pyro.get_param_store()) > len(self.named):
            self._look()
        for name, parameter in pyro.get_param_store().named_parameters():
            if name in declared or id(parameter) in self.held:
                self.named[name] = parameter
                if id(parameter) in self.held:
                    self._of_modules.add(name)
        # A tensor registered under two names is one parameter, and one without gradient is none.
        return list({id(p): p for p in self.named.values() if id(p) not in known and p.requires_grad}.values())

    def average(self, decay: float) -> None:
        """Updates the exponential moving average of all parameters."""
        with torch.no_grad():
            parameters = list(dict.fromkeys(self.named.values()))
            old = [p for p in parameters if p in self._averages]
            for alike in [[p] for p in old] if any(map(is_sharded, old)) else [old] if old else []:
                get_ema_multi_avg_fn(decay)([self._averages[p] for p in alike], alike, 0)
            self._averages |= {p: p.detach().clone() for p in parameters if p not in self._averages}

    def keep_precision(self) -> None:
        """Gives the averages the precision that the parameters have now."""
        self._averages = {p: average.to(p.dtype) for p, average in self._averages.items()}

    @property
    def are_sharded(self) -> bool:
        """Whether ranks have parts of some of them each."""
        return any(map(is_sharded, self.named.values()))

    @property
    def has_averages(self) -> bool:
        """Whether :meth:`average` was called."""
        return bool(self._averages)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager in which every parameter has its average."""
        present = {parameter: parameter.detach().clone() for parameter in self._averages}
        try:
            restore(self._averages.items())
            yield
        finally:
            restore(present.items())


class Declared(Messenger):
    """Notes the names of the ``pyro.param`` statements that are run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_post_param(self, msg: Any) -> None:
        self.names.add(msg["name"])


@torch.no_grad()
def restore(before: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Gives tensors the values that were kept of them.

    Args:
        before: tensors with their copies.
    """
    for tensor, value in before:
        tensor.copy_(value)


def _names(root: nn.Module) -> set[str]:
    return {name.removesuffix("_unconstrained") for name, _ in root.named_parameters()}


def _state() -> Any:
    """A state of Pyro's param store without parameters."""
    return {"params": {}, "constraints": {}}


def _move(source: Any, target: Any, names: Iterable[str]) -> Any:
    """Copies entries of one state of a param store to another, which it returns."""
    for name in names:
        for part in ("params", "constraints"):
            if name in source[part]:  # of a run that goes on, the statement is yet to bring the constraint
                target[part][name] = source[part][name]
    return target
