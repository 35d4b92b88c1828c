"""Conditional VAEs: the context reaches every part, and the density is that of x given c."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.infer
import pytest
import torch
from oracles import LinearVAE
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor, nn

from pyro_vae import SVI, ConditionalVAE, data, elbo, fit
from pyro_vae.conditionals import DiagonalNormal, Dirichlet
from pyro_vae.likelihoods import Bernoulli, Normal, Poisson
from pyro_vae.nets import MLP, ConvDecoder, ConvEncoder
from pyro_vae.priors import StandardNormal, VampPrior

IMAGE = (1, 2, 3)


def small(*, conditional_prior: bool = False) -> ConditionalVAE:
    """Of bits, given a vector of 4 and an array of 2 x 2."""
    contexts: list[Any] = [4, (2, 2)]
    return ConditionalVAE(
        DiagonalNormal(MLP(4, [6], context_shapes=[(2, 2)]), 2) if conditional_prior else StandardNormal(2),
        Bernoulli(MLP(2, [6], context_shapes=contexts), IMAGE),
        DiagonalNormal(MLP(IMAGE, [6], context_shapes=contexts), 2),
    )


def batch(num_data: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(num_data, *IMAGE).round(), torch.randn(num_data, 4), torch.randn(num_data, 2, 2)


class LinearGivenContext:
    """x|z, c ~ Normal(W z + V c + b, s^2 I), z|c ~ Normal(U c, I): PCA, of x - (V + W U) c in terms of z - U c."""

    def __init__(self, *, conditional_prior: bool) -> None:
        self.centered = LinearVAE.random(orthogonal=True)
        self.shift = torch.randn(5, 3, dtype=torch.float64)
        self.prior_shift = torch.randn(2, 3, dtype=torch.float64) * conditional_prior
        self.conditional_prior = conditional_prior

    def log_marginal_likelihood(self, x: Tensor, c: Tensor) -> Tensor:
        total = self.shift + self.centered.weight @ self.prior_shift
        return self.centered.log_marginal_likelihood(x - c @ total.T)

    def vae(self) -> ConditionalVAE:
        """With the exact posterior as its guide."""
        pca = self.centered
        likelihood = Normal(MLP(2, [], context_shapes=[3]), 5, scale=pca.scale)
        set_layer(likelihood.head.layer, torch.cat([pca.weight, self.shift], 1), pca.bias)
        # z - Uc has the posterior of pca at x - (V + W U) c.
        to_loc = torch.linalg.solve(pca.precision, pca.weight.T)
        of_context = self.prior_shift - to_loc @ (self.shift + pca.weight @ self.prior_shift)
        weight = torch.cat([to_loc, of_context], 1)
        posterior = DiagonalNormal(MLP(5, [], context_shapes=[3]), 2)
        set_layer(
            posterior.head.layer,
            torch.cat([weight, torch.zeros_like(weight)]),
            torch.cat([-to_loc @ pca.bias, pca.diagonal_scale().log()]),
        )
        prior = DiagonalNormal(MLP(3, []), 2)
        set_layer(
            prior.head.layer,
            torch.cat([self.prior_shift, torch.zeros_like(self.prior_shift)]),
            torch.zeros(4, dtype=torch.float64),
        )
        vae = ConditionalVAE(prior if self.conditional_prior else StandardNormal(2), likelihood, posterior)
        return vae.double()


def set_layer(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.clone())


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("conditional_prior", [False, True])
def test_ConditionalVAE_with_the_exact_posterior_every_bound_is_the_evidence_given_the_context(
    conditional_prior: bool,
) -> None:
    oracle = LinearGivenContext(conditional_prior=conditional_prior)
    vae, c = oracle.vae(), torch.randn(6, 3, dtype=torch.float64)
    x = vae.sample(c)
    expected = -oracle.log_marginal_likelihood(x, c).sum().item()
    losses: list[Any] = [
        pyro.infer.Trace_ELBO(),
        pyro.infer.TraceGraph_ELBO(),
        pyro.infer.RenyiELBO(num_particles=3, vectorize_particles=True),
        elbo.ELBO(num_particles=3),
    ]
    for loss in losses:
        assert loss.loss(vae.model, vae.guide, x, c) == pytest.approx(expected, abs=1e-9)
    assert elbo.ELBO().loss(vae.model, vae.guide, x, c + 1) > expected + 1


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_ConditionalVAE_every_part_trains_and_knows_the_context(conditional_prior: bool) -> None:
    vae, (x, *context) = small(conditional_prior=conditional_prior), batch()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), elbo.ELBO(num_particles=2))
    svi.step(x, *context)
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []
    z = torch.randn(5, 2)
    for i in range(2):
        other = [c + (i == j) for j, c in enumerate(context)]
        assert (vae.decode(z, *context).mean - vae.decode(z, *other).mean).abs().max() > 1e-3
        assert (vae.encode(x, *context).mean - vae.encode(x, *other).mean).abs().max() > 1e-3


@pytest.mark.slow  # 2 s
def test_ConditionalVAE_fit_learns_the_classes_of_digits_apart() -> None:
    train, validation, _ = data.load("digits", binarize="dynamic", seed=0)
    train, validation = (s.conditioned_on(torch.eye(10)[s.labels]) for s in (train, validation))
    torch.manual_seed(0)
    vae = ConditionalVAE(
        StandardNormal(4),
        Bernoulli(MLP(4, [64], context_shapes=[10]), train.event_shape, data_mean=train.mean()),
        DiagonalNormal(MLP(train.event_shape, [64], context_shapes=[10]), 4),
    )
    adam = partial(torch.optim.Adam, lr=5e-3)
    history = fit(vae, train, validation, optimizer=adam, epochs=10, seed=0, progress=False)
    assert history["validation_elbo"][-1] > history["validation_elbo"][0] + 2
    # Samples of a class look like the class: they are nearest to its mean image among the ten.
    x, labels = train.tensor(), torch.as_tensor(train.labels)
    means = torch.stack([x[labels == k].mean(0) for k in range(10)])
    drawn = torch.stack([vae.sample(torch.eye(10)[k].expand(200, 10), mean=True).mean(0) for k in range(10)])
    assert torch.cdist(drawn.flatten(1), means.flatten(1)).argmin(1).tolist() == list(range(10))


@pytest.mark.usefixtures("global_store")
def test_ConditionalVAE_sites() -> None:
    vae, args = small(conditional_prior=True), batch()
    guide = poutine.trace(vae.guide).get_trace(*args)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(*args)
    assert guide.stochastic_nodes == ["data", "z"]
    assert model.stochastic_nodes == ["data", "z"]
    assert model.observation_nodes == ["x"]
    assert (vae.latents, vae.observed) == (("z",), ("x",))


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("conditional_prior", [False, True])
def test_ConditionalVAE_predictive(conditional_prior: bool, parallel: bool) -> None:
    vae, args = small(conditional_prior=conditional_prior), batch()
    draws = Predictive(vae.model, num_samples=7, parallel=parallel)(None, *args[1:])
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"z": (7, 5, 2), "x": (7, 5, *IMAGE)}
    model = poutine.uncondition(vae.model)
    again = Predictive(model, guide=vae.guide, num_samples=7, parallel=parallel)(*args)
    assert again["x"].shape == (7, 5, *IMAGE)


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_ConditionalVAE_own_methods_take_the_context(conditional_prior: bool) -> None:
    vae, (x, *context) = small(conditional_prior=conditional_prior), batch(12)
    assert vae.sample(*context).shape == x.shape
    assert set(vae.sample(*context).unique().tolist()) == {0.0, 1.0}
    means = vae.sample(*context, mean=True)
    assert means.shape == x.shape
    assert not means.requires_grad
    torch.manual_seed(1)
    reconstructed = vae.reconstruct(x, *context)
    torch.manual_seed(1)
    assert torch.equal(reconstructed, vae.decode(vae.encode(x, *context).sample(), *context).mean)
    folded = [value.unflatten(0, (3, 4)) for value in (x, *context)]
    assert vae.reconstruct(*folded).shape == (3, 4, *IMAGE)


def test_ConditionalVAE_sample_has_the_moments_of_the_density_given_the_context() -> None:
    oracle = LinearGivenContext(conditional_prior=True)
    vae, c = oracle.vae(), torch.randn(3, dtype=torch.float64)
    pca = oracle.centered
    expected = pca.bias + (oracle.shift + pca.weight @ oracle.prior_shift) @ c
    signal = (pca.weight**2).sum(1)
    rows = c.expand(2000, 3)
    for values, variance in ((vae.sample(rows), signal + pca.scale**2), (vae.sample(rows, mean=True), signal)):
        assert ((values.mean(0) - expected).abs() < 5 * (variance / 2000).sqrt()).all()
        # The variance of a normal sample's variance is 2 variance^2 / (n - 1).
        assert ((values.var(0) - variance).abs() < 5 * variance * (2 / 1999) ** 0.5).all()


def test_ConditionalVAE_convolutions_take_a_context() -> None:
    image = (1, 6, 6)
    vae = ConditionalVAE(
        StandardNormal(2),
        Bernoulli(ConvDecoder(2, image, [4, 4], context_shapes=[3]), image),
        DiagonalNormal(ConvEncoder(image, [4, 4], context_shapes=[3]), 2),
    )
    loss = elbo.ELBO(num_particles=2)
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), loss)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    for _ in range(3):
        svi.step(torch.rand(4, *image).round(), torch.eye(3)[[0, 1, 2, 0]])
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []


def test_ConditionalVAE_what_the_likelihood_takes_beside_follows_the_context() -> None:
    vae = ConditionalVAE(
        DiagonalNormal(MLP(3, []), 2),
        Poisson(MLP(2, [], context_shapes=[3]), 4, library_size=True),
        DiagonalNormal(MLP(4, [], context_shapes=[3]), 2),
    )
    c, library = torch.randn(5, 3), torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    x = vae.sample(c, library)
    torch.testing.assert_close(vae.reconstruct(x, c, library).sum(-1), library)
    vae.check_data(x, c, library)
    with pytest.raises(ValueError, match="Poisson likelihood: expected a library_size above 0"):
        vae.check_data(x, c, -library)
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), elbo.ELBO(num_particles=2))
    assert svi.step(x, c, library) > 0


# Refused


def parts() -> dict[str, Any]:
    return {
        "prior": StandardNormal(2),
        "likelihood": Bernoulli(MLP(2, [], context_shapes=[4]), IMAGE),
        "posterior": DiagonalNormal(MLP(IMAGE, [], context_shapes=[4]), 2),
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"prior": MLP(4, [])},
            TypeError,
            "ConditionalVAE: expected prior to be a Prior; got MLP. Build it from pyro_vae.priors.",
        ),
        (
            {"likelihood": MLP(4, [])},
            TypeError,
            "ConditionalVAE: expected likelihood to be a Likelihood; got MLP. Build it from pyro_vae.likelihoods.",
        ),
        (
            {"posterior": MLP(4, [])},
            TypeError,
            "ConditionalVAE: expected posterior to be a Conditional; got MLP. Build it from pyro_vae.conditionals.",
        ),
        (
            {"likelihood": Bernoulli(MLP(2, []), IMAGE)},
            ValueError,
            "ConditionalVAE: expected a likelihood whose body takes a context; got one that takes z alone. Build it "
            "with context_shapes=[...], or use VAE.",
        ),
        (
            {"prior": StandardNormal(3)},
            ValueError,
            "ConditionalVAE: expected the latent shape of prior and posterior to be equal; got (3,) and (2,).",
        ),
        (
            {"likelihood": Bernoulli(MLP(3, [], context_shapes=[4]), IMAGE)},
            ValueError,
            "ConditionalVAE: expected the latent shape of prior and likelihood body to be equal; got (2,) and (3,).",
        ),
        (
            {"posterior": DiagonalNormal(MLP(IMAGE, []), 2)},
            ValueError,
            "ConditionalVAE: expected the body of the posterior to take inputs of shapes [(1, 2, 3), (4,)]; got "
            "[(1, 2, 3)]. Build it for these shapes.",
        ),
        (
            {"prior": DiagonalNormal(MLP(3, []), 2)},
            ValueError,
            "ConditionalVAE: expected the body of the prior to take inputs of shapes [(4,)]; got [(3,)].",
        ),
        (
            {"prior": Dirichlet(MLP(4, []), 2)},
            ValueError,
            "ConditionalVAE: expected a posterior on the support of the prior Dirichlet, logarithms of proportions; "
            "got DiagonalNormal on real vectors.",
        ),
        (
            {"prior": VampPrior(torch.zeros(3, *IMAGE))},
            ValueError,
            "VampPrior: expected a posterior of data of shape (1, 2, 3); got a body with inputs of shapes "
            "[(1, 2, 3), (4,)].",
        ),
    ],
)
def test_ConditionalVAE_parts_that_do_not_fit_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        ConditionalVAE(**parts() | changes)


X, C = torch.zeros(5, *IMAGE), torch.zeros(5, 4)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda vae: vae.guide(None, C), ValueError, "Guide: expected data x; got None. q(z|x, c) has no draw without"),
        (
            lambda vae: vae.model(X, C[:4]),
            ValueError,
            "ConditionalVAE: expected x, context and size to agree on the number of data; got [4, 5].",
        ),
        (lambda vae: vae.guide(X), TypeError, "MLP: expected 2 inputs of shapes [(1, 2, 3), (4,)]; got 1."),
        (lambda vae: vae.model(X), TypeError, "Bernoulli likelihood: expected 2 inputs of the body; got 1 in all."),
        (lambda vae: vae.sample(C, C), TypeError, "Bernoulli likelihood: expected 2 inputs of the body; got 3 in all."),
        (lambda vae: vae.model(X + 0.5, C), ValueError, "Bernoulli likelihood: expected binary values, 0 or 1"),
        (lambda vae: vae.check_data(X + 0.5, C), ValueError, "Bernoulli likelihood: expected binary values, 0 or 1"),
        (
            lambda vae: fit(vae, X, progress=False),
            ValueError,
            "fit, training data 'array': ConditionalVAE: expected contexts of shapes [('N', 4)]; got []. Give them "
            "with the data: train.conditioned_on(c).",
        ),
        (
            lambda vae: vae.check_data(X, torch.zeros(5, 3)),
            ValueError,
            "ConditionalVAE: expected contexts of shapes [('N', 4)]; got [(5, 3)].",
        ),
        (
            lambda vae: vae.check_data(X, C.long()),
            TypeError,
            "ConditionalVAE: expected a floating point context; got torch.int64. Give classes as one-hot rows,",
        ),
        (
            lambda vae: vae.check_data(X, C / 0),
            ValueError,
            "ConditionalVAE: expected a finite context; got 20 NaN or infinite values. Leave out these data.",
        ),
    ],
)
def test_ConditionalVAE_data_that_do_not_fit_are_refused(
    call: Callable[[ConditionalVAE], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(ConditionalVAE(**parts()))
