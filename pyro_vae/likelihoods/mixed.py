"""Tables whose columns differ in kind: one network, and a likelihood of its own for each block of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints

from pyro_vae import checks, distributions
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.nets import Body, Head

Block = slice | list[int]
MakePart = Callable[[Body, int], Likelihood]


class Mixed(Likelihood):
    r"""Rows x of D columns with :math:`p(x|z) = \prod_i p_i(x_{S_i}|z)`, a likelihood for every block of columns.

    The parts are given unbuilt, as what makes a likelihood from a body and a number of columns: a class, or a
    ``functools.partial`` with its options. One head on the one body makes the parameters of all of them, so the network
    is that of a single likelihood. Accepts rows whose blocks each part accepts.

    Args:
        body: network from z to features.
        parts: (columns, likelihood class or partial) of every block; columns are an int, a slice with a stop, or a list
            of ints. They cover each column once.

    Raises:
        ValueError: columns left out or given twice; a slice without a stop; a part that takes a context.

    References:
        Nazabal, Olmos, Ghahramani, Valera, "Handling Incomplete Heterogeneous Data using VAEs", 2020,
        https://arxiv.org/abs/1807.03653

    Example:
        >>> from functools import partial
        >>> from pyro_vae.likelihoods import Categorical, Normal
        >>> from pyro_vae.nets import MLP
        >>> likelihood = Mixed(MLP(2, [8]), parts=[(slice(0, 12), Normal), (12, partial(Categorical, 3))])
        >>> likelihood.head.layer  # 12 locations and 3 logits
        Linear(in_features=8, out_features=15, bias=True)
        >>> likelihood(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 13])
    """

    remedy = "Give each column a likelihood of its kind"

    def __init__(self, body: Body, parts: Sequence[tuple[int | slice | list[int], MakePart]]) -> None:
        self.columns = [_as_block(columns) for columns, _ in parts]
        covered = [column for block in self.columns for column in _places(block)]
        if not parts or sorted(covered) != list(range(len(covered))):
            raise ValueError(
                "Mixed likelihood: expected parts that cover every column from 0 on once; got columns "
                f"{sorted(covered)}. Give each column to one part."
            )
        # A plain list until the module exists; parameter_shapes reads it while the head is built.
        self._built = [make(_PartOf(body), len(_places(c))) for c, (_, make) in zip(self.columns, parts, strict=True)]
        for part in self._built:
            if part.contexts:
                raise ValueError(
                    f"Mixed likelihood: expected parts without a context; got {type(part).__name__}, which takes "
                    f"{', '.join(part.contexts)}. Use a part that does not."
                )
        super().__init__(body, len(covered))
        self.parts = nn.ModuleList(self._built)
        for i, part in enumerate(self._built):
            assert isinstance(part.head, _SharedHead)
            for name, value in part.head.biases.items():
                self.head.set_bias(f"{i}.{name}", value)
        self.support = _Columns([(c, part.support) for c, part in zip(self.columns, self._built, strict=True)])
        self.accepts = "; ".join(f"{part.accepts} in columns {_words(c)}" for c, part in self._blocks())
        self.calibrated = any(part.calibrated for part in self._built)

    def parameter_shapes(self) -> dict[str, Size]:
        return {
            f"{i}.{name}": shape
            for i, part in enumerate(self._built)
            for name, shape in part.parameter_shapes().items()
        }

    def distribution(self, **parameters: Tensor) -> TorchDistribution:
        own: list[dict[str, Tensor]] = [{} for _ in self.columns]
        for key, value in parameters.items():
            i, name = key.split(".")
            own[int(i)][name] = value
        return distributions.Joint(
            [(columns, part.distribution(**p)) for (columns, part), p in zip(self._blocks(), own, strict=True)]
        )

    def check_data(self, x: Tensor, *context: Tensor) -> None:
        self.check_shape(x)
        for columns, part in self._blocks():
            try:
                part.check_data(x[..., columns])
            except (TypeError, ValueError) as error:
                raise type(error)(f"Mixed likelihood, columns {_words(columns)}: {error}") from error

    def calibrate(self, x: Tensor, mean: Tensor) -> None:
        for columns, part in self._blocks():
            if part.calibrated:
                part.calibrate(x[..., columns], mean[..., columns])

    def _blocks(self) -> list[tuple[Block, Likelihood]]:
        return list(zip(self.columns, self._built, strict=True))


class _SharedHead(Head):
    """What a part of :class:`Mixed` gets for a head: it makes nothing, and keeps the biases that the part asks for."""

    def __init__(self, feature_shape: Size, shapes: Mapping[str, Size]) -> None:
        super().__init__(feature_shape, shapes)
        self.biases: dict[str, Tensor] = {}

    def set_bias(self, name: str, value: Tensor) -> None:
        self.biases[name] = value


class _PartOf(Body):
    """Stands in for the shared body while a part is built, so that none makes a head of its own."""

    def __init__(self, body: Body) -> None:
        super().__init__(body.input_shapes, body.feature_shape)

    def head(self, shapes: Mapping[str, Size]) -> Head:
        return _SharedHead(self.feature_shape, shapes)


class _Columns(constraints.Constraint):
    """Blocks of columns with constraints of their own; element-wise where all of them are."""

    def __init__(self, blocks: Sequence[tuple[Block, constraints.Constraint]]) -> None:
        self.blocks = blocks
        self.event_dim = max(constraint.event_dim for _, constraint in blocks)
        self.is_discrete = any(constraint.is_discrete for _, constraint in blocks)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        allowed = torch.empty_like(value, dtype=torch.bool)
        for columns, constraint in self.blocks:
            check = constraint.check(value[..., columns])
            allowed[..., columns] = check if constraint.event_dim == 0 else check[..., None]
        return allowed if self.event_dim == 0 else allowed.all(-1)


def _as_block(columns: int | slice | list[int]) -> Block:
    if isinstance(columns, list):
        return [checks.whole("Mixed likelihood", "every column", column, 0) for column in columns]
    if isinstance(columns, int):
        columns = slice(columns, columns + 1)
    start, step = columns.start or 0, columns.step or 1
    if columns.stop is None or min(start, columns.stop, step - 1) < 0:
        raise ValueError(
            "Mixed likelihood: expected columns as an int, a list or a slice with a stop, counted from 0; got "
            f"{columns}. Use slice(0, 12), for instance."
        )
    return slice(start, columns.stop, step)


def _places(columns: Block) -> Sequence[int]:
    return columns if isinstance(columns, list) else range(columns.stop)[columns]


def _words(columns: Block) -> str:
    places = _places(columns)
    if isinstance(columns, list):
        return ", ".join(map(str, places))
    return str(places[0]) if len(places) == 1 else f"{places[0]} to {places[-1]}"
