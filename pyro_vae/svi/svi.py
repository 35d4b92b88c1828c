"""Stochastic variational inference: one optimization step at a time.

A drop-in for ``pyro.infer.SVI`` that differs in three ways: it takes any ``torch.optim`` optimizer (one fused update
for all parameters), leaves the parameters of modules to their modules and nothing of them in Pyro's global param store,
and lets Pyro validate the first step of every shape of arguments, then no more, since validation can double the cost of
a step. Beyond that it accounts for what it trains: a tensor that takes part in the loss and that no step would move is
an error, and so is an optimizer that does not hold what it was given.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn, get_args

import pyro
import pyro.infer
import pyro.optim
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae import checks
from pyro_vae.compilation import Compile, Compiler, Leaves, Precision, Prepare, reduced
from pyro_vae.distributed import Ranks, is_sharded
from pyro_vae.elbo import Estimator
from pyro_vae.internals import tree_leaves
from pyro_vae.svi.accounting import account, check_inside, check_shards, check_sum, set_aside, site_scales
from pyro_vae.svi.calls import Calls, cuda_devices, out_of_inference
from pyro_vae.svi.diagnosis import check_gradients, diagnosis
from pyro_vae.svi.losses import as_number, is_sound, with_methods
from pyro_vae.svi.optimizers import one_of
from pyro_vae.svi.parameters import Declared, Parameters, restore
from pyro_vae.svi.pool import Pool
from pyro_vae.svi.programs import Forwards, trainable
from pyro_vae.svi.update import Move, OptimizerFactory, Update
from pyro_vae.traces.threads import running_programs
from pyro_vae.traces.tracing import PyroProgram


class SVI:
    """Optimizes the parameters of a model and a guide.

    Parameters are found when they are first used, so lazy guides (``pyro.infer.autoguide``) and functions that call
    ``pyro.param`` work too. Those of ``pyro.param`` statements are in Pyro's global param store, as with
    ``pyro.infer.SVI``, so that other programs and other steps find them; those of modules are the modules' own.

    A parameter that takes no part in a step keeps its value with a ``torch.optim`` optimizer, which skips it. With a
    ``pyro.optim`` optimizer its gradient is 0, as in Pyro, so that Adam still moves it by its momentum.

    Args:
        model: a Pyro program, module or function.
        guide: likewise, taking the same arguments.
        optimizer: makes a ``torch.optim.Optimizer`` from a list of parameters, for instance
            ``functools.partial(torch.optim.Adam, lr=1e-3, fused=True)``; or a ``pyro.optim`` optimizer, which becomes
            one fused torch optimizer where its settings are the same for all parameters and no other SVI has it.
        loss: any ``pyro.infer.ELBO``, or another object with its methods ``loss`` and ``loss_and_grads``; or a function
            of model, guide and their arguments that returns a tensor, as ``pyro.infer.EnergyDistance`` is.
        max_grad_norm: clip the gradient of all parameters together to this Euclidean norm; None for no clipping.
        compile: record loss and gradients of a step as one graph and compile it, see :mod:`pyro_vae.compilation`: True
            at once, ``"auto"`` after some thousands of steps, False never.
        prepare: makes the arguments of model and guide from those of :meth:`step`, as part of the compiled step:
            for example ``dataset.gather``, which gathers and binarizes a batch.
        precision: of matrix products in :meth:`step`: ``"bfloat16"`` runs the programs under ``torch.autocast``,
            ``"tf32"`` lets a GPU round the factors to 10 bits of mantissa. Importance weights feel it most.
        ema_decay: keep an exponential moving average of all parameters with this decay, for example .999, see
            :meth:`averaged`; None for none (Polyak and Juditsky, "Acceleration of stochastic approximation by
            averaging", 1992, https://doi.org/10.1137/0330046).
        isolated: keep the parameters of ``pyro.param`` statements in this object, apart from Pyro's global store;
            :meth:`scope` shows them.
        ranks: processes that take every step together, :func:`pyro_vae.distributed.ranks`, each with its part of the
            data: gradients and losses are summed, and no rank moves where the loss of another is not finite.
        optim: Pyro's name for ``optimizer``.

    Raises:
        TypeError: ``optimizer`` or ``loss`` is something else, such as an optimizer that already holds parameters.
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
        >>> sorted(pyro.get_param_store())
        ['loc']
        >>> pyro.clear_param_store()
    """

    def __init__(
        self,
        model: PyroProgram,
        guide: PyroProgram,
        optimizer: OptimizerFactory | pyro.optim.PyroOptim | None = None,
        loss: pyro.infer.ELBO | Callable[..., Tensor] | None = None,
        *,
        max_grad_norm: float | None = None,
        compile: Compile = "auto",
        prepare: Prepare | None = None,
        precision: Precision = "float32",
        ema_decay: float | None = None,
        isolated: bool = False,
        ranks: Ranks | None = None,
        optim: OptimizerFactory | pyro.optim.PyroOptim | None = None,
    ) -> None:
        optimizer = one_of(optimizer, optim)
        objective = with_methods(loss)
        self._model, self._guide = trainable("model", model), trainable("guide", guide)
        if prepare is not None and not callable(prepare):
            raise TypeError(f"SVI: expected prepare callable; got {type(prepare).__name__}. Pass dataset.gather.")
        if max_grad_norm is not None:
            checks.number("SVI", "max_grad_norm", max_grad_norm, above=0)
        if ema_decay is not None:
            checks.number("SVI", "ema_decay", ema_decay, above=0, below=1)
        self._loss = objective
        self.max_grad_norm = max_grad_norm
        self.prepare = prepare
        self.precision: Precision = checks.choice("SVI", "precision", precision, get_args(Precision))
        self.ema_decay = ema_decay
        self.num_steps = 0
        self._is_shared = False  # whether ranks are known to have begun with equal parameters
        self.ranks = ranks
        self.parameters = Parameters(self._parts, isolated=checks.flag("SVI", "isolated", isolated))
        self.compiler = Compiler(objective, compile, prepare, precision)
        self._differentiated: dict[str, Tensor] | None = None
        self._required: list[tuple[bool, torch.dtype]] = []
        self._update = Update(optimizer)
        self._calls = Calls()
        self._forwards: Forwards | None = None

    @property
    def model(self) -> PyroProgram:
        """The model; another one may be set, and is accounted for and compiled anew."""
        return self._model

    @model.setter
    def model(self, program: PyroProgram) -> None:
        self._model = trainable("model", program)
        self._forget()

    @property
    def guide(self) -> PyroProgram:
        """The guide; as the model."""
        return self._guide

    @guide.setter
    def guide(self, program: PyroProgram) -> None:
        self._guide = trainable("guide", program)
        self._forget()

    @property
    def loss(self) -> Any:
        """The loss; as the model."""
        return self._loss

    @loss.setter
    def loss(self, loss: Any) -> None:
        if loss is not self._loss:
            self._loss = with_methods(loss)
            self._forget()

    @property
    def optimizer(self) -> torch.optim.Optimizer | pyro.optim.PyroOptim | None:
        """The optimizer of all parameters; None before there are any."""
        return self._update.optimizer

    def _forget(self) -> None:
        """Forgets what was learned of former programs."""
        self._forwards, self._differentiated = None, None
        self._is_shared = False
        self._calls = Calls()
        auto_steps = self.compiler.auto_steps
        self.compiler = Compiler(self.loss, self.compiler.mode, self.prepare, self.precision)
        self.compiler.auto_steps = auto_steps

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Context manager in which Pyro's param store holds the parameters of the programs, those of modules too."""
        with self.parameters.scope():
            yield

    def named_parameters(self) -> dict[str, Tensor]:
        """Unconstrained parameters by their name in Pyro's param store; empty before the first step."""
        return dict(self.parameters.named)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager in which every parameter has its average over past steps, for evaluation.

        Raises:
            ValueError: without ``ema_decay``, or before the first step.
        """
        if not self.parameters.has_averages:
            raise ValueError(
                f"SVI.averaged: expected averages; got none, with ema_decay={self.ema_decay} after {self.num_steps} "
                "steps. Give ema_decay=0.999, for example, and take a step first."
            )
        with self.parameters.averaged():
            yield

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Runs the programs once, so that parameters and optimizer exist before the first step.

        Only needed to reach :attr:`optimizer` before that, for example for a learning-rate schedule. Leaves the random
        number generators, and buffers such as running means, as they were.
        """
        self.parameters.refresh()
        before = self._buffers()
        with running_programs(), torch.random.fork_rng(devices=cuda_devices(args)), self.scope():
            with torch.no_grad(), Declared() as declared:
                args = self._prepared(args)
                trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
                poutine.replay(self.model, trace=trace)(*args, **kwargs)
            self._adopt(declared.names)
        restore(before)

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Takes one gradient step; arguments are passed to model and guide.

        Returns:
            The loss before the step, summed over the data, in nats. Of a loss in two parts, one for the model and one
            for the guide (``pyro.infer.ReweightedWakeSleep``), the sum, whose gradient the step follows. Infinity of
            ``pyro.infer.TraceTailAdaptive_ELBO``, which has gradients alone.

        Raises:
            FloatingPointError: the loss is NaN or infinite, naming the sites and parameters that are; parameters are
                left as they were.
            ValueError: a tensor takes part in the loss that no step would move, or nothing that can be trained does. An
                argument is data even if it requires a gradient; what it was computed from is not. This is looked for
                in the first step of every shape and graph, and in those after 2, 4, 8, ... steps, so that a program
                that comes to use another tensor may train without it for as long as it did before.
        """
        loss = float(self.advance(*args, **kwargs))
        if not is_sound(self.loss, loss, self.parameters.named):
            self.refuse(loss, *args, **kwargs)
        return loss

    def advance(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """Takes a step as :meth:`step` does, but does not wait for a GPU.

        Returns:
            The loss, as a scalar tensor where the step is a CUDA graph. There a loss or a gradient that is not finite
            leaves parameters and buffers as they were, and is the caller's to find, by a loss that is not finite.
        """
        # A step is one whatever mode of gradients it is called in.
        with torch.inference_mode(False), torch.enable_grad():
            args, kwargs = out_of_inference(args, kwargs)
            if self.ranks is not None:
                return self._advance_together([(args, kwargs)])
            return self._advance(args, kwargs)

    def advance_in_parts(self, parts: Sequence[tuple[Any, ...]]) -> float:
        """Takes one step by the sum of the gradients of several calls, whose memory is that of one.

        Args:
            parts: positional arguments of each call: parts of a batch, where the loss is a sum over the data.

        Returns:
            The sum of the losses.

        Raises:
            FloatingPointError: as :meth:`step`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            return self._advance_together([(args, {}) for args in parts])

    def _advance_together(self, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> float:
        """A step by the gradients of several calls, and of those of other ranks where there are some."""
        failure: FloatingPointError | None = None
        if self.ranks is not None and not self._is_shared:
            self._check_shared(f"{self.ranks.size} ranks", calls)
        pool = Pool(self.loss)
        with self._counted():
            try:
                total, declared = self._summed(calls, pool)
            except FloatingPointError as error:
                if self.ranks is None:
                    raise
                failure, total, declared = error, math.nan, set()
            parameters = list(dict.fromkeys(self.parameters.named.values()))
            if self.ranks is not None:
                if not self._is_shared:  # networks that each rank has drawn by itself would never come together
                    # By number: the names count the programs that a process has made.
                    whole = {f"number {i} of {(*p.shape,)}": p for i, p in enumerate(parameters) if not is_sharded(p)}
                    self.ranks.check_equal(whole, "initial parameters", "SVI")
                    self._is_shared = True
                total, buffers = self.ranks.sum_step(total, parameters, pool.after())
                if math.isfinite(total):
                    pool.join([rows.unbind() for rows in buffers])
            if failure is not None:
                raise failure
            if not is_sound(self.loss, total, self.parameters.named):
                raise FloatingPointError(
                    f"SVI: expected a finite loss on every rank at step {self.num_steps}; got another, {total}. The "
                    "error of that rank says where it comes from."
                )
            check_gradients(self.parameters.named, self.num_steps)
            self._move(declared if self._update.is_as_pyro else ())
        return total

    def _check_shared(self, by: str, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        """Raises for what has a gradient over the batch that is not the sum of those of its shares."""
        check_sum("SVI", by, self.loss, self._parts(), "train on one process.")
        plate = getattr(self.loss, "plate", "data")
        # What prepare draws here, steps would draw no more, and a run gone on with would differ; fit itself has looked.
        for args, kwargs in calls[:1] if self.prepare is None else ():
            with self.scope():
                scales = site_scales(self.model, self.guide, args, kwargs, plate)
            check_inside("SVI", by, scales, plate, "train on one process.")

    def _summed(self, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], pool: Pool) -> tuple[float, set[str]]:
        """The loss of several calls, with their gradients at the parameters, and what they have declared."""
        total, gradients, declared = 0.0, dict[Tensor, Tensor](), set[str]()
        for args, kwargs in calls:
            with pool.part():
                repeated = None
                if len(calls) == 1 and self.parameters.in_store():
                    repeated = self.compiler.repeat(self._trained(), args, kwargs, None, self._move)
                loss = float((repeated or self._run(args, kwargs, captured=False))[0])
            total += loss
            if not is_sound(self.loss, loss, self.parameters.named) and not self.parameters.are_sharded:
                self.refuse(loss, *args, **kwargs)
            declared |= self._calls.declared_by(args, kwargs)
            for parameter in dict.fromkeys(self.parameters.named.values()):
                if parameter.grad is not None:
                    sofar = gradients.get(parameter)
                    gradients[parameter] = parameter.grad if sofar is None else sofar + parameter.grad
        if calls and not is_sound(self.loss, total, self.parameters.named):  # networks that run on all ranks or on none
            self.refuse(total)
        pool.join_parts()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return total, declared

    def _averaged_buffers(self) -> list[Tensor]:
        """Averages over past data that a loss keeps, such as a running mean as a baseline."""
        return list(self.loss.gradient.buffers()) if isinstance(self.loss, Estimator) else []

    def _advance(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | float:
        loss: Tensor | float
        with self._counted():
            repeated = None
            if self.parameters.in_store():
                repeated = self.compiler.repeat(
                    self._trained(), args, kwargs, self.optimizer, self._captured(args, kwargs)
                )
            loss, updated = self._run(args, kwargs) if repeated is None else repeated
            if not updated:
                loss = float(loss)
                if not is_sound(self.loss, loss, self.parameters.named):
                    self.refuse(loss, *args, **kwargs)
                check_gradients(self.parameters.named, self.num_steps)
                self._move(self._calls.declared_by(args, kwargs) if self._update.is_as_pyro else ())
        return loss

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Context manager of a step: without gradients at its end, counted, and undone where it fails."""
        before = self._buffers()
        try:
            yield
        except BaseException:
            restore(before)
            known = {buffer for buffer, _ in before}
            for buffer in self._averaged_buffers():
                if buffer not in known:  # made by the step that failed, from zeros
                    buffer.zero_()
            raise
        finally:  # also after Ctrl-C
            self._clear_gradients()
        self.num_steps += 1

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Copies of running means and the like, which a step whose loss is not finite would spoil."""
        buffers = (*self.parameters.buffers(), *self._averaged_buffers())
        return [(buffer, buffer.clone()) for buffer in buffers]

    def _run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, captured: bool = True
    ) -> tuple[Tensor | float, bool]:
        """Loss and gradients by a look at the programs, and whether parameters are updated already.

        Args:
            args: of the step.
            kwargs: likewise.
            captured: whether a GPU may update them at once.
        """
        replaced = self.parameters.refresh()
        self._clear_gradients()  # what a user's own backward has left is not of this step
        if replaced:
            self._differentiated = None
        trained, programs = self._trained(), self._programs()
        known = not replaced and self._calls.is_known(args, kwargs)
        with running_programs(), self.scope(), self._calls.validation(args, kwargs):
            if known:  # the first step is eager: it finds parameters, and is validated
                optimizer = self.optimizer if captured else None
                update = self._captured(args, kwargs)
                compiled = self.compiler.run(programs, trained, args, kwargs, optimizer, update)
                if compiled is not None:
                    self._adopt(set())
                    return compiled
            # Later steps are accounted for at growing intervals, since a program may change as it runs.
            accounted = not (known and trained) or self.compiler.unsettled or self.num_steps & (self.num_steps - 1) == 0
            others = set_aside(self.parameters) if accounted else {}
            leaves = Leaves() if accounted else contextlib.nullcontext()
            statements = Declared() if programs[0] is self.model else contextlib.nullcontext()
            with statements, leaves, self._reduced(args):
                given = self._prepared(args)
                loss = as_number(self.loss.loss_and_grads(*programs, *given, **kwargs))
            if isinstance(statements, Declared):
                self._calls.declare(args, kwargs, statements.names)
            self._adopt(statements.names if isinstance(statements, Declared) else set())
            if isinstance(leaves, Leaves) and is_sound(self.loss, loss, self.parameters.named):
                data = {a for a in tree_leaves((args, given, kwargs)) if isinstance(a, Tensor)}
                # Of a sharded network the step differentiates by what was gathered of the parameters.
                account(self.parameters, others, set() if self.parameters.are_sharded else leaves.found - data)
        return loss, False

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss, without a gradient step."""
        self.parameters.refresh()
        with running_programs(), self.scope(), torch.no_grad(), self._calls.validation(args, kwargs):
            loss = self.loss.loss(self.model, self.guide, *self._prepared(args), **kwargs)
        return as_number(loss)

    def loss_and_grads(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> float:
        """The loss of a model and a guide, whose gradients it adds to those of their parameters; it moves none.

        Pyro's name, for steps of one's own; a :meth:`step` of this object starts without the gradients.
        """
        self.parameters.refresh()
        with running_programs(), self.scope():
            return as_number(self.loss.loss_and_grads(model, guide, *self._prepared(args), **kwargs))

    def _parts(self) -> tuple[Any, ...]:
        """What holds modules: model, guide, and a loss with learned baselines."""
        learned = self.loss.gradient.modules() if isinstance(self.loss, Estimator) else ()
        return self.model, self.guide, *learned

    def _clear_gradients(self) -> None:
        for parameter in self.parameters.named.values():
            parameter.grad = None

    def _trained(self) -> dict[str, Tensor]:
        """Parameters to differentiate by; the same dictionary as long as they are the same."""
        named = self.parameters.named
        required = [(p.requires_grad, p.dtype) for p in named.values()]
        if self._differentiated is None or required != self._required:
            self._required = required
            self.parameters.keep_precision()
            self._update.keep_precision()
            by_identity = {p: name for name, p in named.items() if p.requires_grad}
            self._differentiated = {name: p for p, name in by_identity.items()}
        return self._differentiated

    def _prepared(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The programs' arguments of a step's."""
        return args if self.prepare is None else self.prepare(*args)

    def _reduced(self, args: tuple[Any, ...]) -> AbstractContextManager[None]:
        device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
        return reduced(self.precision, device)

    def _programs(self) -> tuple[PyroProgram, PyroProgram]:
        """Model and guide; without their parameter statements where these would tell us nothing new."""
        if not isinstance(self.loss, Estimator):
            return self.model, self.guide
        if self._forwards is None:
            self._forwards = Forwards((self.model, self.guide))
        return self._forwards.programs if self._forwards.suffice(self.parameters.named) else (self.model, self.guide)

    def _move(self, declared: Collection[str] = ()) -> None:
        """Moves the parameters by their gradients, and their averages; see :class:`Update` for what was declared."""
        with self.scope() if isinstance(self.optimizer, pyro.optim.PyroOptim) else contextlib.nullcontext():
            self._update(self.parameters.named, declared, self.max_grad_norm)
        if self.ema_decay is not None:
            self.parameters.average(self.ema_decay)

    def _captured(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Move:
        """The move of a step as a CUDA graph has it."""
        declared = frozenset(self._calls.declared_by(args, kwargs) if self._update.is_as_pyro else ())
        return Move(self._move, declared, self.max_grad_norm, self.ema_decay)

    def _adopt(self, declared: set[str]) -> None:
        """Gives the optimizer the parameters that the programs have registered since the last step."""
        new = self.parameters.adopt(declared)
        if new:
            self._differentiated = None
            if check_shards(new, 1 if self.ranks is None else self.ranks.size, self.compiler.mode):
                self.compiler.give_up()
            self._update.adopt(new, self.parameters.named)

    def refuse(self, loss: float, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises the error for a loss of :meth:`advance` that is not finite, after looking for where it comes from."""
        if self.parameters.are_sharded:  # whose programs no rank runs alone
            raise FloatingPointError(
                f"SVI: expected a finite loss at step {self.num_steps}; got {loss}. Look for NaN and extremes in this "
                "rank's data, lower the learning rate, or clip gradients (max_grad_norm)."
            )
        with running_programs(), self.scope():
            rows = args[0] if self.prepare is not None and args and isinstance(args[0], Tensor) else None
            found = diagnosis(self.model, self.guide, self._prepared(args), kwargs, self.parameters.named, rows)
            raise FloatingPointError(f"SVI: expected a finite loss at step {self.num_steps}; got {loss}. {found}")
