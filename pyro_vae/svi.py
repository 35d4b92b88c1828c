"""Stochastic variational inference: one optimisation step at a time.

A drop-in for ``pyro.infer.SVI`` that differs in three ways: it takes any ``torch.optim`` optimiser (one fused update
for all parameters), keeps its parameters to itself and leaves Pyro's global param store as it was, and lets Pyro
validate the first step of every shape of arguments, then no more, since validation can double the cost of a step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn, TypeGuard

import pyro
import pyro.infer
import pyro.optim
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_vae.compilation import Compile, Compiler, Precision, Prepare, reduced
from pyro_vae.elbo import Estimator
from pyro_vae.elbo.tracing import PyroProgram
from pyro_vae.optimizers import Joint

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


class SVI:
    """Optimises the parameters of a model and a guide.

    Parameters are found when they are first used, so lazy guides (``pyro.infer.autoguide``) and functions that call
    ``pyro.param`` work too. They live in this object: read those of function programs inside :meth:`scope`.

    Args:
        model: a Pyro program, module or function.
        guide: likewise, taking the same arguments.
        optimizer: makes a ``torch.optim.Optimizer`` from a list of parameters, for instance
            ``functools.partial(torch.optim.Adam, lr=1e-3, fused=True)``; or a ``pyro.optim`` optimiser, which becomes
            one fused torch optimiser where its settings are the same for all parameters.
        loss: any ``pyro.infer.ELBO`` that computes its value, as all but ``pyro.infer.TraceTailAdaptive_ELBO`` do.
        max_grad_norm: clip the gradient of all parameters together to this Euclidean norm; None for no clipping.
        compile: record loss and gradients of a step as one graph and compile it, see :mod:`pyro_vae.compilation`: True
            at once, ``"auto"`` after some thousands of steps, False never.
        prepare: makes the arguments of model and guide from those of :meth:`step`, as part of the compiled step:
            ``dataset.gather``, say, which gathers and binarises a batch.
        precision: of matrix products in :meth:`step`: ``"bfloat16"`` runs the programs under ``torch.autocast``,
            ``"tf32"`` lets a GPU round the factors to 10 bits of mantissa. Importance weights feel it most.
        ema_decay: keep an exponential moving average of all parameters with this decay, .999 say, see
            :meth:`averaged`; None for none (Polyak and Juditsky, "Acceleration of stochastic approximation by
            averaging", 1992, https://doi.org/10.1137/0330046).

    Raises:
        TypeError: ``optimizer`` or ``loss`` is something else; an optimiser that already holds parameters, say.
        ValueError: ``max_grad_norm``, ``ema_decay`` or ``precision`` is out of range, or a parameter is not contiguous.

    Example:
        >>> from functools import partial
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     pyro.sample("z", dist.Normal(loc, 0.5**0.5))
        >>> svi = SVI(model, guide, partial(torch.optim.Adam, lr=0.05), loss=pyro.infer.Trace_ELBO())
        >>> losses = [svi.step(torch.tensor(1.0)) for _ in range(3)]
        >>> len(pyro.get_param_store())
        0
        >>> with svi.scope():
        ...     sorted(pyro.get_param_store())
        ['loc']
    """

    def __init__(
        self,
        model: PyroProgram,
        guide: PyroProgram,
        optimizer: OptimizerFactory | pyro.optim.PyroOptim,
        loss: pyro.infer.ELBO,
        *,
        max_grad_norm: float | None = None,
        compile: Compile = "auto",
        prepare: Prepare | None = None,
        precision: Precision = "float32",
        ema_decay: float | None = None,
    ) -> None:
        if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
            raise TypeError(
                "SVI: expected optimizer a callable from parameters to a torch.optim.Optimizer, or a pyro.optim "
                f"optimiser; got {type(optimizer).__name__}. Pass functools.partial(torch.optim.Adam, lr=1e-3), say."
            )
        if not isinstance(loss, pyro.infer.ELBO):
            raise TypeError(
                f"SVI: expected loss a pyro.infer.ELBO; got {type(loss).__name__}. "
                "Pass pyro_vae.elbo.ELBO() or pyro.infer.Trace_ELBO()."
            )
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(
                f"SVI: expected max_grad_norm above 0; got {max_grad_norm}. Give a positive norm, or None."
            )
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"SVI: expected ema_decay between 0 and 1; got {ema_decay}. Use 0.999, say, or None.")
        for program in (model, guide):
            _check_contiguous(program)
        self.model = model
        self.guide = guide
        self.loss: Any = loss  # Pyro's base class does not declare the methods that all of its estimators have
        self.max_grad_norm = max_grad_norm
        self.prepare = prepare
        self.precision: Precision = precision
        self.ema_decay = ema_decay
        self.num_steps = 0
        self._make_optimizer = Joint.of(optimizer) or optimizer
        self.optimizer: torch.optim.Optimizer | pyro.optim.PyroOptim | None = (
            self._make_optimizer if isinstance(self._make_optimizer, pyro.optim.PyroOptim) else None
        )
        self._averages: dict[Tensor, Tensor] = {}
        self._differentiated: dict[str, Tensor] | None = None
        self._required: list[bool] = []
        self._parameters: dict[str, Tensor] = {}
        self._store: Any = {"params": {}, "constraints": {}}
        self._validated: set[Any] = set()
        self._forwards: tuple[PyroProgram, PyroProgram] | None = None
        self._plain: list[PyroModule] = []
        self.compiler = Compiler(loss, compile, prepare, precision)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Within it, Pyro's global param store holds the parameters of this object, and nothing else."""
        store = pyro.get_param_store()
        with store.scope(self._store):
            try:
                yield
            finally:  # Pyro's scope forgets what was registered before an error, but the optimiser holds it already
                self._store.update(store.get_state())

    def named_parameters(self) -> dict[str, Tensor]:
        """Unconstrained parameters by their name in Pyro's param store; empty before the first step."""
        return dict(self._parameters)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, every parameter has its average over past steps, for evaluation.

        Raises:
            ValueError: without ``ema_decay``, or before the first step.
        """
        if not self._averages:
            raise ValueError(
                f"SVI.averaged: expected averages; got none, with ema_decay={self.ema_decay} after {self.num_steps} "
                "steps. Give ema_decay=0.999, say, and take a step first."
            )
        present = {parameter: parameter.detach().clone() for parameter in self._averages}
        try:
            self._set(self._averages)
            yield
        finally:
            self._set(present)

    @torch.no_grad()
    def _set(self, values: dict[Tensor, Tensor]) -> None:
        for parameter, value in values.items():
            parameter.copy_(value)

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Runs the programs once, so that parameters and optimiser exist before the first step.

        Only needed to reach :attr:`optimizer` before that, for a learning-rate schedule say. Leaves the random number
        generators as they were.
        """
        with torch.random.fork_rng(devices=_cuda_devices(args)), self.scope():
            with torch.no_grad():
                args = self._prepared(args)
                trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
                poutine.replay(self.model, trace=trace)(*args, **kwargs)
            self._adopt_new_parameters()

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Takes one gradient step; arguments are passed to model and guide.

        Returns:
            The loss before the step, summed over the data, in nats. Of a loss in two parts, one for the model and one
            for the guide (``pyro.infer.ReweightedWakeSleep``), the sum, whose gradient the step follows.

        Raises:
            FloatingPointError: the loss is NaN or infinite, naming the sites and parameters that are; parameters are
                left as they were.
        """
        loss = float(self.advance(*args, **kwargs))
        if not math.isfinite(loss):
            self.refuse(loss, *args, **kwargs)
        return loss

    def advance(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """Takes a step as :meth:`step` does, but does not wait for a GPU.

        Returns:
            The loss, as a scalar tensor where the step is a CUDA graph. There a loss that is not finite leaves the
            parameters as they were, and is the caller's to find.
        """
        if not self.compiler.serves(self.loss):  # the user has changed it
            auto_steps = self.compiler.auto_steps
            self.compiler = Compiler(self.loss, self.compiler.mode, self.prepare, self.precision)
            self.compiler.auto_steps = auto_steps
        loss: Tensor | float
        try:
            repeated = self.compiler.repeat(self._trained(), args, kwargs, self.optimizer, self._update)
            if repeated is None:
                with self.scope():
                    with self._validation(args, kwargs):
                        loss, updated = self._loss_and_grads(args, kwargs)
                    self._adopt_new_parameters()
            else:
                loss, updated = repeated
            if not updated:
                loss = float(loss)
                if not math.isfinite(loss):
                    self.refuse(loss, *args, **kwargs)
                self._update()
        finally:  # also after Ctrl-C: the next step would add to what is left
            for parameter in self._parameters.values():
                parameter.grad = None
        self.num_steps += 1
        return loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss, without a gradient step."""
        with self.scope(), torch.no_grad(), self._validation(args, kwargs):
            loss = self.loss.loss(self.model, self.guide, *self._prepared(args), **kwargs)
        return _number(loss)

    def _loss_and_grads(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | float, bool]:
        """The loss, and whether parameters are updated already."""
        programs = self._programs()
        if _shapes(args, kwargs) in self._validated:  # the first step is eager: it finds parameters, and is validated
            compiled = self.compiler.run(programs, self._trained(), args, kwargs, self.optimizer, self._update)
            if compiled is not None:
                return compiled
        with self._reduced(args):
            return _number(self.loss.loss_and_grads(*programs, *self._prepared(args), **kwargs)), False

    def _trained(self) -> dict[str, Tensor]:
        """Parameters to differentiate by; the same dictionary as long as they are the same."""
        required = [p.requires_grad for p in self._parameters.values()]
        if self._differentiated is None or required != self._required:
            self._required = required
            by_identity = {p: name for name, p in self._parameters.items() if p.requires_grad}
            self._differentiated = {name: p for p, name in by_identity.items()}
        return self._differentiated

    def _prepared(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The programs' arguments of a step's."""
        return args if self.prepare is None else self.prepare(*args)

    def _reduced(self, args: tuple[Any, ...]) -> AbstractContextManager[None]:
        device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
        return reduced(self.precision, device)

    def _programs(self) -> tuple[PyroProgram, PyroProgram]:
        """Model and guide; without their parameter statements where these would tell us nothing new.

        A ``PyroModule`` declares each of its parameters to Pyro's handlers at every use, a tenth of a small step. Once
        the optimiser holds every parameter of the modules, and these are nothing but modules' parameters, it is enough
        to run ``forward``. Pyro's own estimators look for the declarations before they differentiate, so they get them.
        """
        if not isinstance(self.loss, Estimator):
            return self.model, self.guide
        if self._forwards is None:  # made once: estimators remember what they know of a program by its identity
            self._forwards = _forward(self.model), _forward(self.guide)
            self._plain = [module for module in (self.model, self.guide) if _is_plain(module)]
        own = {id(parameter) for module in self._plain for parameter in module.parameters()}
        declared = {id(parameter) for parameter in self._parameters.values()}
        return self._forwards if own and own == declared else (self.model, self.guide)

    def _update(self) -> None:
        # A tensor registered under two names, by a module that model and guide share, is clipped and moved once.
        parameters = list(dict.fromkeys(self._parameters.values()))
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if isinstance(self.optimizer, pyro.optim.PyroOptim):
            with self.scope():  # it asks for the parameters' names
                self.optimizer([p for p in parameters if p.grad is not None])
        elif self.optimizer is not None:
            self.optimizer.step()
        if self.ema_decay is not None:
            with torch.no_grad():
                old = [p for p in parameters if p in self._averages]
                if old:
                    get_ema_multi_avg_fn(self.ema_decay)([self._averages[p] for p in old], old, 0)
                self._averages |= {p: p.detach().clone() for p in parameters if p not in self._averages}

    def _adopt_new_parameters(self) -> None:
        """Gives the optimiser the parameters that the programs have registered since the last step."""
        store = pyro.get_param_store()
        if len(store) == len(self._parameters):
            return
        known = {id(parameter) for parameter in self._parameters.values()}
        if isinstance(self.optimizer, torch.optim.Optimizer):  # the user may have added a group
            known |= {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        named = dict(store.named_parameters())
        # A tensor registered under two names is one parameter, and one without gradient is none.
        new = list({id(p): p for p in named.values() if id(p) not in known and p.requires_grad}.values())
        self._parameters = named
        self._differentiated = None
        if not new or isinstance(self.optimizer, pyro.optim.PyroOptim):
            return
        if self.optimizer is None:
            self.optimizer = self._make_optimizer(new)
        else:
            self.optimizer.add_param_group({"params": new})
            if isinstance(self._make_optimizer, Joint):
                self._make_optimizer.share(self.optimizer, new)

    @contextlib.contextmanager
    def _validation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        """Leaves Pyro's validation as the user set it for the first call of a shape, and off after that."""
        key = _shapes(args, kwargs)
        if key in self._validated:
            with pyro.validation_enabled(False):
                yield
        else:
            yield
            self._validated.add(key)

    def refuse(self, loss: float, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises the error for a loss of :meth:`advance` that is not finite, after looking for where it comes from."""
        with self.scope():
            self._refuse(loss, args, kwargs)

    def _refuse(self, loss: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        parameters = [name for name, p in self._parameters.items() if not bool(torch.isfinite(p).all())]
        with torch.no_grad(), pyro.validation_enabled(False):
            args = self._prepared(args)
            guide_trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*args, **kwargs)
            sites = []
            for role, trace in (("guide", guide_trace), ("model", model_trace)):
                trace.compute_log_prob()
                sites += [
                    f"{name!r} of the {role}"
                    for name, site in trace.nodes.items()
                    if site["type"] == "sample" and not bool(torch.isfinite(site["log_prob_sum"]))
                ]
        raise FloatingPointError(
            f"SVI: expected a finite loss at step {self.num_steps}; got {loss}. Sites with a log-density that is not "
            f"finite: {', '.join(sites) or 'none when run again'}. Parameters that are not finite: "
            f"{', '.join(parameters) or 'none'}. Lower the learning rate, clip gradients (max_grad_norm), or bound "
            "the scale that runs away."
        )


def _is_plain(program: PyroProgram) -> TypeGuard[PyroModule]:
    """Whether a program is a PyroModule without ``PyroParam`` or ``PyroSample`` anywhere in it."""
    return isinstance(program, PyroModule) and not any(
        module._pyro_params or module._pyro_samples for module in program.modules() if isinstance(module, PyroModule)
    )


def _check_contiguous(program: PyroProgram) -> None:
    """Refuses parameters of which Pyro's param store would hold, and train, a copy: channels-last weights, say."""
    for name, parameter in program.named_parameters() if isinstance(program, nn.Module) else ():
        if parameter.requires_grad and not parameter.is_contiguous():
            raise ValueError(
                f"SVI: expected contiguous parameters; got {name} of strides {parameter.stride()}. Pyro's param store "
                "would train a copy: use parameter.data = parameter.data.contiguous()."
            )


def _forward(program: PyroProgram) -> PyroProgram:
    return partial(nn.Module.__call__, program) if _is_plain(program) else program


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    return tuple((a.shape, a.dtype) if isinstance(a, Tensor) else None for a in (*args, *kwargs.values()))


def _number(loss: Any) -> float:
    return sum(map(float, loss)) if isinstance(loss, tuple) else float(loss)


def _cuda_devices(args: tuple[Any, ...]) -> list[int]:
    """Indices of the CUDA devices that the arguments lie on."""
    return sorted({a.device.index for a in args if isinstance(a, Tensor) and a.is_cuda})
