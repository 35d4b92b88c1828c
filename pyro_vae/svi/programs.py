"""Model and guide of a step: which can be trained, and how a step calls them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TypeGuard

from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.internals import without_pyro_parameters
from pyro_vae.traces.tracing import PyroProgram


def trainable(role: str, program: PyroProgram) -> PyroProgram:
    """A program, once it is known to be one that can be trained.

    Args:
        role: what it is, for messages: model or guide.
        program: a module or a function.

    Raises:
        TypeError: it is neither.
        ValueError: it has parameters of which Pyro's param store would train a copy: for example channels-last weights.
    """
    if not callable(program):
        raise TypeError(
            f"SVI: expected {role} a Pyro program; got {type(program).__name__}. Pass a module or a function."
        )
    for name, parameter in program.named_parameters() if isinstance(program, nn.Module) else ():
        if parameter.requires_grad and not parameter.is_contiguous():
            raise ValueError(
                f"SVI: expected contiguous parameters; got {name} of strides {parameter.stride()}. Pyro's param store "
                "would train a copy: use parameter.data = parameter.data.contiguous()."
            )
    return program


class Forwards:
    """Model and guide without their parameter statements.

    A ``PyroModule`` declares each of its parameters to Pyro's handlers at every use, a tenth of a small step. Once the
    optimizer holds every parameter of the modules, and these are nothing but modules' parameters, it is enough to run
    ``forward``. Pyro's own estimators look for the declarations before they differentiate, so they get them.

    Args:
        programs: model and guide.

    Attributes:
        programs: what to call in their place, made once: estimators remember what they know of a program by its
            identity.
    """

    def __init__(self, programs: tuple[PyroProgram, PyroProgram]) -> None:
        model, guide = programs
        self.programs = _forward(model), _forward(guide)
        self._plain = [program for program in programs if _is_plain(program)]

    def suffice(self, named: Mapping[str, Tensor]) -> bool:
        """Whether the statements would register nothing beside these parameters."""
        own = {id(parameter) for module in self._plain for parameter in module.parameters()}
        return bool(own) and own == {id(parameter) for parameter in named.values()}


def _is_plain(program: PyroProgram) -> TypeGuard[PyroModule]:
    """Whether a program is a PyroModule without ``PyroParam`` or ``PyroSample`` anywhere in it."""
    return isinstance(program, PyroModule) and all(
        without_pyro_parameters(module) for module in program.modules() if isinstance(module, PyroModule)
    )


def _forward(program: PyroProgram) -> PyroProgram:
    return partial(nn.Module.__call__, program) if _is_plain(program) else program
