"""What suits a set of data where nothing else is asked for: a likelihood, networks, a VAE of both, each with a reason.

The rules look at the training data alone, and say what they found: a place to start from, to be compared with others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from pyro_vae import checks, conditionals, likelihoods, nets, priors
from pyro_vae.data import Dataset
from pyro_vae.likelihoods import Likelihood
from pyro_vae.models import VAE
from pyro_vae.nets import Standardize, StandardizeLog

__all__ = ["Choice", "Networks", "likelihood", "networks", "posterior", "standardize", "vae"]

_FEW = 31  # the largest whole number that is taken for a bound, and not for a count that happens to end there
# One for all takes thousands of steps to find: 9.3 bits per dimension after 150 on color images, 7.5 with one each.
_SCALE: dict[str, object] = {"scale": "per_element"}
_FLOORED = _SCALE | {"min_scale": 1e-2}  # of densities, that would pile up on values that repeat; as Tabular has it
_LARGEST = 32  # pixels of height or width up to which an mlp is taken


@dataclass(frozen=True, eq=False)
class Choice:
    """A likelihood that fits data.

    Args:
        name: of its class in ``likelihoods``.
        arguments: with which ``getattr(likelihoods, name)(body, **arguments)`` makes it, before it is wrapped.
        because: what was found in the data, and what follows.
        wrappers: names of the classes around it, the outermost first.
        make: the likelihood of a network from z to features, wrapped.
    """

    name: str
    arguments: dict[str, object]
    because: str
    wrappers: tuple[str, ...]
    make: Callable[[nets.Body], Likelihood]


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks that fit data.

    Args:
        encoder: from x to features.
        decoder: from z to features.
        name: what they are, "mlp", "conv" or "resnet".
        because: why these.
    """

    encoder: nets.Body
    decoder: nets.Body
    name: str
    because: str


@dataclass(frozen=True, eq=False)
class _Found:
    """What was found in data: the likelihood that follows, and what its encoder is to be given."""

    name: str
    because: str
    arguments: dict[str, object] = field(default_factory=dict)
    transform: Any = None
    standardize: Standardize | None = None


def likelihood(train: Dataset) -> Choice:
    """The likelihood that suits data, by what their values are.

    ========================================== ============================================================
    values                                     likelihood
    ========================================== ============================================================
    a table of pandas                          Tabular, by the kind of each column
    0 and 1, or made so by binarization        Bernoulli; OneHotCategorical of rows with a single 1
    at most 32 levels of images                Binomial
    more levels k / n of images                DiscretizedLogistic
    whole numbers from 0 on                    NegativeBinomial; Poisson where the variance is about the mean
    other values in [0, 1]                     ContinuousBernoulli
    above 0, of less skewed logarithms         LogNormal of standardized logarithms
    other reals                                Normal, Standardized
    ========================================== ============================================================

    Where values are missing, NaN, it is within MissingAtRandom.

    Args:
        train: the training data.

    Raises:
        TypeError: no Dataset.
        ValueError: no value that is observed, or a column of a table that never varies.

    Example:
        >>> from pyro_vae import data, nets
        >>> train, _, _ = data.load("digits")
        >>> choice = likelihood(train)
        >>> choice.because
        '17 levels, 0 to 16: Binomial(16)'
        >>> choice.make(nets.MLP(2, [8])).total_count
        16
    """
    checks.instance("defaults.likelihood", "train", train, Dataset, "Use data.as_dataset(x).")
    if train.table is not None:
        return _of_table(train)
    found = _found(train)
    missing = _number_missing(train)
    wrappers = (("MissingAtRandom",) if missing else ()) + (("Standardized",) if found.standardize is not None else ())
    note = f", within MissingAtRandom, for {missing} values are missing" if missing else ""
    arguments = {"event_shape": tuple(train.event_shape), **found.arguments}
    make = partial(_made, found.name, arguments, found.standardize, bool(missing))
    return Choice(found.name, arguments, found.because + note, wrappers, make)


def networks(train: Dataset, latent_dim: int, name: str = "auto", sizes: Sequence[int] | None = None) -> Networks:
    """An encoder and a decoder of the data's shape; the encoder is given what suits it, as logarithms of counts.

    ``"auto"`` takes convolutions for images beyond 32x32. Up to there an mlp is ahead for the first minutes on a CPU; a
    longer training, or a GPU, may pay for convolutions. Of binary MNIST, 50 latents, batches of 100 and Adam at .001,
    -ELBO of test data in nats after so many seconds of steps on one core was

    ============================= ===== ===== =====
    network                        15 s  30 s  80 s
    ============================= ===== ===== =====
    mlp, layers of 512, 256       114.1 106.8 100.8
    conv, channels of 16, 32      123.5 110.0 103.3
    conv, channels of 32, 64      152.1 119.4
    resnet, channels of 32, 64    157.0 133.4
    ============================= ===== ===== =====

    Args:
        train: the training data.
        latent_dim: of z.
        name: ``"mlp"``, ``"conv"``, ``"resnet"`` or ``"auto"``.
        sizes: widths of the encoder's hidden layers, or its channels; the decoder's are the same backwards. By the
            data's size where they are left out.

    Raises:
        TypeError: no Dataset.
        ValueError: convolutions for what is no image, data with a context, or an unknown name.

    Example:
        >>> from pyro_vae import data
        >>> train, _, _ = data.load("digits")
        >>> chosen = networks(train, latent_dim=5)
        >>> chosen.name, chosen.because
        ('mlp', 'images of at most 32x32 pixels: layers of 64, 64')
    """
    subject = "defaults.networks"
    checks.instance(subject, "train", train, Dataset, "Use data.as_dataset(x).")
    latent_dim = checks.whole(subject, "latent_dim", latent_dim)
    checks.choice(subject, "name", name, ["auto", "mlp", "conv", "resnet"])
    if train.context:
        raise ValueError(
            f"{subject}: expected data without a context; got {len(train.context)} in {train.name!r}. Build the "
            "networks with context_shapes=..., for a ConditionalVAE."
        )
    shape = train.event_shape
    large = _is_image(train) and max(shape[1:]) > _LARGEST
    if name in ("conv", "resnet") and not _is_image(train):
        raise ValueError(
            f"{subject}: expected images (channels, height, width) for {name!r}; got data of shape {tuple(shape)}. "
            "Use 'mlp', or give images."
        )
    what = "a table" if train.table is not None else f"data of {shape.numel()} values"
    if _is_image(train):
        what = f"images {'beyond' if large else 'of at most'} {_LARGEST}x{_LARGEST} pixels"
    chosen = name if name != "auto" else "conv" if large else "mlp"
    own = _sizes(train, chosen) if sizes is None else [checks.whole(subject, "every size", size) for size in sizes]
    listed = f"{'layers' if chosen == 'mlp' else 'channels'} of {', '.join(map(str, own))}" if own else "no layers"
    because = f"{f'{what}: ' if name == 'auto' else ''}{'residual blocks, ' if chosen == 'resnet' else ''}{listed}"
    if train.table is not None:
        return Networks(nets.MLP.for_data(train, own), nets.MLP(latent_dim, own[::-1]), chosen, because)
    options: dict[str, Any] = {"transform": _found(train).transform, "masked": _number_missing(train) > 0}
    because += _seen(**options)
    if chosen == "mlp":
        return Networks(nets.MLP(shape, own, **options), nets.MLP(latent_dim, own[::-1]), chosen, because)
    kinds = {"conv": (nets.ConvEncoder, nets.ConvDecoder), "resnet": (nets.ResidualEncoder, nets.ResidualDecoder)}
    encoder, decoder = kinds[chosen]
    return Networks(encoder(shape, own, **options), decoder(latent_dim, shape, own[::-1]), chosen, because)


def standardize(train: Dataset) -> Standardize | None:
    """Mean and deviation of the data where these are no levels, counts or fractions, in whose place none is needed."""
    return None if train.table is not None else _found(train).standardize


def posterior(prior: priors.Prior) -> type[conditionals.Conditional]:
    """The plainest family on a prior's support: DiagonalNormal of reals, else that of the prior's name or support."""
    named = [getattr(conditionals, type(prior).__name__, conditionals.DiagonalNormal)]
    fitting = [conditionals.DiagonalNormal, *named, *(getattr(conditionals, each) for each in _POSTERIORS)]
    return next((each for each in fitting if repr(each.support) == repr(prior.support)), fitting[0])


def vae(
    train: Dataset,
    latent_dim: int,
    *,
    prior: priors.Prior | None = None,
    network: str = "auto",
    sizes: Sequence[int] | None = None,
    likelihood: Choice | Callable[[nets.Body], Likelihood] | None = None,
) -> tuple[VAE, list[str]]:
    """A VAE that suits data, and the sentences that say why.

    Args:
        train: the training data.
        latent_dim: of z.
        prior: p(z) over ``latent_dim`` numbers; StandardNormal where it is left out. The posterior is on its support.
        network: see :func:`networks`.
        sizes: see :func:`networks`.
        likelihood: a choice, or what makes a likelihood of a network; that of :func:`likelihood` where it is left out.

    Raises:
        TypeError, ValueError: as of :func:`likelihood`, :func:`networks` and ``VAE``.

    Example:
        >>> from pyro_vae import data
        >>> train, _, _ = data.load("digits")
        >>> program, why = vae(train, latent_dim=5)
        >>> print(*why, sep="\\n")
        17 levels, 0 to 16: Binomial(16)
        images of at most 32x32 pixels: layers of 64, 64
        prior StandardNormal: posterior DiagonalNormal
    """
    chosen = _likelihood_of(train) if likelihood is None else likelihood
    parts = networks(train, latent_dim, network, sizes)
    prior = priors.StandardNormal(latent_dim) if prior is None else prior
    checks.instance("defaults.vae", "prior", prior, priors.Prior, "Use one of pyro_vae.priors.")
    made = chosen.make(parts.decoder) if isinstance(chosen, Choice) else chosen(parts.decoder)
    because = chosen.because if isinstance(chosen, Choice) else f"as asked for: {type(made).__name__}"
    why = [because, parts.because, f"prior {type(prior).__name__}: posterior {posterior(prior).__name__}"]
    return VAE(prior, made, posterior(prior)(parts.encoder, latent_dim)), why


_likelihood_of = likelihood  # which an argument of vae hides
_POSTERIORS = "VonMisesFisher", "LogisticNormal", "RelaxedBernoulli", "Bernoulli", "OneHotCategorical"


def _made(
    name: str, arguments: dict[str, Any], standardize: Standardize | None, missing: bool, body: nets.Body
) -> Likelihood:
    made: Likelihood = getattr(likelihoods, name)(body, **arguments)
    if standardize is not None:
        made = likelihoods.Standardized(made, standardize)
    return likelihoods.MissingAtRandom(made) if missing else made


def _of_table(train: Dataset) -> Choice:
    likelihood = partial(likelihoods.Tabular.for_data, train)
    trial = likelihood(nets.MLP(1, [1]))  # which refuses columns that never vary
    table: Any = trial.table
    kinds = [column.kind for column in table.columns]
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    wrappers = ("MissingAtRandom",) if table.missing else ()
    note = ", within MissingAtRandom, for values are missing" if table.missing else ""
    return Choice("Tabular", {"table": table}, f"a table of columns, {counted}: Tabular{note}", wrappers, likelihood)


def _found(train: Dataset) -> _Found:
    """The first rule that fits."""
    x, levels = train.images, train.levels
    if train.binarization != "none":
        return _bits(train, f"{train.binarization} binarization")
    if levels is not None:
        return _bits(train) if bool(((x == 0) | (x == levels)).all()) else _levels(levels)
    observed = x[~x.isnan()]
    if not len(observed):
        raise ValueError(
            f"defaults: expected values that are observed; got NaN alone in {train.name!r}. Give the training data."
        )
    low, high = float(observed.min()), float(observed.max())
    whole = bool((observed == observed.round()).all())
    if whole and low >= 0 and high <= 1:
        return _bits(train)
    if whole and low >= 0:
        return _counts(train, observed, int(high))
    if low >= 0 and high <= 1 and (unit := _unit(train, observed)) is not None:
        return unit
    return _reals(train, low)


def _bits(train: Dataset, what: str = "values 0 and 1") -> _Found:
    if train.binarization == "none" and _sums_to_one(train):
        return _Found("OneHotCategorical", "a single 1 in each row: OneHotCategorical")
    mean = train.mean().nan_to_num(0.5)  # of what is never observed
    return _Found("Bernoulli", f"{what}: Bernoulli", {"data_mean": mean})


def _levels(n: int) -> _Found:
    """Of levels k / n."""
    if n <= _FEW:
        return _Found("Binomial", f"{n + 1} levels, 0 to {n}: Binomial({n})", {"total_count": n})
    return _Found("DiscretizedLogistic", f"{n + 1} levels k / {n}: DiscretizedLogistic", {"levels": n + 1, **_SCALE})


def _counts(train: Dataset, observed: Tensor, largest: int) -> _Found:
    """Of whole numbers from 0 on: with a bound, where many values are at the largest, or without."""
    top, below = (int((observed == value).sum()) for value in (largest, largest - 1))
    if _is_image(train):
        bounded = (largest <= _FEW and 2 * top >= below) or largest == 255
    else:  # a sample of counts has few of its largest
        bounded = largest <= _FEW and 2 * top >= below and top >= max(10, 0.01 * len(observed))
    if bounded:
        arguments: dict[str, object] = {"total_count": largest, "spacing": 1.0}
        because = f"{largest + 1} whole levels, 0 to {largest}: Binomial({largest})"
        return _Found("Binomial", because, arguments, _standardize(train, train.images))
    x = train.images.double()
    mean = x.nanmean(0)
    variance = ((x - mean) ** 2).nanmean(0)
    ratio = float(variance.nansum() / mean.nansum())
    name = "NegativeBinomial" if ratio > 1.2 else "Poisson"
    because = f"counts, of variance {ratio:.3g} times the mean: {name}"
    return _Found(name, because, transform="log1p")


def _unit(train: Dataset, observed: Tensor) -> _Found | None:
    """Of fractions in [0, 1], where they look like grays, levels or shares and not like small reals."""
    image = _is_image(train)
    for n in [*range(2, _FEW + 1 if image else 2), 255]:
        scaled = observed / (1 / n)
        if bool(((scaled - scaled.round()).abs() < 1e-3).all()):
            return _levels(n)
    mean: dict[str, object] = {"data_mean": train.mean().nan_to_num(0.5)}
    if _sums_to_one(train):
        because = (
            "rows that sum to 1, which no likelihood here knows: ContinuousBernoulli of each share, bounded where a "
            "Normal's density would not be; or model x[:, :-1].log() - x[:, -1:].log()"
        )
        return _Found("ContinuousBernoulli", because, mean, _standardize(train, train.images))
    if image or (float(observed.min()) < 0.1 and float(observed.max()) > 0.9):
        return _Found("ContinuousBernoulli", f"{'gray ' if image else ''}values in [0, 1]: ContinuousBernoulli", mean)
    return None


def _reals(train: Dataset, low: float) -> _Found:
    x = train.images
    if low > 0 and _skewness(x.log()) + 0.1 < _skewness(x):  # less by more than chance
        logs = _standardize(train, x.log())
        because = "values above 0 whose logarithms are less skewed: LogNormal, of standardized logarithms"
        return _Found("LogNormal", because, {"standardize": logs, **_FLOORED}, StandardizeLog(logs))
    scale = _standardize(train, x)
    because = "real values: Normal, standardized, with a learned scale of each element"
    return _Found("Normal", because, _FLOORED, scale, scale)


def _standardize(train: Dataset, x: Tensor) -> Standardize:
    """Of every element, and of every channel of an image, some of whose pixels hardly vary."""
    if not _is_image(train):
        return Standardize.of(x)
    of_channels = Standardize.of(x.movedim(1, -1).flatten(0, -2))
    return Standardize(*(value[:, None, None] for value in (of_channels.mean, of_channels.deviation)))


def _skewness(x: Tensor) -> float:
    """The mean over elements of the absolute skewness of the observed values."""
    y = x.double() - x.double().nanmean(0)
    variance = (y**2).nanmean(0)
    return float((y**3).nanmean(0).div(variance**1.5).nan_to_num(0, 0, 0).abs().mean())


def _sums_to_one(train: Dataset) -> bool:
    """Whether data are rows of shares of a whole."""
    x = train.images
    several = x.ndim == 2 and len(x) > 1 and x.shape[1] > 1 and not _number_missing(train)
    return several and bool(((x.sum(1) - (train.levels or 1)).abs() < 1e-4).all())


def _seen(transform: Any, masked: bool) -> str:
    """What the encoder is given, in words, where it is not x alone."""
    words = {Standardize: "standardized values", StandardizeLog: "standardized logarithms", str: "log(1 + x)"}
    given = [words[type(transform)]] if transform is not None else []
    given += ["which values are missing"] if masked else []
    return f"; the encoder is given {' and '.join(given)}" if given else ""


def _number_missing(train: Dataset) -> int:
    return int(train.images.isnan().sum()) if train.levels is None else 0


def _is_image(train: Dataset) -> bool:
    return len(train.event_shape) == 3 and train.table is None


def _sizes(train: Dataset, name: str) -> list[int]:
    """By the size of the data: coarsest feature maps of at most 8x8, or layers about as wide as the data."""
    if name == "mlp":
        width = min(512, max(64, 2 ** round(math.log2(train.event_shape.numel()))))
        return [width, max(64, width // 2)]
    stages = max(2, math.ceil(math.log2(max(train.event_shape[1:]) / 8)))
    return [min(16 * 2**stage, 256) for stage in range(stages)]
