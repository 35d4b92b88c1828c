r"""The base of all estimators: a bound, which is a function of log-weights, and a gradient, chosen apart from it.

A bound is a function F of the log-weights of K draws. With :math:`F'_k` its derivative at detached weights and sg the
stop-gradient, the gradients of all sampling estimators are those of one surrogate with three coefficients,

.. math::
    c^\theta_k \log p(x, sg\,z_k) + c^{path}_k \big[(\log p - \log q)(z_k) - (\log p - \log q)(sg\,z_k)\big]
    + c^{score}_k \log q(sg\,z_k),

which :mod:`pyro_vae.elbo.gradients` lists. The loss that an estimator returns has the value -F and the gradient of the
surrogate, so that any optimizer that calls ``backward`` gets the estimator, and no parameter need be identified.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import pyro.infer
import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.checks import flag, instance, named, whole
from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.names import GradientChoice, gradient_of
from pyro_vae.traces.densities import LogDensities
from pyro_vae.traces.structure import PlateError, Structure, UndrawnLatentError, check_programs
from pyro_vae.traces.terms import Terms
from pyro_vae.traces.tracing import PyroProgram, inspect, outside_plate

_MAX_STRUCTURES = 16
_Result = TypeVar("_Result")


class Estimator(pyro.infer.ELBO):
    """A bound on log p(x) estimated from K draws per datum, as a ``pyro.infer.ELBO``.

    Shapes: N data, K particles, T partitions.

    A new bound overrides :meth:`bound`, and :meth:`path_scale` for the dreg gradient. A subclass with another bound
    inherits nothing that was derived from its parent's: no :meth:`path_scale`, no :meth:`signal`, no ovis.

    Args:
        num_particles: K, draws per datum.
        gradient: a gradient estimator, by name or as an object such as ``Score(baseline="running_mean")``; or a mapping
            from each site of the guide to one (:class:`~pyro_vae.elbo.by_site.BySite`).
        plate: name of the plate over the data, which encloses every site.
        vectorize: make the draws of a pass at once; False runs the program once for each, for programs that do not
            broadcast.
        chunk_size: draws of a pass at most, so that memory grows with it in place of K: first all log-weights are
            computed, then each chunk is drawn again with the same random numbers and differentiated with the
            coefficients of all K. The guide is run twice for each chunk, and a step is not compiled. None for one pass.

    Raises:
        TypeError: a number that is no whole one, a plate that is no name.
        ValueError: a number out of range, or a gradient that this bound does not have; when run, a site whose gradient
            would be wrong.

    Example:
        >>> class Median(Estimator):
        ...     def bound(self, log_weights):
        ...         return log_weights.median(0).values
        >>> Median(3).bound(torch.tensor([[1.0], [5.0], [2.0]]))
        tensor([2.])
        >>> Median(3, gradient="dreg")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Median: expected a bound that defines path_scale, its second derivative, for dreg; got none. Use ...
    """

    min_particles = 1
    importance_weighted = False
    """Whether the bound is that of :class:`~pyro_vae.elbo.importance.IWELBO`, whose baseline ovis knows."""
    linear = False
    """Whether the bound is the mean of the log-weights, so that each site of the guide may have its own costs and be
    summed over."""
    thermodynamic = False
    """Whether the bound has a path from guide to posterior, :meth:`path`, which the covariance gradient needs."""
    latent_weight: float = 1.0
    """What log p(z) - log q(z|x) is multiplied by in the log-weight."""

    @partial(named, "Estimator")
    def __init__(
        self,
        num_particles: int = 1,
        gradient: GradientChoice = "pathwise",
        *,
        plate: str = "data",
        vectorize: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize)
        self.plate = plate
        self.chunk_size = chunk_size
        self.gradient = gradient_of(gradient)
        self._structures: dict[Any, Structure | None] = {}  # None for a program that runs without

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Withdraws what a parent's bound has and another bound may not have, where a class does not say it has."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = named(cls.__name__, cls.__init__)  # type: ignore[method-assign]
        if {"bound", "weigh", "loss_of"} & set(vars(cls)):
            for name in ("path_scale", "signal", "path", "importance_weighted", "linear", "thermodynamic"):
                if name not in vars(cls):
                    setattr(cls, name, vars(Estimator)[name])

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self.checked(name, value))

    def checked(self, name: str, value: Any) -> Any:
        """An attribute's value as it is kept: one set between steps is checked as one given to the constructor.

        Raises:
            TypeError, ValueError: as the constructor's.
        """
        if name == "gradient":
            value = gradient_of(value)
            value.check(self)
        elif name == "plate":
            instance(type(self).__name__, name, value, str, "Give the name of the plate over the data.")
        elif name == "vectorize_particles":
            flag(type(self).__name__, "vectorize", value)
        elif name == "chunk_size" and value is not None:
            value = whole(type(self).__name__, name, value)
        after = {**vars(self), name: value}
        if after.get("chunk_size") is not None and "gradient" in after and not after["gradient"].in_chunks(self):
            raise ValueError(
                f"{type(self).__name__}: expected a gradient of all sites together with chunk_size; got "
                f"{type(after['gradient']).__name__}. Leave chunk_size out, or split the batch: fit(accumulate=...)."
            )
        return value

    @property
    def num_particles(self) -> int:
        """Draws per datum; may be set between steps."""
        return self._num_particles

    @num_particles.setter
    def num_particles(self, value: int) -> None:
        former = vars(self).copy()
        self._num_particles = whole(type(self).__name__, "num_particles", value, self.min_particles)
        try:
            self.check_particles(self._num_particles)
            if "gradient" in former:  # else it is being made, and checks the gradient itself
                self.gradient.check(self)
        except ValueError:
            vars(self).update(former)
            raise

    def check_particles(self, num_particles: int) -> None:
        """Raises for a number of draws that this bound cannot have.

        Raises:
            ValueError: with a number that works.
        """

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """F: log-weights (K, N) to the bound (N,), differentiable."""

    def path_scale(self, log_weights: Tensor) -> Tensor:
        r""":math:`1 - F''_{kk} / F'_k`, (K, N): what dreg scales the path derivative by."""
        raise NotImplementedError

    @property
    def has_path_scale(self) -> bool:
        """Whether the bound defines :meth:`path_scale`, its second derivative."""
        return type(self).path_scale is not Estimator.path_scale

    def path(self, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths and betas of the partitions of a path, (T, 1, 1), and weights at each beta, (T, K, N)."""
        raise NotImplementedError

    def signal(self, log_weights: Tensor) -> Tensor:
        """What the score gradient credits a draw's log q with, before the baseline: (K, N) or (N,)."""
        return self.bound(log_weights)

    def weigh(self, densities: LogDensities) -> Tensor:
        """The log-weights (K, N) that this estimator's bound is of."""
        return densities.log_weights

    def differentiable_loss(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> Tensor:
        """The loss -F, summed over the data, as a scalar tensor whose gradient is the estimator's."""
        with _some_data(type(self).__name__):
            return self._compute(self.loss_of, model, guide, args, kwargs)

    def loss_of(self, call: Call) -> Tensor:
        """The loss of a call of model and guide; for estimators that are more than a bound and a gradient."""
        return self.gradient.loss(self, call)

    def loss(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; adds its gradients to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    @torch.no_grad()
    def terms(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> Terms:
        """Per-datum terms of the ELBO, by site, in nats, averaged over as many draws as the estimator makes."""
        with _some_data(type(self).__name__):
            return self._compute(lambda call: call.terms(self.plate), model, guide, args, kwargs)

    def _compute(
        self,
        what: Callable[[Call], _Result],
        model: PyroProgram,
        guide: PyroProgram,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> _Result:
        """What is to be computed from a call of model and guide, whose structure is learned where it must be known."""
        check_programs(type(self).__name__, model, guide)
        # Arguments that are left out may turn what is observed into a latent, so they count as another program.
        absent = tuple(a is None for a in args), frozenset(name for name, a in kwargs.items() if a is None)
        key = model, guide, absent
        structure = self._structures.get(key)
        if structure is None and self._needs_structure():
            structure = self._inspect(key, args, kwargs)
        generators = [] if key in self._structures else _generators(args)
        try:
            result = what(self._call(model, guide, args, kwargs, structure))
        except UndrawnLatentError:
            structure = self._inspect(key, args, kwargs)
            for generator, state in generators:  # what failed is to have drawn nothing
                generator.set_state(state)
            return what(self._call(model, guide, args, kwargs, structure))
        if generators:
            self._remember(key, None)
        return result

    def _call(
        self,
        model: PyroProgram,
        guide: PyroProgram,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        structure: Structure | None,
    ) -> Call:
        plate = None if structure is None else self._plate(structure)
        options = self.num_particles, structure, plate, self.vectorize_particles, self.chunk_size
        return Call(model, guide, args, kwargs, *options)

    def _inspect(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Structure:
        structure = inspect(key[0], key[1], args, kwargs)
        self.gradient.check_programs(self._call(key[0], key[1], args, kwargs, structure))
        self._remember(key, structure)
        return structure

    def _remember(self, key: Any, structure: Structure | None) -> None:
        if len(self._structures) >= _MAX_STRUCTURES:
            self._structures.clear()
        self._structures[key] = structure

    def _needs_structure(self) -> bool:
        """Whether a program's plates must be known before it is run."""
        return True

    def _get_trace(
        self, model: PyroProgram, guide: PyroProgram, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        """Pyro's hook: the model's and the guide's trace of one run."""
        run = self._compute(lambda call: call.run(call.sizes[0]), model, guide, args, kwargs)
        return run.model, run.guide

    def _plate(self, structure: Structure) -> str | None:
        """The data plate, once it is known to enclose every site."""
        if self.plate not in structure.outside:
            raise PlateError(
                f"{type(self).__name__}: expected a plate {self.plate!r} over the data; got plates "
                f"{list(structure.outside)}. Name the one that runs over the data with plate=..., or use ELBO, which "
                "needs none."
            )
        outside = structure.outside[self.plate]
        if outside is not None:
            raise outside_plate(outside, self.plate)
        return self.plate


@contextlib.contextmanager
def _some_data(name: str) -> Iterator[None]:
    """Context manager in which Pyro's error for a plate of size 0 is replaced by ours."""
    try:
        yield
    except ZeroDivisionError as error:
        if "size cannot be zero" not in str(error):
            raise
        raise ValueError(
            f"{name}: expected at least one datum; got a plate of size 0. Leave out the empty batch."
        ) from error


def _generators(args: tuple[Any, ...]) -> list[tuple[torch.Generator, Tensor]]:
    """The random generators that a program may draw from, and their states."""
    devices = {a.device.index for a in args if isinstance(a, Tensor) and a.is_cuda}
    generators = [torch.default_generator, *(torch.cuda.default_generators[index] for index in sorted(devices))]
    return [(generator, generator.get_state()) for generator in generators]
