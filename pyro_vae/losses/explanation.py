"""What a loss assumes, in figures and in plain words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Size

from pyro_vae import checks
from pyro_vae.likelihoods import Likelihood
from pyro_vae.losses.errors import Binary, Error, LearnedNormal
from pyro_vae.nets import Body


@dataclass(frozen=True)
class Found:
    """What :func:`~pyro_vae.explain` has found in data.

    Args:
        span: largest value less smallest.
        excess: how much the error, summed over the elements, of the data's mean exceeds the least, mean over the data;
            None where the loss learns a scale.
        missing_normalizer: of the continuous Bernoulli; None for other losses and for bits.
        largest_variance: of the data along any direction, the first principal component's; None but for squared errors.
    """

    span: float
    excess: float | None
    missing_normalizer: float | None
    largest_variance: float | None = None


@dataclass(frozen=True)
class Explanation:
    r"""What a loss assumes; ``print`` says it in plain words, :func:`~pyro_vae.explain` makes it.

    With :math:`\mathrm{ELBO} = E_q[\log p(x|z)] - \mathrm{beta} \cdot \mathrm{KL}` of one datum,

    .. math::  \mathrm{loss} = \mathrm{factor} \cdot (-\mathrm{ELBO} - \mathrm{constant}),

    summed over the batch or averaged, as the loss is. The gradients are therefore ``factor`` times those of
    ``elbo.ELBO(beta=beta)``, which sums, or that over the size of the batch.

    Args:
        error: the reconstruction error.
        event_shape: of one datum, D elements.
        error_weight: a, the weight of the error summed over the elements.
        kl_weight: k, the weight of the KL summed over the latents.
        averaged: whether the loss is a mean over the batch, else a sum.
        temperature: T, at which the loss is read; see :mod:`pyro_vae.losses`.
        batch_size: where one term is summed over the batch and the other averaged, which lets beta depend on it.
        data: what was found in the data.
    """

    error: Error
    event_shape: Size
    error_weight: float
    kl_weight: float
    averaged: bool
    temperature: float
    batch_size: int | None
    data: Found | None

    @property
    def likelihood(self) -> Callable[[Body], Likelihood]:
        """The likelihood p(x|z) but for its network: ``VAE(likelihood=explanation.likelihood(body), ...)``."""
        return self.error.likelihood(self.event_shape, self.temperature)

    @property
    def scale(self) -> float | None:
        """That of the likelihood, in the units of x; None where it has none or learns it."""
        return self.error.scale(self.temperature)

    @property
    def beta(self) -> float:
        """Weight of the KL in the ELBO."""
        return self.kl_weight / self.factor

    @property
    def factor(self) -> float:
        """What the ELBO's gradients are multiplied by."""
        return self.error_weight * self.temperature

    @property
    def constant(self) -> float:
        """-ELBO - loss / factor, in nats per datum: what the loss leaves out of -log p(x|z)."""
        return self.event_shape.numel() * self.error.log_normalizer(self.temperature)

    @property
    def missing_normalizer(self) -> float | None:
        """Mean over gray data of sum log C(p), which cross-entropy lacks for a density, in nats per datum.

        C is the continuous Bernoulli's normalizer, at perfect reconstructions p = x with logits within 10 in absolute
        value, as :class:`~pyro_vae.likelihoods.ContinuousBernoulli` keeps them. None for other losses, for bits, and
        without data.
        """
        return None if self.data is None else self.data.missing_normalizer

    @property
    def largest_kl(self) -> float | None:
        """What the KL is at most where the loss is lowest, mean over the data, in nats; None without data.

        A decoder that ignores z and says the data's mean has no KL, and an error that exceeds the least by some E on
        average. The lowest loss is not above that, so its KL is at most a E / k. None also where the loss learns a
        scale or has no KL.
        """
        if self.data is None or self.data.excess is None or self.kl_weight == 0:
            return None
        return self.error_weight * self.data.excess / self.kl_weight

    def at(self, beta: float) -> Explanation:
        """The same loss, of the same gradients, as an ELBO of another beta: the scale changes for it.

        Args:
            beta: weight of the KL, above 0.

        Raises:
            TypeError: ``beta`` is no number.
            ValueError: ``beta`` is not above 0; the likelihood has no scale, or learns it; the loss has no KL.

        Example:
            >>> from pyro_vae import explain
            >>> loss = explain("mse", reduction="mean", kl_reduction="batchmean", kl_weight=0.5, event_shape=784)
            >>> [(one.beta, round(one.scale**2, 4), one.factor) for one in (loss, loss.at(beta=1))]
            [(0.5, 392.0, 1.0), (1.0, 196.0, 0.5)]
        """
        beta = checks.number("Explanation.at", "beta", beta, above=0)
        if self.scale is None or self.kl_weight == 0:
            raise ValueError(
                "Explanation.at: expected a loss of a KL and of an error with a scale that is fixed; got "
                f"{'no KL' if self.kl_weight == 0 else self.error.words.lower()}. Its beta is {self.beta:.4g} alone."
            )
        return replace(self, temperature=self.kl_weight / (self.error_weight * beta))

    def __str__(self) -> str:
        sentences = [*_density(self), *_objective(self), *_cautions(self)]
        return "\n".join(textwrap.fill(sentence, 100, subsequent_indent="  ") for sentence in sentences)


def _density(of: Explanation) -> Iterator[str]:
    """What p(x|z) is."""
    each = f"for each of {of.event_shape.numel():,} elements, independent given z"
    if isinstance(of.error, LearnedNormal):
        yield f"{of.error.words}, of a scale that is learned, is -log p(x|z) but for a constant, {each}."
    elif of.scale is None:
        yield f"{of.error.words} is -log p(x|z) of a {of.error.family}, {each}."
    else:
        variance = f" (variance {_figure(of.scale**2)})" if of.error.family == "Normal" else ""
        yield (
            f"{of.error.words} is -log p(x|z) of a {of.error.family} of scale {_figure(of.scale)}{variance}, {each}, "
            f"but for a constant.{_levels(of)}"
        )
    if isinstance(of.error, Binary):
        yield from _cross_entropy(of)


def _levels(of: Explanation) -> str:
    """A sentence on the scale in gray levels; none of data that are all the same."""
    if of.scale is None or (of.data is not None and of.data.span == 0):
        return ""
    span = 1.0 if of.data is None else of.data.span
    whole = "[0, 1]" if of.data is None else f"the data's span of {_figure(span)}"
    return f" That scale is {_figure(255 * of.scale / span)} gray levels, 1/255 of {whole} each."


def _cross_entropy(of: Explanation) -> Iterator[str]:
    """What cross-entropy is on gray pixels."""
    if of.data is not None and of.missing_normalizer is None:
        yield "The data are bits, as it asks for."
        return
    where = "On gray x" if of.data is None else "The data are gray, and there"
    size = f"more than {_figure(of.event_shape.numel() * math.log(2))} nats per datum"
    if of.missing_normalizer is not None:
        size = f"{_figure(of.missing_normalizer)} nats per datum at perfect reconstructions"
    yield (
        f"That is a probability of bits. {where} it is no density: the continuous Bernoulli's normalizer is missing, "
        f"{size}. Use likelihoods.ContinuousBernoulli, or binarize."
    )
    yield "On gray x it is the mean of -log p(bits|z) over bits of probability x, of which q(z|x) sees x alone."


def _objective(of: Explanation) -> Iterator[str]:
    """What the loss is in terms of the ELBO, at this beta and at 1."""
    yield f"The loss, {'averaged' if of.averaged else 'summed'} over the batch, is {_equation(of)}."
    if of.kl_weight == 0:
        yield "It has no KL: an autoencoder, whose codes nothing holds to the prior, and no ELBO."
    elif math.isclose(of.beta, 1):
        return
    elif of.scale is None:
        bound = "a bound on -log p(x), though a looser one" if of.beta > 1 else "no bound on -log p(x)"
        yield f"There is no other reading, since no fixed scale can take up the weight: it is {bound}."
    else:
        other = of.at(1.0)
        yield (
            f"Equally, of the same gradients, it is a true ELBO, of scale {_figure(other.scale or 0)}: "
            f"{_equation(other)}.{_levels(other)}"
        )
        yield "The two differ in p(x|z), hence in draws of x and in log p(x): the loss leaves open which is meant."


def _equation(of: Explanation) -> str:
    constant = f" {'-' if of.constant > 0 else '+'} {_figure(abs(of.constant))}" if of.constant else ""
    bound = f"-ELBO(beta={_figure(of.beta)}){constant}"
    return f"{bound}, in nats" if math.isclose(of.factor, 1) else f"{_figure(of.factor)} * ({bound}), in nats"


def _cautions(of: Explanation) -> Iterator[str]:
    if of.batch_size is not None:
        yield (
            "One term is summed over the batch and the other averaged: beta is that of batches of "
            f"{of.batch_size:,}, and another size is another objective."
        )
    if of.largest_kl is not None:
        collapse = ", too little for z to tell of x: expect a collapsed posterior" if of.largest_kl < 0.5 else ""
        yield f"On these data the KL is at most {_figure(of.largest_kl)} nats where the loss is lowest{collapse}."
        variance = None if of.data is None else of.data.largest_variance
        scale = of.at(1.0).scale if variance is not None and of.beta > 0 else None
        if variance is not None and scale is not None and variance < scale**2 and not collapse:
            yield (
                "No linear decoder would use z at all, since the largest principal variance of the data, "
                f"{_figure(variance)}, is below the variance {_figure(scale**2)} at beta 1: expect a collapsed "
                "posterior."
            )


def _figure(value: float) -> str:
    """Four digits, with commas in large ones.

    Example:
        >>> _figure(3060.7), _figure(0.00025), _figure(19.79899), _figure(1.0)
        ('3,061', '0.00025', '19.8', '1')
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
