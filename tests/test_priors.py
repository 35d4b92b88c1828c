import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import members
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence

from pyro_vae import SVI, VAE, conditionals, elbo, likelihoods, nets, priors
from pyro_vae.distributions import LogDirichlet
from pyro_vae.distributions.normalizing_flow import FlowLayers
from pyro_vae.priors.flows import FlowPrior


def unwrapped(support: Any) -> constraints.Constraint:
    return unwrapped(support.base_constraint) if isinstance(support, constraints.independent) else support


@pytest.mark.parametrize("name", members.PRIORS)
def test_Prior_has_the_support_of_its_distribution(name: str) -> None:
    prior = members.PRIORS[name]()
    assert repr(prior.support) == repr(unwrapped(prior().support))


@pytest.mark.parametrize("prior", [priors.OneHotCategorical, priors.RelaxedOneHotCategorical, priors.Bernoulli])
def test_Prior_takes_latents_of_several_dims(prior: type[priors.Prior]) -> None:
    p = prior((4, 3))()
    assert (p.batch_shape, p.event_shape, p.sample().shape) == ((), (4, 3), (4, 3))


KL: dict[str, tuple[dist.TorchDistribution, priors.Prior, float]] = {
    "Normal": (dist.Normal(torch.ones(1), 0.5).to_event(1), priors.StandardNormal(1), 0.81814718),
    "learned Normal": (dist.Normal(torch.ones(1), 0.5).to_event(1), priors.Normal(1), 0.81814718),
    "Dirichlet": (LogDirichlet(torch.tensor([2.0, 3.0, 4.0])), priors.Dirichlet(3), 0.61940622),
    "Laplace": (dist.Laplace(torch.ones(1), 0.5).to_event(1), priors.Laplace(1), 0.76081482),
    "Bernoulli": (
        dist.Bernoulli(torch.tensor([0.7])).to_event(1),
        priors.Bernoulli(1),
        0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5),
    ),
}


@pytest.mark.parametrize("name", KL)
def test_Prior_divergence_from_it(name: str) -> None:
    q, prior, expected = KL[name]
    assert kl_divergence(q, prior()).item() == pytest.approx(expected, abs=1e-6)


def test_Prior_has_the_scale_and_concentration_that_are_given() -> None:
    assert priors.Laplace(2, scale=0.3)().stddev[0].item() == pytest.approx(0.3 * math.sqrt(2))
    assert priors.Dirichlet(2, concentration=0.3)().proportions.mean.tolist() == [0.5, 0.5]
    assert priors.Dirichlet(2, concentration=0.5)().proportions.variance[0].item() == pytest.approx(1 / 8)
    y = priors.LogisticNormal(2, scale=3.0)().sample(torch.Size((20000,)))
    log_ratio = y[:, 0] - y[:, 1]
    assert log_ratio.std().item() == pytest.approx(3, abs=5 * 3 / math.sqrt(2 * 20000))  # 5 standard errors


def test_RelaxedBernoulli_temperature_can_be_changed_at_any_step_and_is_saved() -> None:
    for prior in (priors.RelaxedBernoulli(2, temperature=1.0), priors.RelaxedOneHotCategorical(3, temperature=1.0)):
        z = prior().sample()
        before = prior().log_prob(z)
        prior.temperature.fill_(0.3)
        assert prior.state_dict()["temperature"].item() == pytest.approx(0.3)
        assert prior().log_prob(z) != before


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: priors.MixtureOfNormals(2), "expected either num_components or loc; got None and None"),
        (lambda: priors.MixtureOfNormals(2, 3, loc=torch.zeros(3, 2)), r"got 3 and \(3, 2\)"),
        (lambda: priors.MixtureOfNormals(2, 0), "expected num_components at least 1; got 0"),
        (lambda: priors.MixtureOfNormals(2, loc=torch.zeros(3, 1)), r"of shape \(num_components, 2\); got \(3, 1\)"),
        (lambda: priors.Laplace(2, scale=0.0), "Laplace prior: expected scale above 0; got 0"),
        (lambda: priors.Dirichlet(1), "Dirichlet prior: expected latent_dim at least 2; got 1"),
        (lambda: priors.Dirichlet(2, concentration=-1.0), "expected concentration above 0; got -1.0"),
        (lambda: priors.LogisticNormal(2, scale=0.0), "LogisticNormal prior: expected scale above 0"),
        (lambda: priors.HypersphericalUniform(1)(), "expected dim at least 2; got 1"),
        (lambda: priors.RelaxedBernoulli(2, temperature=0.0), "RelaxedBernoulli prior: expected temperature above 0"),
        (lambda: priors.RealNVP(2, num_layers=0), "Flow: expected num_layers at least 1; got 0"),
    ],
)
def test_Prior_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_MixtureOfNormals_keeps_given_means_and_learns_others() -> None:
    means = torch.randn(3, 2)
    given = priors.MixtureOfNormals(2, loc=means)
    assert sorted(name for name, _ in given.named_parameters()) == ["log_scale", "logits"]
    assert given.state_dict()["loc"].equal(means)
    learned = priors.MixtureOfNormals(2, num_components=3)
    assert sorted(name for name, _ in learned.named_parameters()) == ["loc", "log_scale", "logits"]


# VampPrior


def posterior(**options: Any) -> conditionals.DiagonalNormal:
    return conditionals.DiagonalNormal(nets.MLP((1, 2, 2), [5], **options), 3)


def vamp_vae(prior: priors.VampPrior) -> VAE:
    return VAE(prior, likelihoods.Bernoulli(nets.MLP(3, [5]), (1, 2, 2)), posterior())


def test_VampPrior_is_the_average_of_the_posteriors() -> None:
    vae = vamp_vae(priors.VampPrior(torch.rand(6, 1, 2, 2))).double()
    assert isinstance(vae.prior, priors.VampPrior)
    z = torch.randn(7, 3, dtype=torch.float64)
    each = torch.stack([vae.posterior(u).log_prob(z) for u in vae.prior.pseudo_inputs])
    torch.testing.assert_close(vae.prior().log_prob(z), each.exp().mean(0).log())


def test_VampPrior_of_equal_pseudo_inputs_is_the_posterior_there() -> None:
    # which holds only with -log K
    u = torch.rand(1, 1, 2, 2)
    vae = vamp_vae(priors.VampPrior(u.expand(5, 1, 2, 2)))
    z = torch.randn(7, 3)
    torch.testing.assert_close(vae.prior().log_prob(z), vae.posterior(u[0]).log_prob(z))


def test_VampPrior_scales_pixels_and_clamps() -> None:
    pixels = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)
    torch.testing.assert_close(
        priors.VampPrior(pixels).pseudo_inputs.detach().flatten(), torch.tensor([0.0, 0.2, 0.4, 1.0])
    )
    q, z = posterior(), torch.randn(3)
    outside = torch.tensor([-1.0, 2.0, 0.5, 1.0]).reshape(1, 1, 2, 2)
    clamped = priors.VampPrior(outside).bind(q)().log_prob(z)
    torch.testing.assert_close(clamped, q(outside.clamp(0, 1)).log_prob(z).squeeze())
    free = priors.VampPrior(outside, clamp=False).bind(q)().log_prob(z)
    torch.testing.assert_close(free, q(outside).log_prob(z).squeeze())


def test_VampPrior_does_not_register_the_posterior_twice() -> None:
    vae = vamp_vae(priors.VampPrior(torch.rand(4, 1, 2, 2)))
    assert [name for name in vae.state_dict() if "prior" in name] == ["model.prior.pseudo_inputs"]
    assert len(list(vae.parameters())) == len({id(p) for p in vae.parameters()})
    restored = safetensors.torch.load(safetensors.torch.save(vae.state_dict()))  # which refuses shared memory
    assert restored.keys() == vae.state_dict().keys()


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
def test_VampPrior_of_a_copy_is_bound_to_the_copied_posterior(copier: Callable[[VAE], VAE]) -> None:
    vae = vamp_vae(priors.VampPrior(torch.rand(4, 1, 2, 2)))
    copied, z = copier(vae), torch.randn(3)
    torch.testing.assert_close(copied.prior().log_prob(z), vae.prior().log_prob(z))
    with torch.no_grad():
        for parameter in copied.posterior.parameters():
            parameter.add_(0.5)
    assert copied.prior().log_prob(z) != vae.prior().log_prob(z)
    each = torch.stack([copied.posterior(u).log_prob(z) for u in copied.prior.pseudo_inputs])  # type: ignore[union-attr]
    torch.testing.assert_close(copied.prior().log_prob(z), each.exp().mean(0).log())


def test_VampPrior_training_moves_pseudo_inputs_and_posterior() -> None:
    vae = vamp_vae(priors.VampPrior(torch.full((4, 1, 2, 2), 0.5)))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), loss=elbo.ELBO())
    svi.step(torch.ones(8, 1, 2, 2))
    assert all(not value.equal(before[name]) for name, value in vae.state_dict().items())


def test_VampPrior_moves_with_its_posterior() -> None:
    vae = vamp_vae(priors.VampPrior(torch.rand(4, 1, 2, 2))).double()
    assert vae.prior().log_prob(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
    prior = priors.VampPrior(torch.rand(4, 1, 2, 2)).bind(posterior())
    assert prior.double()().sample().dtype == torch.float64


def test_VampPrior_errors() -> None:
    with pytest.raises(ValueError, match=r"expected pseudo_inputs of shape \(K, \*event_shape\); got \(0, 4\)"):
        priors.VampPrior(torch.zeros(0, 4))
    prior = priors.VampPrior(torch.rand(4, 1, 2, 2))
    with pytest.raises(ValueError, match=r"expected to be bound to a posterior; got none\. Build a VAE with it"):
        prior()
    with pytest.raises(ValueError, match=r"of data of shape \(1, 2, 2\); got a body with inputs of shapes \[\(4,\)\]"):
        prior.bind(conditionals.DiagonalNormal(nets.MLP(4, [5]), 3))
    with pytest.raises(ValueError, match=r"with inputs of shapes \[\(1, 2, 2\), \(10,\)\]"):
        prior.bind(posterior(context_shapes=[10]))


# Flows


def count_passes(prior: priors.Prior, call: Callable[[], object]) -> int:
    """How often a call evaluates the network of the first layer."""
    calls: list[None] = []
    layers = next(module for module in prior.modules() if isinstance(module, FlowLayers))
    handle = layers.transform.transforms[0].hyper.register_forward_hook(lambda *_: calls.append(None))
    call()
    handle.remove()
    return len(calls)


@pytest.mark.parametrize("kind", [priors.RealNVP, priors.NeuralSpline, priors.MaskedAutoregressive])
def test_FlowPrior_density_takes_one_pass_in_any_dimension(kind: Callable[..., FlowPrior]) -> None:
    prior = kind(7, hidden=[8])
    z = torch.randn(5, 7)
    assert count_passes(prior, lambda: prior().log_prob(z)) == 1
    draw = count_passes(prior, lambda: prior().sample())
    assert draw == (7 if kind is priors.MaskedAutoregressive else 2) + 1  # and one for the determinant


@pytest.mark.parametrize("kind", [priors.RealNVP, priors.NeuralSpline, priors.MaskedAutoregressive])
@pytest.mark.parametrize("dim", [1, 5])
def test_FlowPrior_density_is_the_change_of_variables(kind: Callable[..., FlowPrior], dim: int) -> None:
    prior = kind(dim, hidden=[8]).double()
    z = torch.randn(dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(prior.layers(), z)
    expected = dist.Normal(0.0, 1.0).log_prob(prior.layers()(z)).sum() + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(prior().log_prob(z), expected)
    draw = prior().rsample()
    torch.testing.assert_close(prior.layers().inv(prior.layers()(draw)), draw)


def test_FlowPrior_repr_draws_nothing() -> None:
    prior = priors.NeuralSpline(3)
    state = torch.get_rng_state()
    assert repr(prior).startswith("NeuralSpline(\n  (layers): FlowLayers(spline, dim=3, num_layers=4")
    assert torch.get_rng_state().equal(state)


# With every posterior


def pair(prior: priors.Prior, conditional: conditionals.Conditional) -> VAE:
    return VAE(prior, likelihoods.Bernoulli(nets.MLP(members.LATENT, [5]), (1, 2, 2)), conditional)


def fits(prior: priors.Prior, conditional: conditionals.Conditional) -> bool:
    if isinstance(prior, priors.VampPrior):
        return isinstance(conditional, conditionals.DiagonalNormal)
    return repr(prior.support) == repr(conditional.support)


@pytest.mark.parametrize("conditional", members.CONDITIONALS)
@pytest.mark.parametrize("prior", members.PRIORS)
def test_VAE_of_a_pair_trains_or_is_refused(prior: str, conditional: str) -> None:
    p, q = members.PRIORS[prior](), members.CONDITIONALS[conditional]()
    if not fits(p, q):
        with pytest.raises(
            ValueError, match=r"(expected a posterior on the support|independent Normals).*conditionals"
        ):
            pair(p, q)
        return
    vae, x = pair(p, q), torch.ones(4, 1, 2, 2)
    loss = (
        elbo.ELBO(num_particles=3)
        if vae.posterior(x).has_rsample
        else pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    )
    before = {name: value.clone() for name, value in vae.posterior.named_parameters()}
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), loss=loss)
    losses = [svi.step(x), svi.evaluate_loss(x)]
    assert all(math.isfinite(value) for value in losses)
    assert all(bool(value.isfinite().all()) for value in vae.parameters())
    assert any(not value.equal(before[name]) for name, value in vae.posterior.named_parameters())


def test_VAE_refusal_names_what_fits() -> None:
    with pytest.raises(
        ValueError,
        match=r"^VAE: expected a posterior on the support of the prior StandardNormal, real vectors; got "
        r"VonMisesFisher on the unit sphere\. Use one of conditionals\.DiagonalNormal, .* with this prior, or one of "
        r"priors\.HypersphericalUniform with this posterior\.$",
    ):
        pair(members.PRIORS["StandardNormal"](), members.CONDITIONALS["VonMisesFisher"]())
    with pytest.raises(ValueError, match=r"expected a posterior of independent Normals; got FullRankNormal\. Use"):
        pair(members.PRIORS["VampPrior"](), members.CONDITIONALS["FullRankNormal"]())


CLOSED_FORMS = {
    ("StandardNormal", "DiagonalNormal"),
    ("StandardNormal", "LowRankNormal"),
    ("StandardNormal", "FullRankNormal"),
    ("Normal", "DiagonalNormal"),
    ("Normal", "LowRankNormal"),
    ("Normal", "FullRankNormal"),
    ("Laplace", "DiagonalNormal"),
    ("HypersphericalUniform", "VonMisesFisher"),
    ("Dirichlet", "Dirichlet"),
    ("LogisticNormal", "LogisticNormal"),
    ("Bernoulli", "Bernoulli"),
    ("OneHotCategorical", "OneHotCategorical"),
}


@pytest.mark.parametrize("prior", members.PRIORS)
def test_Prior_closed_form_divergences_agree_with_monte_carlo(prior: str) -> None:
    # within 5 standard errors of a mean over 20000 draws; and no others are claimed
    p = members.PRIORS[prior]().double()
    for conditional, build in members.CONDITIONALS.items():
        q = build().double()
        if not fits(p, q):
            continue
        fitted: Tensor = torch.ones(1, 2, 2, dtype=torch.float64)
        posterior, prior_distribution = q(fitted), p()
        if (prior, conditional) not in CLOSED_FORMS:
            with pytest.raises(NotImplementedError):
                kl_divergence(posterior, prior_distribution)
            continue
        z = posterior.sample(torch.Size((20000,)))
        log_ratio = (posterior.log_prob(z) - prior_distribution.log_prob(z)).detach()
        error = abs(log_ratio.mean().item() - kl_divergence(posterior, prior_distribution).item())
        assert error < 5 * log_ratio.std().item() / math.sqrt(20000), conditional
