r"""Missing values answered: draws from :math:`p(x_\mathrm{missing}|x_\mathrm{observed})`.

.. math::
    p(x_m|x_o) = \int p(x_m|z)\, p(z|x_o)\, dz, \qquad
    z_k \sim q(z|x_o), \quad w_k = \frac{p(x_o, z_k)}{q(z_k|x_o)}

The guide proposes, the weights correct: z is drawn from the K proposals in proportion to their weights, and then x from
p(x|z). That is right in the limit of many particles, whatever the guide. How near a guide's K draws come to it,
effective sample size and Pareto k-hat tell for each row: a row with much missing is where a guide that was trained on
complete rows is at its worst. A program that was trained by :class:`~pyro_vae.elbo.IWELBO` on data with missing values
is the paper's MIWAE.

Missing is at random: whether a value is missing may depend on observed values, not on the missing ones.

Shapes: N data, K particles, S samples.

References:
    Mattei, Frellsen, "MIWAE: Deep Generative Modeling and Imputation of Incomplete Data Sets", 2019,
    https://arxiv.org/abs/1812.02633
    Rezende, Mohamed, Wierstra, "Stochastic Backpropagation and Approximate Inference in Deep Generative Models", 2014,
    https://arxiv.org/abs/1401.4082 (imputation without the weights)
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.evaluation.importance import LogMarginalLikelihood, listed, weighted_draws
from pyro_vae.evaluation.likelihood_of_draws import at_draws, check_likelihood, check_made
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.pareto import RELIABLE
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.models import Program
from pyro_vae.tables import Table

FEW = 100
"""Effective draws below which quantiles and spreads are those of a handful of latents."""


@dataclass(frozen=True)
class Imputation(Result):
    """Rows with their missing values drawn.

    Shapes: N data, S samples.

    Attributes:
        x: the rows that were given, (N, ...), NaN where missing.
        samples: complete rows, (S, N, ...), in the units of x; observed values are those of x, unchanged. A category
            is a draw of its code. The S draws of a row are dependent: they come of one set of K particles.
        observed: log p(x_observed) of each row in nats, with the effective sample size and the k-hat of its weights.
    """

    x: Tensor
    samples: Tensor
    observed: LogMarginalLikelihood

    @property
    def mean(self) -> Tensor:
        """The mean of the draws, (N, ...), the guess of least squared error; meaningless for codes of categories."""
        return torch.where(self.x.isnan(), self.samples.mean(0), self.x)

    @property
    def standard_error(self) -> Tensor:
        r"""Of ``mean`` through the noise of the draws, (N, ...): :math:`\mathrm{sd}\sqrt{1/S + 1/\mathrm{ESS}}`.

        The second term is all that the K particles can add, were a value determined by z; 0 for observed values.
        """
        ess = self.observed.effective_sample_size.reshape(-1, *[1] * (self.x.dim() - 1))
        error = self.samples.std(0) * (1 / len(self.samples) + 1 / ess).sqrt()
        return torch.where(self.x.isnan(), error, 0.0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The ends of central prediction intervals, (N, ...) each; both are x where it was observed.

        They are draws, the r-th smallest and the r-th largest, so that a value that the model made falls between them
        with the probability (S + 1 - 2r) / (S + 1), at least ``level``, where the S draws are independent.

        Args:
            level: probability, above 0 and below 1.

        Raises:
            ValueError: another level, or fewer than 2 / (1 - level) - 1 draws.
        """
        level = checks.number("Imputation.interval", "level", level, above=0, below=1)
        num_samples = len(self.samples)
        rank = math.floor((num_samples + 1) * (1 - level) / 2 + 1e-9)
        if rank < 1:
            raise ValueError(
                f"Imputation.interval: expected at least {math.ceil(2 / (1 - level) - 1e-9) - 1} draws for a level of "
                f"{level:g}; got {num_samples}. Impute with a larger num_samples."
            )
        ordered = self.samples.sort(0).values
        return ordered[rank - 1], ordered[-rank]

    @property
    def unreliable(self) -> list[int]:
        """Rows with missing values whose k-hat is above 0.7, or with fewer than 100 effective draws."""
        incomplete = self.x.isnan().flatten(1).any(1)
        poor = (self.observed.pareto_k > RELIABLE) | (self.observed.effective_sample_size < FEW)
        return torch.nonzero(incomplete & poor).flatten().tolist()

    def estimates(self) -> dict[str, Estimate]:
        k = self.observed.num_particles
        poor = torch.zeros(len(self.x), dtype=torch.float64)
        poor[self.unreliable] = 1
        return {
            "missing": Estimate.of(self.x.isnan().flatten(1).double().mean(1), k, "of values"),
            "log_p(x_observed)": self.observed.mean,
            "effective_sample_size": self.observed.estimates()["effective_sample_size"],
            "unreliable": Estimate.of(poor, k, "of N"),
        }


@in_evaluation_mode
def impute(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_samples: int = 100,
    num_particles: int = 5000,
    memory: int | None = None,
    batch_size: int | None = None,
    plate: str = "data",
    progress: bool = True,
) -> Imputation:
    """Draws the missing values of every row given its observed ones, by importance resampling.

    Shapes: N data, K particles, S samples.

    Args:
        program: a program whose likelihood is :class:`~pyro_vae.likelihoods.MissingAtRandom`, such as a
            :class:`~pyro_vae.VAE` with it; or a model that observes x with a ``distributions.MissingAtRandom``.
        x: data (N, ...), the first argument of model and guide; NaN marks what is missing.
        context: their further arguments, (N, ...) each, complete.
        num_samples: S, draws for each row.
        num_particles: K, of which the S are resampled; best several times as many.
        memory: bytes that the draws in flight may take, whatever K; None for an amount that is fast.
        batch_size: data to run at once; None chooses it. Pass N where the guide's parameters belong to the data.
        plate: name of the plate over the data.
        progress: show a bar.

    Warns:
        UserWarning: k-hat is above 0.7 or there are fewer than 100 effective draws, naming the rows.

    Raises:
        ValueError: missing values in a likelihood of complete data; rows that the model cannot have made; a latent of
            the model that its guide does not draw; x not observed as it is; see
            :func:`~pyro_vae.evaluation.log_marginal_likelihood`.

    References:
        See :mod:`pyro_vae.evaluation.imputation`.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_vae.distributions import MissingAtRandom
        >>> def model(x):  # two values that share z: of variance 1.01 each, and covariance 1
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         normal = dist.Normal(z[..., None].expand(*z.shape, 2), 0.1).to_event(1)
        ...         pyro.sample("x", MissingAtRandom(normal, torch.tensor(0.0)), obs=x)
        >>> def guide(x):  # the posterior given the first value
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x[:, 0] / 1.01, (0.01 / 1.01) ** 0.5))
        >>> program, x = SimpleNamespace(model=model, guide=guide), torch.tensor([[-1.0, torch.nan], [2.0, torch.nan]])
        >>> imputation = impute(program, x, num_samples=1000, num_particles=1000, progress=False)
        >>> (imputation.mean - torch.tensor([[-1.0, -0.9901], [2.0, 1.9802]])).abs().max() < 0.03
        tensor(True)
    """
    args = (x, *context)
    num_samples = checks.whole("impute", "num_samples", num_samples)
    check_likelihood("impute", program, args, batch_size)
    observed, latents = weighted_draws(
        "impute",
        program,
        args,
        num_samples=num_samples,
        num_particles=num_particles,
        memory=memory,
        batch_size=batch_size,
        plate=plate,
        progress=progress,
    )
    check_made("impute", observed.value)
    drawn = at_draws(
        "impute",
        program,
        args,
        latents,
        lambda distribution, _: distribution.sample(),
        memory=memory,
        batch_size=batch_size,
        plate=plate,
    )
    result = Imputation(x, torch.where(x.isnan(), torch.cat(drawn, 1), x), observed)
    if result.unreliable:
        warnings.warn(
            f"impute: expected Pareto k-hat at most {RELIABLE} and at least {FEW} effective draws; got others for "
            f"{len(result.unreliable)} of {len(x)} rows: {listed(result.unreliable)}. Their draws are the guide's "
            "rather than the posterior's, or repeat few latents. Draw more particles, or train the guide on rows with "
            "as much missing.",
            stacklevel=4,
        )
    return result


@partial(checks.arguments, "condition")
def condition(
    program: Program,
    given: Mapping[str, Any] | Mapping[int, Any],
    *context: Tensor,
    num_samples: int = 100,
    columns: Sequence[str] | Table | None = None,
    num_particles: int = 5000,
    memory: int | None = None,
    plate: str = "data",
    progress: bool = True,
) -> Imputation:
    """Draws rows that have given values in some columns: :func:`impute` of one row with all others missing.

    Nothing is rejected, so that what is given may be as rare as it likes, as far as the guide proposes latents for it.

    Args:
        program: see :func:`impute`, as are all other arguments; one with a ``likelihood``, for rows of columns.
        given: values by column, in the units of the data: by number from 0, or by name where ``columns`` are given.
            Categories are given by their code, of a table also by their value. Empty for rows of the model without a
            condition.
        context: further arguments of model and guide, of one row each.
        num_samples: S.
        columns: names of all columns, in their order, or the table of the training data; the program's own when left
            out, where it has one.
        num_particles: K.
        memory: bytes that the draws in flight may take.
        plate: name of the plate over the data.
        progress: show a bar.

    Returns:
        The imputation of the one row, so that ``samples[:, 0]`` are the draws.

    Warns:
        UserWarning: as :func:`impute`.

    Raises:
        TypeError: keys that are neither numbers nor names, values that are no numbers.
        ValueError: columns that there are not, or given twice; data that are no rows; else as :func:`impute`.

    Example:
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     priors.StandardNormal(1),
        ...     likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(1, [8]), 3, scale=50.0)),
        ...     conditionals.DiagonalNormal(nets.MLP(3, [8], masked=True), 1),
        ... )
        >>> for parameter in vae.posterior.parameters():  # in place of training: the guide is the prior
        ...     _ = torch.nn.init.zeros_(parameter)
        >>> given = {"age": 40.0, "height": 1.7}
        >>> result = condition(vae, given, columns=["age", "height", "weight"], num_samples=20, progress=False)
        >>> result.samples.shape, result.samples[0, 0, :2]
        (torch.Size([20, 1, 3]), tensor([40.0000,  1.7000]))
    """
    event_shape = getattr(getattr(program, "likelihood", None), "event_shape", None)
    if event_shape is None or len(event_shape) != 1:
        raise ValueError(
            "condition: expected a program with a likelihood of rows of columns; got "
            f"{type(program).__name__ if event_shape is None else f'data of shape {tuple(event_shape)}'}. Use impute "
            "on a datum with NaN for what is missing."
        )
    own: Any = next(program.parameters(), torch.zeros(()))  # type: ignore[attr-defined]
    row = torch.full((1, *event_shape), math.nan, dtype=own.dtype, device=own.device)
    if columns is None:
        columns = getattr(program.likelihood, "table", None)  # type: ignore[attr-defined]
    if isinstance(columns, Table):
        given, columns = _coded(given, columns), [column.name for column in columns.columns]
    for column, value in _by_number(given, columns, event_shape[0]).items():
        row[0, column] = value
    return impute(
        program,
        row,
        *context,
        num_samples=num_samples,
        num_particles=num_particles,
        memory=memory,
        plate=plate,
        progress=progress,
    )


def _coded(given: Any, table: Table) -> Any:
    """Given values with the codes of a table in place of its categories."""
    if not isinstance(given, Mapping):
        return given
    known = {column.name: column for column in table.columns}
    coded = {}
    for key, value in given.items():
        column = known.get(key) if isinstance(key, str) else None
        if column is not None and column.values and not isinstance(value, Tensor):
            if value not in column.values:
                raise ValueError(
                    f"condition: expected one of {', '.join(map(repr, column.values)):.200} for {key!r}; got "
                    f"{value!r}. Give such a value."
                )
            value = column.values.index(value)
        coded[key] = value
    return coded


def _by_number(given: Mapping[Any, float], columns: Sequence[str] | None, width: int) -> dict[int, float]:
    """The given values by number of their column."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"condition: expected given values by column; got {type(given).__name__}. Give a dictionary, {{0: 1.5}}."
        )
    names = list(columns or ())
    if columns is not None and (len(names) != width or len(set(names)) != width):
        raise ValueError(
            f"condition: expected columns to hold {width} different names, one for each; got {len(names)}, of which "
            f"{len(set(names))} differ. Name every column once."
        )
    by_number: dict[int, float] = {}
    for key, value in given.items():
        if isinstance(key, str):
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                remedy = f"Use {near[0]!r}" if near else "Use one of these" if names else "Pass columns=..."
                raise ValueError(f"condition: expected a name of columns {names}; got {key!r}. {remedy}.")
            number = names.index(key)
        else:
            number = checks.whole("condition", "the number of a column", key, 0)
        if number >= width or number in by_number:
            raise ValueError(
                f"condition: expected columns below {width}, each once; got {key!r}. Count columns from 0."
            )
        by_number[number] = checks.number("condition", f"the value of column {key!r}", value)
    return by_number
