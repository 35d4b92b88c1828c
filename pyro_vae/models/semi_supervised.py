r"""A variational autoencoder of data of which some are labeled: Kingma's model M2, as two Pyro programs.

A datum has a class y, one-hot, and latents z for what the class leaves open:

.. math:: p(x, y, z) = p(y)\, p(z)\, p(x|y, z), \qquad q(y, z|x) = q(y|x)\, q(z|x, y).

One program serves both kinds of data. Labels come as a context, int64 (N,) with -1 for "none" (scikit-learn's
convention). Where there is no label, y is a latent variable like z, and

.. math:: \log p(x) \ge \sum_y q(y|x) \big\{\log p(y) - \log q(y|x)
          + E_{q(z|x, y)}[\log p(x|y, z) + \log p(z) - \log q(z|x, y)]\big\}.

``elbo.ELBO(gradient="enumerate")`` carries out the sum over classes, and so does ``pyro.infer.TraceEnum_ELBO``, since
the guide marks ``"y"`` for parallel enumeration. Where there is a label, it is an observation of y: the model observes
it as site ``"label"``, of density p(y), and given it both model and guide have y with certainty. What remains of the
bound is the paper's for labeled data,

.. math:: \log p(x, y) \ge E_{q(z|x, y)}[\log p(x|y, z) + \log p(y) + \log p(z) - \log q(z|x, y)].

In it q(y|x) does not occur, so that labels would teach the classifier nothing. The paper adds a second objective,
:math:`\alpha \log q(y|x)`, which is part of no bound. Here it is the site ``"classification"``, of weight
``classification_weight``.

References:
    Kingma, Rezende, Mohamed, Welling, "Semi-supervised Learning with Deep Generative Models", 2014,
    https://arxiv.org/abs/1406.5298
"""

from __future__ import annotations

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor

from pyro_vae import checks, conditionals, distributions, priors
from pyro_vae.conditionals import Conditional, OneHotCategorical
from pyro_vae.likelihoods import Likelihood
from pyro_vae.models.program import (
    ProgramModule,
    RootModule,
    check_batch,
    check_inputs,
    check_observed,
    check_part,
    check_same,
    check_support,
    data_size,
    for_decoder,
    for_network,
)
from pyro_vae.priors import Prior

_NAME = "SemiSupervisedVAE"


class SemiSupervisedModel(RootModule):
    """The model p(y) p(z) p(x|y, z) with sites ``"y"``, ``"z"`` and ``"x"`` in the plate ``"data"``; p(y) is uniform.

    Where labels are given, site ``"label"`` observes them, and in training mode site ``"classification"`` adds the
    weighted log q(label|x), where its weight is not 0.

    Args:
        prior: p(z).
        likelihood: p(x|z, y).
        guide: whose classifier q(y|x) learns from labels.
        classification_weight: weight of log q(label|x).
    """

    def __init__(
        self, prior: Prior, likelihood: Likelihood, guide: SemiSupervisedGuide, classification_weight: float
    ) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.classification_weight = classification_weight
        self.class_prior = priors.OneHotCategorical(guide.classifier.event_shape)
        # A tuple, because a second registration would put the guide's parameters into the state_dict twice.
        self._guide = (guide,)

    def forward(
        self, x: Tensor | None = None, labels: Tensor | None = None, *context: Tensor, size: int | None = None
    ) -> Tensor:
        """Runs the model.

        Args:
            x: observed data (N, \\*event_shape), or None to generate.
            labels: classes, int64 (N,), -1 for none; None where no datum has one.
            context: what the likelihood takes beside z and y, (N, ...) each.
            size: number of data when there is neither x nor labels nor context; 1 when left out.

        Returns:
            x, observed or sampled.
        """
        prior, class_prior, likelihood = self.prior, self.class_prior, self.likelihood
        check_observed(likelihood, x, context)
        with pyro.plate("data", data_size(_NAME, x, _given(labels, *context), size)):
            if labels is not None:
                _check_labels(labels)
                labeled, logits = labels >= 0, class_prior.logits
                observed = _is(labels.clamp(min=0), len(logits)).to(logits)  # any class for -1: both sites mask it
                pyro.sample("label", class_prior().mask(labeled), obs=observed)
                if self.training and self.classification_weight and x is not None:
                    (guide,) = self._guide
                    log_q = torch.where(labeled, guide.classify(x).log_prob(observed), 0.0)
                    pyro.factor("classification", self.classification_weight * log_q)
            y = pyro.sample("y", _knowing(class_prior(), labels))
            z = pyro.sample("z", prior())
            return pyro.sample("x", likelihood(for_decoder(prior, z), y, *context), obs=x)


def _check_labels(labels: Tensor) -> None:
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{_NAME}: expected labels of whole numbers, (N,); got {labels.dtype} of shape {tuple(labels.shape)}. Give "
            "classes, -1 for none."
        )


class SemiSupervisedGuide(RootModule):
    """The guide q(y|x) q(z|x, y) with sites ``"y"``, marked for enumeration, and ``"z"`` in the plate ``"data"``.

    Args:
        classifier: q(y|x).
        posterior: q(z|x, y).
        missing: whether NaN in x stands for a missing value, which the networks are given as 0.
    """

    def __init__(self, classifier: OneHotCategorical, posterior: Conditional, *, missing: bool = False) -> None:
        super().__init__()
        self.missing = missing
        self.classifier = classifier
        self.posterior = posterior

    def forward(
        self, x: Tensor | None = None, labels: Tensor | None = None, *context: Tensor, size: int | None = None
    ) -> Tensor:
        """Draws y and z for data x of shape (N, \\*event_shape); takes the model's arguments."""
        if x is None:
            raise ValueError(
                "Guide: expected data x; got None. q(y, z|x) has no draw without x: run the model instead."
            )
        check_batch(_NAME, x, self.posterior.body.input_shapes[0])
        with pyro.plate("data", data_size(_NAME, x, _given(labels, *context), size)):
            y = pyro.sample("y", _knowing(self.classify(x), labels), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.encode(x, y))

    def classify(self, x: Tensor) -> TorchDistribution:
        """q(y|x)."""
        return self.classifier(for_network(x, self.classifier.body, missing=self.missing))

    def encode(self, x: Tensor, y: Tensor) -> TorchDistribution:
        """q(z|x, y) for one-hot classes y."""
        return self.posterior(for_network(x, self.posterior.body, missing=self.missing), y)


class SemiSupervisedVAE(ProgramModule):
    """A variational autoencoder with a class y beside z, for data of which some are labeled; see the module's text.

    A plain ``nn.Module`` that holds the two programs ``model`` and ``guide``, as :class:`~pyro_vae.VAE` does. They
    take ``(x, labels)``, so training is::

        fit(vae, train.conditioned_on(labels), loss=elbo.ELBO(gradient="enumerate"))

    or, the same sum over classes, ``loss=pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)``. Estimators that draw the
    class need a score-function gradient, such as ``gradient="score"`` or ``"vimco"``.

    Args:
        prior: p(z), of :mod:`pyro_vae.priors`.
        likelihood: p(x|z, y), of :mod:`pyro_vae.likelihoods`, with a body of ``context_shapes=[num_classes]``.
        posterior: q(z|x, y), of :mod:`pyro_vae.conditionals`, likewise.
        classifier: q(y|x), a ``conditionals.OneHotCategorical`` of ``num_classes``.
        classification_weight: weight of log q(y|x) of each labeled datum, in training mode alone: ``eval()``, in which
            ``fit`` computes its figures and leaves the program, has the bound as it is. The paper's alpha is a tenth of
            the number of data N shared by the N_l labeled ones: 0.1 N / N_l.

    Raises:
        TypeError: a part is not what its place asks for.
        ValueError: the parts disagree about a shape, there is no y, or the weight is negative.

    References:
        See :mod:`pyro_vae.models.semi_supervised`.

    Example:
        >>> from pyro.infer import TraceEnum_ELBO
        >>> from pyro_vae import conditionals, likelihoods, nets, priors
        >>> vae = SemiSupervisedVAE(
        ...     prior=priors.StandardNormal(2),
        ...     likelihood=likelihoods.Bernoulli(nets.MLP(2, [8], context_shapes=[10]), (1, 4, 4)),
        ...     posterior=conditionals.DiagonalNormal(nets.MLP((1, 4, 4), [8], context_shapes=[10]), 2),
        ...     classifier=conditionals.OneHotCategorical(nets.MLP((1, 4, 4), [8]), 10),
        ...     classification_weight=5.0,
        ... )
        >>> x, labels = torch.zeros(3, 1, 4, 4), torch.tensor([7, -1, 0])  # the second is not labeled
        >>> TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(vae.model, vae.guide, x, labels).shape
        torch.Size([])
        >>> vae.classify(x).shape
        torch.Size([3])
        >>> pyro.clear_param_store()
    """

    latents = ("y", "z")
    observed = ("x", "label")

    def __init__(
        self,
        prior: Prior,
        likelihood: Likelihood,
        posterior: Conditional,
        classifier: OneHotCategorical,
        *,
        classification_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_part(_NAME, "prior", prior, Prior, "priors")
        check_part(_NAME, "likelihood", likelihood, Likelihood, "likelihoods")
        check_part(_NAME, "posterior", posterior, Conditional, "conditionals")
        check_part(_NAME, "classifier", classifier, OneHotCategorical, "conditionals")
        classification_weight = checks.number(_NAME, "classification_weight", classification_weight)
        if not classification_weight >= 0:
            raise ValueError(
                f"{_NAME}: expected classification_weight at least 0; got {classification_weight}. "
                "Give a non-negative number."
            )
        latent_shape, *classes = likelihood.body.input_shapes
        if len(classes) != 1 or len(classes[0]) != 1:
            raise ValueError(
                f"{_NAME}: expected a likelihood whose body takes z and one-hot classes; got context shapes "
                f"{[tuple(shape) for shape in classes]}. Build it with context_shapes=[num_classes]."
            )
        check_support(_NAME, prior, posterior, priors, conditionals)
        prior.bind(posterior)
        check_same(_NAME, "the latent shape of prior and posterior", prior.event_shape, posterior.event_shape)
        check_same(_NAME, "the latent shape of prior and likelihood body", prior.event_shape, latent_shape)
        x_shape = likelihood.event_shape
        check_inputs(_NAME, "the posterior", posterior.body.input_shapes, [x_shape, *classes])
        check_inputs(_NAME, "the classifier", classifier.body.input_shapes, [x_shape])
        check_same(_NAME, "the classes of classifier and likelihood body", classifier.event_shape, classes[0])
        self.guide = SemiSupervisedGuide(classifier, posterior, missing=likelihood.missing)
        self.model = SemiSupervisedModel(prior, likelihood, self.guide, classification_weight)

    @property
    def prior(self) -> Prior:
        """p(z)."""
        return self.model.prior

    @property
    def likelihood(self) -> Likelihood:
        """p(x|z, y)."""
        return self.model.likelihood

    @property
    def posterior(self) -> Conditional:
        """q(z|x, y)."""
        return self.guide.posterior

    @property
    def classifier(self) -> OneHotCategorical:
        """q(y|x)."""
        return self.guide.classifier

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """The most probable class of data of shape (\\*lead, \\*event_shape), int64 (\\*lead).

        The probabilities are ``vae.classifier(x).probs``.
        """
        return self.guide.classify(x).logits.argmax(-1)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> TorchDistribution:
        """q(z|x, y) at the labels' classes, and at a draw y ~ q(y|x) where there is no label.

        Args:
            x: data of shape (\\*lead, \\*event_shape).
            labels: classes, int64 (\\*lead), -1 for none.
        """
        return self._encode(x, labels)[1]

    def decode(self, z: Tensor, y: Tensor, *context: Tensor) -> TorchDistribution:
        """p(x|z, y) for latents of shape (\\*lead, \\*latent_shape) and one-hot classes (\\*lead, num_classes)."""
        return self.likelihood(for_decoder(self.prior, z), y, *context)

    @torch.no_grad()
    def sample(self, size: int, labels: Tensor | None = None, *context: Tensor, mean: bool = False) -> Tensor:
        """Draws (size, \\*event_shape) data from p(y) p(z) p(x|z, y).

        Args:
            size: number of data.
            labels: classes to draw from, int64 (size,), -1 for any.
            context: what the likelihood takes beside z and y, (size, ...) each.
            mean: return E[x|z, y] in place of the draw of x, as pictures in papers do.
        """
        shape = Size((checks.whole(f"{_NAME}.sample", "size", size),))
        checks.flag(f"{_NAME}.sample", "mean", mean)
        y = _knowing(self.model.class_prior().expand(shape), labels).sample()
        distribution = self.decode(self.prior().sample(shape), y, *context)
        return distribution.mean if mean else distribution.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None, *context: Tensor) -> Tensor:
        """E[x' | z, y] at one draw of the guide, of the shape of x."""
        y, posterior = self._encode(x, labels)
        return self.decode(posterior.sample(), y, *context).mean

    def _encode(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, TorchDistribution]:
        y = _knowing(self.guide.classify(x), labels).sample()
        return y, self.guide.encode(x, y)

    def check_data(self, x: Tensor, labels: Tensor | None = None, *context: Tensor) -> None:
        """Raises for data the likelihood cannot have produced, and labels that are no classes.

        Called by ``fit`` before the first step.

        Raises:
            TypeError, ValueError: with the remedy.
        """
        self.likelihood.check_data(x, *context)
        if labels is None:
            return
        (classes,) = self.classifier.event_shape
        if labels.dtype != torch.int64:
            raise TypeError(
                f"{_NAME}: expected labels of torch.int64, -1 for none; got {labels.dtype}. Use labels.long()."
            )
        if labels.shape != x.shape[:1] or not bool(((labels >= -1) & (labels < classes)).all()):
            raise ValueError(
                f"{_NAME}: expected labels (N,) from -1, for none, to {classes - 1}; got shape {tuple(labels.shape)}, "
                f"{int(labels.min())} to {int(labels.max())}. Number the classes from 0."
            )


def _given(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)


def _is(labels: Tensor, num_classes: int) -> Tensor:
    """Whether a class is that of the label, (\\*lead, num_classes); all False for -1."""
    return labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)


def _knowing(classes: TorchDistribution, labels: Tensor | None) -> TorchDistribution:
    """The distribution over classes (\\*lead, C) given labels (\\*lead), -1 for none: certainty where there is one."""
    if labels is None:
        return classes
    logits = classes.logits
    excluded = (labels >= 0).unsqueeze(-1) & ~_is(labels, logits.shape[-1])
    # Not -inf, so that probability times log-probability is 0 and not NaN, in values and in gradients.
    logits = torch.where(excluded, torch.finfo(logits.dtype).min / 4, logits)
    return distributions.OneHotCategorical(logits=logits)
