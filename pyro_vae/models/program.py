"""What evaluation, training and the lab ask of a program, and what the programs of this package share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.nn import PyroModule
from pyro.poutine.util import is_validation_enabled
from torch import Size, Tensor, nn

from pyro_vae import checks, internals
from pyro_vae.distributions import from_log_space
from pyro_vae.nets import Body, Standardize
from pyro_vae.recorded import Recorded


@runtime_checkable
class Program(Protocol):
    """A pair of Pyro programs that take the same arguments, ``(x, *context)``.

    :class:`~pyro_vae.VAE` is one; so is any object with these two attributes.
    """

    @property
    def model(self) -> Callable[..., Any]:
        """The generative model, a module or a function."""

    @property
    def guide(self) -> Callable[..., Any]:
        """The approximate posterior; takes the model's arguments."""


_ids = itertools.count()


class RootModule(PyroModule):
    """A PyroModule whose parameters have names of their own in Pyro's param store.

    Pyro keys parameters by name. Two modules of one name share an entry, and the second silently stays untrained; so
    does a copy or a loaded pickle. Hence a fresh name for every instance, also for one that was copied or unpickled.
    """

    def __init__(self) -> None:
        super().__init__(f"{type(self).__name__}{next(_ids)}")

    def __getstate__(self) -> dict[str, Any]:
        _forget_weak_references(self)
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        internals.set_pyro_name(self, f"{type(self).__name__}{next(_ids)}")


def _forget_weak_references(root: nn.Module) -> None:
    """Takes off what Pyro leaves with parameters and no pickle can hold.

    Pyro's own does so for submodules. Parts held by reference, in tuples or as recorded arguments, have them too.
    """
    for module in root.modules():
        held = itertools.chain.from_iterable(value for value in vars(module).values() if isinstance(value, tuple))
        for part in (module, *(part for part in held if isinstance(part, nn.Module))):
            for parameter in part.parameters():
                vars(parameter).pop("unconstrained", None)


class ProgramModule(Recorded, nn.Module):
    """The base of :class:`~pyro_vae.VAE` and its relatives: a model with a likelihood, and a guide.

    A plain ``nn.Module``, because a PyroModule would rename the two programs that it holds.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = checks.named(cls.__name__, cls.__init__)  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: Any) -> None:
        part = getattr(type(self), name, None)
        if isinstance(part, property) and part.fset is None:
            # else nn.Module would register a second part of the name, which nothing reads
            raise AttributeError(
                f"{type(self).__name__}: expected its {name} to stay; got another. Build a new one of its other parts "
                "and this, which checks that they fit."
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        _forget_weak_references(self)
        return vars(self).copy()

    def forward(self, *args: object, **kwargs: object) -> None:
        """Raises: a program is a model and a guide, and neither is the network of a loss."""
        name = type(self).__name__
        raise TypeError(
            f"{name}: expected a call of one of its parts; got one of the whole. Use encode(x), decode(z) or "
            "reconstruct(x); model and guide are Pyro programs."
        )

    @property
    def likelihood(self) -> Any:
        """The density of x."""
        raise NotImplementedError

    def reconstruct(self, x: Tensor, *context: Tensor) -> Tensor:
        """The mean of the likelihood at one draw of the guide, of the shape of x."""
        raise NotImplementedError

    def check_data(self, x: Tensor, *context: Tensor) -> None:
        """Raises for data the likelihood cannot have produced; called by ``fit`` before the first step.

        Raises:
            TypeError, ValueError: with the remedy.
        """
        self.likelihood.check_data(x, *context)

    @property
    def calibrated(self) -> bool:
        """Whether ``fit`` is to call :meth:`calibrate` at every epoch."""
        return self.likelihood.calibrated

    @torch.no_grad()
    def calibrate(self, x: Tensor, *context: Tensor) -> None:
        """Sets in closed form what no gradient learns, such as SigmaNormal's scale."""
        self.likelihood.calibrate(x, self.reconstruct(x, *context))


def check_observed(likelihood: Any, x: Tensor | None, context: tuple[Tensor, ...]) -> None:
    """Raises for data that the likelihood cannot have produced; shapes alone where Pyro's validation is off.

    Args:
        likelihood: p(x|z, ...).
        x: data, or None to generate.
        context: the last of what the likelihood takes beside z.
    """
    shapes = [*likelihood.body.input_shapes[1:], *(Size() for _ in likelihood.contexts)]
    lengths = {c.shape[:1] for c in (x, *context) if isinstance(c, Tensor)}
    if len(lengths) == 1 and len(context) in (len(shapes), len(likelihood.contexts)):  # else others say what is wrong
        (lead,) = lengths
        own = shapes[len(shapes) - len(context) :]
        columns = [  # one number per datum may come as a column
            c.squeeze(-1) if isinstance(c, Tensor) and not shape and c.shape == (*lead, 1) else c
            for c, shape in zip(context, own, strict=True)
        ]
        check_contexts(f"{type(likelihood).__name__} likelihood", lead, own, columns)
    if x is None:
        return
    check_batch(f"{type(likelihood).__name__} likelihood", x, likelihood.event_shape)
    if is_validation_enabled():
        likelihood.check_data(x, *context)


def check_batch(subject: str, x: object, event_shape: Size) -> None:
    """Raises for data that are no tensor of shape (N, \\*event_shape): one dim more would count each datum N times."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{subject}: expected x a tensor; got {type(x).__name__}. Pass *batch for a batch of data and "
            "contexts, and data.as_dataset(x).tensor() for arrays."
        )
    if x.dim() == 0 or x.shape[1:] != event_shape or not len(x):
        raise ValueError(
            f"{subject}: expected data of shape (N, {', '.join(map(str, event_shape))}); got {tuple(x.shape)}. "
            "Reshape the data, or build the networks for their shape."
        )


def check_contexts(subject: str, lead: Size, shapes: Sequence[Size], context: Sequence[object]) -> None:
    """Raises for contexts that are no tensors (\\*lead, \\*shape): one row for all would be broadcast in silence."""
    given = [tuple(c.shape) if isinstance(c, Tensor) else type(c).__name__ for c in context]
    expected = [(*lead, *shape) for shape in shapes]
    if len(given) >= len(expected) and given[: len(expected)] != expected:
        raise (ValueError if all(isinstance(c, Tensor) for c in context) else TypeError)(
            f"{subject}: expected contexts of shapes {expected}; got {given}. Give a row for each datum, classes as "
            "one-hot rows: torch.nn.functional.one_hot(labels).float()."
        )


def for_network(x: Tensor, body: Body, *, missing: bool) -> Tensor:
    """What a guide's network is given for x: 0 in place of missing values, which are NaN, unless it takes a mask.

    Of a body that standardizes, it is the mean, which it makes 0.
    """
    if not missing or body.masked:
        return x
    return torch.where(x.isnan(), body.transform.mean if isinstance(body.transform, Standardize) else 0.0, x)


def for_decoder(part: Any, z: Tensor) -> Tensor:
    """What a network is given for a draw z of a part: proportions and probabilities in place of their logarithms."""
    return from_log_space(part.support, z)


def data_size(subject: str, x: Tensor | None, context: tuple[Tensor, ...], size: int | None) -> int:
    """Length of the data plate; x, the context and ``size`` agree or there is an error."""
    given = [value for value in (x, *context) if value is not None]
    if any(not isinstance(value, Tensor) or value.dim() == 0 for value in given):
        raise TypeError(
            f"{subject}: expected tensors with a row for each datum; got {[type(value).__name__ for value in given]}. "
            "Convert with torch.as_tensor."
        )
    lengths = {len(value) for value in given} | ({checks.whole(subject, "size", size)} if size is not None else set())
    if len(lengths) > 1:
        raise ValueError(
            f"{subject}: expected x, context and size to agree on the number of data; got {sorted(lengths)}. "
            "Give every tensor the same first dimension."
        )
    return lengths.pop() if lengths else 1


def check_part(subject: str, role: str, part: object, kind: type, module: str) -> None:
    """Raises for a part that is not what its place asks for."""
    if not isinstance(part, kind):
        raise TypeError(
            f"{subject}: expected {role} to be a {kind.__name__}; got {type(part).__name__}. "
            f"Build it from pyro_vae.{module}."
        )


def check_same(subject: str, what: str, first: Size, second: Size) -> None:
    """Raises for parts that disagree about a shape."""
    if first != second:
        raise ValueError(
            f"{subject}: expected {what} to be equal; got {tuple(first)} and {tuple(second)}. Make them agree."
        )


_SUPPORTS = {
    "Real()": "real vectors",
    "Sphere": "the unit sphere",
    "LogSimplex()": "logarithms of proportions",
    "LogOdds()": "log-odds",
    "OneHot()": "one-hot vectors",
    "Boolean()": "binary vectors",
}


def check_support(subject: str, prior: Any, posterior: Any, priors: ModuleType, conditionals: ModuleType) -> None:
    """Raises for a prior and a posterior of different supports; the message names what fits either.

    Args:
        subject: what is being built.
        prior: with a ``support``, see :class:`~pyro_vae.priors.Prior`.
        posterior: likewise.
        priors: the module of priors.
        conditionals: the module of conditionals.
    """
    if repr(prior.support) == repr(posterior.support):
        return

    def fitting(module: ModuleType, part: Any) -> str:
        names = [name for name in module.__all__ if name not in ("Prior", "Conditional")]
        package = module.__name__.rpartition(".")[2]
        return ", ".join(f"{package}.{n}" for n in names if repr(getattr(module, n).support) == repr(part.support))

    here, there = (_SUPPORTS.get(repr(part.support), repr(part.support)) for part in (prior, posterior))
    raise ValueError(
        f"{subject}: expected a posterior on the support of the prior {type(prior).__name__}, {here}; got "
        f"{type(posterior).__name__} on {there}. Use one of {fitting(conditionals, prior) or 'your own'} with this "
        f"prior, or one of {fitting(priors, posterior) or 'your own'} with this posterior."
    )


def check_inputs(subject: str, role: str, actual: Sequence[Size], expected: Sequence[Size]) -> None:
    """Raises for a part whose body takes inputs of other shapes than it will be given."""
    if list(actual) != list(expected):
        raise ValueError(
            f"{subject}: expected the body of {role} to take inputs of shapes {list(map(tuple, expected))}; got "
            f"{list(map(tuple, actual))}. Build it for these shapes."
        )
