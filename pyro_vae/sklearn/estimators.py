"""The estimators; see :mod:`pyro_vae.sklearn`.

Shapes: N data, D features, L latent dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import checks
from pyro_vae.models import VAE
from pyro_vae.schedules import Schedule
from pyro_vae.sklearn.parts import Part, built
from pyro_vae.sklearn.scores import log_marginal_likelihood, seeded
from pyro_vae.traces.threads import running_programs
from pyro_vae.training import fit

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # before scikit-learn 1.6

    def validate_data(estimator: Any, X: Any, *, ensure_all_finite: Any, **how: Any) -> Any:
        """What later versions have as a function."""
        return estimator._validate_data(X, force_all_finite=ensure_all_finite, **how)


Floats = NDArray[np.floating[Any]]

_DTYPES = [np.float64, np.float32]


def _seed_of(random_state: Any) -> int:
    return int(check_random_state(random_state).randint(2**31 - 1))


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What the two have in common: the VAE, its fit, its density and its draws."""

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        hidden: Sequence[int] = (64,),
        likelihood: Part = "Normal",
        prior: Part = "StandardNormal",
        posterior: Part = "DiagonalNormal",
        epochs: int = 100,
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        beta: float | Schedule = 1.0,
        num_particles: int = 100,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.likelihood = likelihood
        self.prior = prior
        self.posterior = posterior
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.beta = beta
        self.num_particles = num_particles
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:
        """Fits a new VAE.

        Args:
            X: data, (N, D), which the likelihood accepts; NaN where a value is missing.
            y: not used.

        Raises:
            ValueError: data or arguments that cannot be fitted; the message holds the remedy.
        """
        name = type(self).__name__
        x = torch.tensor(validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan"))
        checks.whole(name, "num_particles", self.num_particles)
        rate = checks.number(name, "learning_rate", self.learning_rate, above=0)
        seed = _seed_of(self.random_state)
        with running_programs(), seeded(seed):
            vae = built(self, x).float()  # whatever the default type is
            self._check_parts(vae.eval(), x)
            history = fit(
                vae,
                x.float(),
                optimizer=partial(torch.optim.Adam, lr=rate, fused=True),
                epochs=self.epochs,
                batch_size=self.batch_size,
                beta=self.beta,
                seed=seed,
                progress=False,
            )
        if history.stopped == "interrupted":
            raise KeyboardInterrupt  # else a search would go on, and take this for a fit
        # In double precision a row has one result, whatever rows it comes with, to far more digits than it is good for.
        self.vae_ = vae.double().requires_grad_(False)
        self.history_ = history
        self._seed = seed
        return self

    def score_samples(self, X: Any) -> Floats:
        """Estimates of log p(x) of each row, of its observed values where some are missing; (N,), in nats.

        Args:
            X: data, (N, D).
        """
        x, _ = self._checked(X)
        with running_programs(), torch.no_grad(), pyro.validation_enabled(False):
            scores = log_marginal_likelihood(self.vae_.eval(), x, self.num_particles, self._seed)
        if bool(scores.isnan().any()):
            raise ValueError(
                f"{type(self).__name__}: expected densities that are numbers; got NaN for {int(scores.isnan().sum())} "
                f"of {len(x)} rows, the first at {int(scores.isnan().nonzero()[0])}. Look for extreme values there."
            )
        return scores.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """The average of :meth:`score_samples`, which a search over parameters maximizes.

        Args:
            X: data, (N, D).
            y: not used.
        """
        return float(np.mean(self.score_samples(X)))

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> Floats:
        """Draws of rows from p(z) p(x|z), (n_samples, D).

        Args:
            n_samples: their number.
            random_state: a seed, a generator, or None for NumPy's global one.
        """
        check_is_fitted(self)
        with running_programs(), seeded(_seed_of(random_state)):
            return self.vae_.eval().sample(n_samples).numpy()

    def _checked(self, X: Any) -> tuple[Tensor, Any]:
        """Data like those that the VAE was fitted to, in double precision, and the type that they had."""
        check_is_fitted(self)
        array = validate_data(self, X, dtype=_DTYPES, ensure_all_finite="allow-nan", reset=False)
        x = torch.tensor(array, dtype=torch.float64)
        if not self.vae_.likelihood.missing and bool(x.isnan().any()):
            raise ValueError(
                f"{type(self).__name__}: expected data without NaN, like those that it was fitted to; got "
                f"{int(x.isnan().sum())} missing values. Fit it to data that miss some, or impute them."
            )
        self.vae_.check_data(x)
        return x, array.dtype

    def _check_parts(self, vae: VAE, x: Tensor) -> None:
        """Raises before training for a VAE that cannot do what the estimator is for."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _more_tags(self) -> dict[str, Any]:
        return {"allow_nan": True, "preserves_dtype": _DTYPES}  # before scikit-learn 1.6


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Estimator):  # type: ignore[misc]
    """Latents of rows: the mean of q(z|x), and back by the mean of p(x|z).

    Args:
        latent_dim: L, dimensions of z.
        hidden: width of each hidden layer of the encoder; the decoder has them in the opposite order. Empty for linear
            maps.
        likelihood: p(x|z), by its name in :mod:`pyro_vae.likelihoods`, or a function of a body and the number of
            features: ``partial(likelihoods.Normal, scale="per_element")``. One of reals is standardized, with its
            scales in units of each column's deviation. ``"auto"`` is Bernoulli where all data are 0 or 1,
            NegativeBinomial where all are counts, else Normal; their scores do not compare.
        prior: p(z), by its name in :mod:`pyro_vae.priors`, or a function of ``latent_dim``.
        posterior: q(z|x), by its name in :mod:`pyro_vae.conditionals`, or a function of a body and ``latent_dim``.
        epochs: passes through the data.
        learning_rate: of Adam.
        batch_size: rows per step.
        beta: weight of the KL term while training, or a schedule of :mod:`pyro_vae.schedules`; scores are of beta = 1.
        num_particles: K, draws per row of a score.
        random_state: a seed, a generator, or None for NumPy's global one. Torch's generators are left as they were.

    Attributes:
        vae_: the fitted :class:`~pyro_vae.VAE`, in double precision.
        history_: the record of training, a :class:`~pyro_vae.History`.

    Raises:
        ValueError: on fitting, latents that are no real vectors, or a posterior without a mean in closed form.

    Example:
        >>> import numpy
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> t = numpy.linspace(-1, 1, 200)
        >>> X = numpy.stack([t, 1000 * t**2, -t], axis=1)
        >>> vae = VAETransformer(latent_dim=1, epochs=30, learning_rate=0.02, random_state=0)
        >>> Z = make_pipeline(StandardScaler(), vae).set_output(transform="pandas").fit_transform(X)
        >>> list(Z.columns), Z.shape
        (['vaetransformer0'], (200, 1))
        >>> abs(float(numpy.corrcoef(Z["vaetransformer0"], t)[0, 1])) > 0.99
        True
    """

    def transform(self, X: Any) -> Floats:
        """The mean of q(z|x) of each row, (N, L), of the type of X.

        Args:
            X: data, (N, D).
        """
        x, dtype = self._checked(X)
        with running_programs(), torch.no_grad():
            return self.vae_.eval().encode(x).mean.numpy().astype(dtype)

    def inverse_transform(self, X: Any) -> Floats:
        """E[x|z] of each row of latents, (N, D), of the type of X.

        Args:
            X: latents, (N, L).

        Raises:
            ValueError: latents of another size, or a likelihood without a mean.
        """
        check_is_fitted(self)
        array = check_array(X, dtype=_DTYPES)
        z = torch.tensor(array, dtype=torch.float64)
        if z.shape[1] != self._n_features_out:
            raise ValueError(
                f"{type(self).__name__}: expected latents of {self._n_features_out} columns; got {z.shape[1]}. Give "
                "what transform returns."
            )
        with running_programs(), torch.no_grad():
            mean = self.vae_.eval().decode(z).mean
        if not bool(mean.isfinite().all()):
            raise ValueError(
                f"{type(self).__name__}: expected a likelihood with a mean; got "
                f"{type(self.vae_.likelihood).__name__} without. Use vae_.decode(z), the distribution."
            )
        return mean.numpy().astype(array.dtype)

    @property
    def _n_features_out(self) -> int:
        return self.vae_.prior.event_shape.numel()

    def _check_parts(self, vae: VAE, x: Tensor) -> None:
        name, kind = type(self).__name__, type(vae.posterior).__name__
        if vae.posterior.support is not constraints.real:
            raise ValueError(
                f"{name}: expected latents that are real vectors, for a mean to be one; got {kind}. Use "
                "DiagonalNormal with a StandardNormal, or VAEDensity, which takes no mean."
            )
        try:
            with torch.no_grad():
                vae.encode(x[:1].float()).mean  # noqa: B018
        except NotImplementedError:
            raise ValueError(
                f"{name}: expected a posterior with a mean in closed form; got {kind}. Use DiagonalNormal or "
                "FullRankNormal, or VAEDensity, which takes no mean."
            ) from None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class VAEDensity(OutlierMixin, _Estimator):  # type: ignore[misc]
    """Outliers, as rows of low density: log p(x) below a quantile of the training data's.

    That quantile makes no promise for new data, of which more are below it than of the training data;
    :meth:`pyro_vae.evaluation.Scores.threshold` of data held out does.

    Args:
        latent_dim: L, dimensions of z.
        hidden: width of each hidden layer of the encoder; the decoder has them in the opposite order.
        contamination: share of the training data to be called outliers, above 0 and at most 0.5.
        likelihood: p(x|z), by name or as a function of a body and the number of features, see :class:`VAETransformer`.
        prior: p(z), by name or as a function of ``latent_dim``.
        posterior: q(z|x), by name or as a function of a body and ``latent_dim``.
        epochs: passes through the data.
        learning_rate: of Adam.
        batch_size: rows per step.
        beta: weight of the KL term while training, or a schedule; scores are of beta = 1.
        num_particles: K, draws per row of a score.
        random_state: a seed, a generator, or None for NumPy's global one.

    Attributes:
        offset_: the score below which a row is an outlier, in nats.
        vae_: the fitted :class:`~pyro_vae.VAE`, in double precision.
        history_: the record of training, a :class:`~pyro_vae.History`.

    Example:
        >>> import numpy
        >>> t = numpy.linspace(-1, 1, 200)
        >>> X = numpy.stack([t, -t], axis=1)
        >>> density = VAEDensity(1, contamination=0.05, epochs=30, learning_rate=0.02, random_state=0).fit(X)
        >>> density.predict([[0.5, -0.5], [0.5, 0.5]])  # on the line, and off it
        array([ 1, -1])
        >>> int((density.predict(X) == -1).sum())
        10
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        hidden: Sequence[int] = (64,),
        contamination: float = 0.1,
        likelihood: Part = "Normal",
        prior: Part = "StandardNormal",
        posterior: Part = "DiagonalNormal",
        epochs: int = 100,
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        beta: float | Schedule = 1.0,
        num_particles: int = 100,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            latent_dim,
            hidden=hidden,
            likelihood=likelihood,
            prior=prior,
            posterior=posterior,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            beta=beta,
            num_particles=num_particles,
            random_state=random_state,
        )
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> Any:
        share = checks.number(type(self).__name__, "contamination", self.contamination, above=0, at_most=0.5)
        super().fit(X)
        self.offset_ = float(np.percentile(self.score_samples(X), 100 * share))
        return self

    def decision_function(self, X: Any) -> Floats:
        """:meth:`score_samples` less ``offset_``, (N,): below 0 for outliers.

        Args:
            X: data, (N, D).
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """-1 for outliers and 1 for other rows, (N,).

        Args:
            X: data, (N, D).
        """
        return np.where(self.decision_function(X) < 0, -1, 1)
