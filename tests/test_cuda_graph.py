"""What a GPU would do, without one: which operations a CUDA graph gets, and in which order CUDA is called.

A step is recorded on the device "meta", whose tensors have no values: what reads one, or copies one to the CPU, raises,
and what the CPU computes instead shows in the record.
"""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from test_compilation_parity import COMPARED, ESTIMATORS, build
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import internals
from pyro_vae.compilation.reasons import unrepeatable
from pyro_vae.compilation.step import Step
from pyro_vae.elbo import Estimator
from pyro_vae.traces.modules import modules_of

META = torch.device("meta")


def record(programs: tuple[Any, Any], loss: Any, *args: Tensor) -> GraphModule:
    """Loss and gradients of a step on the device "meta", whose structure was learned on the CPU."""
    gradient = loss.gradient if isinstance(loss, Estimator) else None
    modules = modules_of([*programs, *(gradient.modules() if gradient is not None else ())])
    with internals.one_fake_mode(), internals.without_sample_checks(), pyro.validation_enabled(False):
        with pyro.get_param_store().scope({"params": {}, "constraints": {}}):
            loss.loss(*programs, *args)
        for module in modules:
            module.to(META)
        for part in gradient.parts() if gradient is not None else ():
            vars(part).update({name: v.to(META) for name, v in vars(part).items() if isinstance(v, Tensor)})
        args = tuple(arg.to(META) for arg in args)
        with pyro.get_param_store().scope({"params": {}, "constraints": {}}):
            poutine.replay(programs[0], poutine.trace(programs[1]).get_trace(*args))(*args)
            parameters = dict(pyro.get_param_store().named_parameters())
            step = Step(loss, programs, modules, parameters, args, {})

            def recorded(*_: Tensor) -> list[Tensor]:
                value, gradients = step()
                return [value, *(g for g in gradients if g is not None)]

            return make_fx(recorded)(*step.inputs)


@pytest.mark.parametrize(("program", "estimator"), COMPARED)
def test_unrepeatable_finds_nothing_in_a_step(program: str, estimator: str) -> None:
    programs, args = build(program, torch.float32)
    assert unrepeatable(record(programs, ESTIMATORS[estimator](), *args), META) == ""
