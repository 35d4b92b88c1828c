"""The semi-supervised VAE: the enumerated bound against sums over classes written by hand."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from oracles import LinearVAE
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from pyro_vae import SVI, SemiSupervisedVAE, data, elbo, fit
from pyro_vae.conditionals import DiagonalNormal, OneHotCategorical
from pyro_vae.likelihoods import Bernoulli, Normal, Poisson
from pyro_vae.nets import MLP
from pyro_vae.priors import StandardNormal

CLASSES = 3
LABELS = torch.tensor([2, -1, 0, -1, -1, 1])


class MixtureOfLinear:
    """x|z, y ~ Normal(W z + v_y + b, s^2 I), so that p(x|y) is that of probabilistic PCA at x - v_y.

    Args:
        exact_classifier: q(y|x) is p(y|x), which is linear in x up to normalization; else it is some other one.
    """

    def __init__(self, *, exact_classifier: bool) -> None:
        self.pca = LinearVAE.random(orthogonal=True)
        self.shifts = torch.randn(CLASSES, 5, dtype=torch.float64)
        self.exact_classifier = exact_classifier

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, y) of every class, (N, CLASSES)."""
        given = [self.pca.log_marginal_likelihood(x - shift) for shift in self.shifts]
        return torch.stack(given, -1) - math.log(CLASSES)

    def vae(self, classification_weight: float = 0.0) -> SemiSupervisedVAE:
        """With p(z|x, y) as the guide's q(z|x, y)."""
        pca = self.pca
        likelihood = Normal(MLP(2, [], context_shapes=[CLASSES]), 5, scale=pca.scale)
        set_layer(likelihood.head.layer, torch.cat([pca.weight, self.shifts.T], 1), pca.bias)
        to_loc = torch.linalg.solve(pca.precision, pca.weight.T)
        weight = torch.cat([to_loc, -to_loc @ self.shifts.T], 1)
        posterior = DiagonalNormal(MLP(5, [], context_shapes=[CLASSES]), 2)
        set_layer(
            posterior.head.layer,
            torch.cat([weight, torch.zeros_like(weight)]),
            torch.cat([-to_loc @ pca.bias, pca.diagonal_scale().log()]),
        )
        classifier = OneHotCategorical(MLP(5, []), CLASSES)
        if self.exact_classifier:
            # log p(x|y) is quadratic in x with the same second-order part for every class.
            covariance = pca.weight @ pca.weight.T + pca.scale**2 * torch.eye(5, dtype=torch.float64)
            slopes = torch.linalg.solve(covariance, self.shifts.T).T
            offsets = -((pca.bias + self.shifts / 2) * slopes).sum(-1)
            set_layer(classifier.head.layer, slopes, offsets)
        return SemiSupervisedVAE(
            StandardNormal(2), likelihood, posterior, classifier, classification_weight=classification_weight
        ).double()


def set_layer(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.clone())


enumerated = partial(TraceEnum_ELBO, max_plate_nesting=1)


# The bound


LOSSES: dict[str, Callable[[], Any]] = {
    "one particle": enumerated,
    "vectorized": partial(enumerated, num_particles=4, vectorize_particles=True),
    "ours": partial(elbo.ELBO, gradient="enumerate"),
    "ours, K=4": partial(elbo.ELBO, num_particles=4, gradient="enumerate"),
}


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
@pytest.mark.parametrize(
    "labels", [None, torch.full((6,), -1), LABELS, LABELS.abs()], ids=["none", "all -1", "some", "all"]
)
def test_SemiSupervisedVAE_enumerated_loss_is_the_sum_over_classes(
    labels: Tensor | None, loss: Callable[[], TraceEnum_ELBO]
) -> None:
    # With q(z|x, y) exact, E_q[log p(x, y, z) - log q(z|x, y)] is log p(x, y) at every draw of z.
    oracle = MixtureOfLinear(exact_classifier=False)
    vae = oracle.vae()
    x = torch.randn(6, 5, dtype=torch.float64)
    log_joint, log_q = oracle.log_joint(x), vae.classifier(x).logits
    total = torch.tensor(0.0, dtype=torch.float64)
    for n in range(6):
        if labels is None or labels[n] < 0:
            for y in range(CLASSES):
                total = total + log_q[n, y].exp() * (log_joint[n, y] - log_q[n, y])
        else:
            total = total + log_joint[n, labels[n]]
    args = (x,) if labels is None else (x, labels)
    actual = loss().differentiable_loss(vae.model, vae.guide, *args)
    assert actual.item() == pytest.approx(-total.item(), abs=1e-10)
    assert loss().loss(vae.model, vae.guide, *args) == pytest.approx(-total.item(), abs=1e-10)
    parameters = list(vae.classifier.parameters())
    nothing = 0 * log_q.sum()  # with all data labeled, the bound does not depend on the classifier
    expected = torch.autograd.grad(nothing - total, parameters)
    gradients = torch.autograd.grad(actual, parameters)
    for gradient, truth in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("labels", [torch.full((6,), -1), LABELS], ids=["no labels", "some"])
@pytest.mark.filterwarnings("ignore:y:UserWarning")  # "use TraceEnum_ELBO instead"
def test_SemiSupervisedVAE_with_the_exact_posterior_every_draw_gives_the_evidence(labels: Tensor) -> None:
    oracle = MixtureOfLinear(exact_classifier=True)
    vae = oracle.vae()
    x = vae.sample(6)
    log_joint = oracle.log_joint(x)
    torch.testing.assert_close(vae.classifier(x).logits, log_joint.log_softmax(-1))
    evidence = torch.where(labels < 0, log_joint.logsumexp(-1), log_joint.gather(-1, labels.clamp(0)[:, None])[:, 0])
    losses: list[Any] = [
        enumerated(),
        Trace_ELBO(),
        pyro.infer.TraceGraph_ELBO(),
        pyro.infer.RenyiELBO(num_particles=3, vectorize_particles=True),
        elbo.ELBO(gradient="score"),
        elbo.IWELBO(num_particles=3, gradient="vimco"),
    ]
    for loss in losses:
        assert loss.loss(vae.model, vae.guide, x, labels) == pytest.approx(-evidence.sum().item(), abs=1e-9)


@pytest.mark.usefixtures("global_store")
def test_SemiSupervisedVAE_classes_that_a_label_excludes_have_no_part_in_value_or_gradient() -> None:
    vae = MixtureOfLinear(exact_classifier=False).vae()
    nn.init.constant_(vae.classifier.head.bias("logits")[:1], 200.0)  # all but certain of class 0
    x, labels = torch.randn(4, 5, dtype=torch.float64), torch.tensor([1, 2, 1, 2])
    loss = enumerated().differentiable_loss(vae.model, vae.guide, x, labels)
    assert loss.isfinite()
    gradients = torch.autograd.grad(loss, list(vae.classifier.parameters()))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
    single = vae.float()
    assert enumerated().differentiable_loss(single.model, single.guide, x.float(), labels).isfinite()


# The classification term


@pytest.mark.usefixtures("global_store")
def test_SemiSupervisedVAE_classification_term_is_weighted_and_of_labeled_data_in_training_alone() -> None:
    oracle = MixtureOfLinear(exact_classifier=False)
    plain, vae, x = oracle.vae(), oracle.vae(7.0), torch.randn(6, 5, dtype=torch.float64)
    vae.load_state_dict(plain.state_dict())
    log_q = vae.classifier(x).logits
    term = 7.0 * (log_q[0, 2] + log_q[2, 0] + log_q[5, 1]).item()

    def loss(program: SemiSupervisedVAE, *labels: Tensor) -> float:
        return enumerated().loss(program.model, program.guide, x, *labels)

    assert loss(vae, LABELS) == pytest.approx(loss(plain, LABELS) - term, abs=1e-10)
    assert loss(vae) == pytest.approx(loss(plain), abs=1e-10)
    vae.eval()
    assert loss(vae, LABELS) == pytest.approx(loss(plain, LABELS), abs=1e-10)
    assert "classification" not in poutine.trace(vae.model).get_trace(x, LABELS)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_SemiSupervisedVAE_labels_teach_the_classifier_by_the_classification_term_alone(weight: float) -> None:
    vae, x, labels = small(weight), torch.rand(6, 4).round(), LABELS.abs()
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), enumerated())
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi.step(x, labels)
    unchanged = {name for name, p in vae.named_parameters() if torch.equal(p, before[name])}
    classifier = {name for name in before if name.startswith("guide.classifier")}
    assert unchanged == (set() if weight else classifier)


# As Pyro programs


def small(classification_weight: float = 0.0) -> SemiSupervisedVAE:
    return SemiSupervisedVAE(
        StandardNormal(2),
        Bernoulli(MLP(2, [5], context_shapes=[CLASSES]), 4),
        DiagonalNormal(MLP(4, [5], context_shapes=[CLASSES]), 2),
        OneHotCategorical(MLP(4, [5]), CLASSES),
        classification_weight=classification_weight,
    )


@pytest.mark.usefixtures("global_store")
def test_SemiSupervisedVAE_sites_and_what_a_label_fixes() -> None:
    vae, x = small(), torch.rand(6, 4).round()
    assert (vae.latents, vae.observed) == (("y", "z"), ("x", "label"))
    for labels, observed in ((None, ["x"]), (LABELS, ["label", "x"])):
        guide = poutine.trace(vae.guide).get_trace(x, labels)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x, labels)
        assert guide.stochastic_nodes == ["data", "y", "z"]
        assert model.stochastic_nodes == ["data", "y", "z"]
        assert model.observation_nodes == observed
    labeled = LABELS >= 0
    for program in (vae.guide, vae.model):
        for _ in range(20):
            y = poutine.trace(program).get_trace(x, LABELS).nodes["y"]["value"]
            assert isinstance(y, Tensor)
            assert y.argmax(-1)[labeled].tolist() == LABELS[labeled].tolist()
    model.compute_log_prob()
    third = -math.log(CLASSES)
    torch.testing.assert_close(model.nodes["label"]["log_prob"], torch.where(labeled, third, 0.0))
    torch.testing.assert_close(model.nodes["y"]["log_prob"], torch.where(labeled, 0.0, third))


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("parallel", [False, True])
def test_SemiSupervisedVAE_predictive(parallel: bool) -> None:
    vae, x = small(), torch.rand(6, 4).round()
    shapes = {"y": (7, 6, CLASSES), "z": (7, 6, 2), "x": (7, 6, 4)}
    predictive = Predictive(vae.model, num_samples=7, parallel=parallel)
    assert {name: tuple(value.shape) for name, value in predictive(size=6).items()} == shapes
    y = predictive(None, LABELS)["y"].argmax(-1)
    assert (y == LABELS)[:, LABELS >= 0].all()
    model = poutine.uncondition(vae.model)
    again = Predictive(model, guide=vae.guide, num_samples=7, parallel=parallel)(x)
    assert again["x"].shape == (7, 6, 4)


# Its own methods


def test_SemiSupervisedVAE_classify_and_encode() -> None:
    oracle = MixtureOfLinear(exact_classifier=True)
    vae = oracle.vae()
    x = vae.sample(12)
    assert torch.equal(vae.classify(x), oracle.log_joint(x).argmax(-1))
    assert vae.classify(x.unflatten(0, (3, 4))).shape == (3, 4)
    labels = torch.arange(12) % CLASSES
    one_hot = torch.eye(CLASSES, dtype=torch.float64)
    torch.testing.assert_close(vae.encode(x, labels).mean, vae.posterior(x, one_hot[labels]).mean)
    means = torch.stack([vae.posterior(x, y.expand(12, -1)).mean for y in one_hot])
    encoded = vae.encode(x).mean
    assert (torch.isclose(encoded, means).all(-1).sum(0) == 1).all()  # at one of the classes
    assert vae.encode(x.unflatten(0, (3, 4)), labels.unflatten(0, (3, 4))).batch_shape == (3, 4)


def test_SemiSupervisedVAE_sample_has_the_moments_of_its_class() -> None:
    oracle = MixtureOfLinear(exact_classifier=False)
    vae, pca = oracle.vae(), oracle.pca
    signal = (pca.weight**2).sum(1)
    labels = torch.full((2000,), 1)
    expected = pca.bias + oracle.shifts[1]
    for mean, variance in ((False, signal + pca.scale**2), (True, signal)):
        values = vae.sample(2000, labels, mean=mean)
        assert not values.requires_grad
        assert ((values.mean(0) - expected).abs() < 5 * (variance / 2000).sqrt()).all()
        # The variance of a normal sample's variance is 2 variance^2 / (n - 1).
        assert ((values.var(0) - variance).abs() < 5 * variance * (2 / 1999) ** 0.5).all()
    # Without labels, classes are drawn alike: the mean is over all three, each in a third of the draws.
    values = vae.sample(3000)
    variance = signal + pca.scale**2 + oracle.shifts.var(0, correction=0)
    assert ((values.mean(0) - pca.bias - oracle.shifts.mean(0)).abs() < 5 * (variance / 3000).sqrt()).all()


def test_SemiSupervisedVAE_reconstruct_is_the_mean_at_one_draw() -> None:
    vae, x = small(), torch.rand(6, 4).round()
    torch.manual_seed(1)
    reconstructed = vae.reconstruct(x, LABELS.abs())
    torch.manual_seed(1)
    z = vae.encode(x, LABELS.abs()).sample()
    assert torch.equal(reconstructed, vae.decode(z, torch.eye(CLASSES)[LABELS.abs()]).mean)
    assert not reconstructed.requires_grad
    assert vae.reconstruct(x).shape == x.shape


def test_SemiSupervisedVAE_what_the_likelihood_takes_beside_follows_the_labels() -> None:
    vae = SemiSupervisedVAE(
        StandardNormal(2),
        Poisson(MLP(2, [5], context_shapes=[CLASSES]), 4, library_size=True),
        DiagonalNormal(MLP(4, [5], context_shapes=[CLASSES]), 2),
        OneHotCategorical(MLP(4, [5]), CLASSES),
    )
    library = torch.arange(10.0, 70.0, 10.0)
    x = vae.sample(6, LABELS, library)
    torch.testing.assert_close(vae.reconstruct(x, LABELS, library).sum(-1), library)
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), enumerated())
    assert svi.step(x, LABELS, library) > 0


# On digits


@pytest.mark.slow  # 10 s
def test_SemiSupervisedVAE_of_digits_with_100_labels() -> None:
    """Accuracy on 448 unseen digits, on which 1.6 per cent is one standard error."""
    train, validation, test = data.load("digits", binarize="threshold", seed=0)
    shown = torch.as_tensor(train.labels).clone()
    shown[100:] = -1  # the set is in random order
    torch.manual_seed(0)
    vae = SemiSupervisedVAE(
        StandardNormal(8),
        Bernoulli(MLP(8, [64], context_shapes=[10]), train.event_shape, data_mean=train.mean()),
        DiagonalNormal(MLP(train.event_shape, [64], context_shapes=[10]), 8),
        OneHotCategorical(MLP(train.event_shape, [64]), 10),
        classification_weight=0.1 * len(train) / 100,
    )
    history = fit(
        vae,
        train.conditioned_on(shown),
        validation,
        loss=enumerated(),
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        epochs=40,
        seed=0,
        progress=False,
    )
    assert history["validation_elbo"][-1] > history["validation_elbo"][0] + 5
    right = [(vae.classify(part.tensor()) == torch.as_tensor(part.labels)).float() for part in (validation, test)]
    # Measured .86 to .89 over seeds; the same classifier has .84 from the hundred labels alone.
    assert torch.cat(right).mean().item() > 0.8


# Refused


def parts() -> dict[str, Any]:
    return {
        "prior": StandardNormal(2),
        "likelihood": Bernoulli(MLP(2, [], context_shapes=[3]), 4),
        "posterior": DiagonalNormal(MLP(4, [], context_shapes=[3]), 2),
        "classifier": OneHotCategorical(MLP(4, []), 3),
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"classifier": MLP(4, [])},
            TypeError,
            "SemiSupervisedVAE: expected classifier to be a OneHotCategorical; got MLP. Build it from pyro_vae.cond",
        ),
        (
            {"prior": MLP(4, [])},
            TypeError,
            "SemiSupervisedVAE: expected prior to be a Prior; got MLP. Build it from pyro_vae.priors.",
        ),
        (
            {"likelihood": Bernoulli(MLP(2, []), 4)},
            ValueError,
            "SemiSupervisedVAE: expected a likelihood whose body takes z and one-hot classes; got context shapes []. "
            "Build it with context_shapes=[num_classes].",
        ),
        (
            {"likelihood": Bernoulli(MLP(3, [], context_shapes=[3]), 4)},
            ValueError,
            "SemiSupervisedVAE: expected the latent shape of prior and likelihood body to be equal; got (2,) and (3,).",
        ),
        (
            {"prior": StandardNormal(3)},
            ValueError,
            "SemiSupervisedVAE: expected the latent shape of prior and posterior to be equal; got (3,) and (2,).",
        ),
        (
            {"posterior": DiagonalNormal(MLP(4, []), 2)},
            ValueError,
            "SemiSupervisedVAE: expected the body of the posterior to take inputs of shapes [(4,), (3,)]; got [(4,)].",
        ),
        (
            {"classifier": OneHotCategorical(MLP(5, []), 3)},
            ValueError,
            "SemiSupervisedVAE: expected the body of the classifier to take inputs of shapes [(4,)]; got [(5,)].",
        ),
        (
            {"classifier": OneHotCategorical(MLP(4, []), 4)},
            ValueError,
            "SemiSupervisedVAE: expected the classes of classifier and likelihood body to be equal; got (4,) and (3,).",
        ),
        (
            {"classification_weight": -1.0},
            ValueError,
            "SemiSupervisedVAE: expected classification_weight at least 0; got -1.0. Give a non-negative number.",
        ),
    ],
)
def test_SemiSupervisedVAE_parts_that_do_not_fit_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        SemiSupervisedVAE(**parts() | changes)


X = torch.zeros(6, 4)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda vae: vae.guide(None, LABELS), ValueError, "Guide: expected data x; got None. q(y, z|x) has no draw"),
        (
            lambda vae: vae.model(X, LABELS[:4]),
            ValueError,
            "SemiSupervisedVAE: expected x, context and size to agree on the number of data; got [4, 6].",
        ),
        (lambda vae: vae.model(X + 0.5), ValueError, "Bernoulli likelihood: expected binary values, 0 or 1"),
        (lambda vae: vae.check_data(X + 0.5), ValueError, "Bernoulli likelihood: expected binary values, 0 or 1"),
        (
            lambda vae: fit(vae, data.as_dataset(X).conditioned_on(LABELS + 1), progress=False),
            ValueError,
            "SemiSupervisedVAE: expected labels (N,) from -1, for none, to 2; got shape (6,), 0 to 3. Number the",
        ),
        (
            lambda vae: vae.check_data(X, torch.eye(6, 3).long()),
            ValueError,
            "SemiSupervisedVAE: expected labels (N,) from -1, for none, to 2; got shape (6, 3), 0 to 1.",
        ),
        (
            lambda vae: vae.check_data(X, LABELS.float()),
            TypeError,
            "SemiSupervisedVAE: expected labels of torch.int64, -1 for none; got torch.float32. Use labels.long().",
        ),
    ],
)
def test_SemiSupervisedVAE_data_that_do_not_fit_are_refused(
    call: Callable[[SemiSupervisedVAE], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(SemiSupervisedVAE(**parts()))
