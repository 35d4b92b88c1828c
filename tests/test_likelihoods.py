import math
from collections.abc import Callable
from functools import partial

import members
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Size, Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from pyro_vae import SVI, VAE, conditionals, elbo, likelihoods, nets, priors

LATENT = members.LATENT


def body(**options: object) -> nets.MLP:
    return nets.MLP(LATENT, [5], **options)  # type: ignore[arg-type]


def parents(likelihood: likelihoods.Likelihood, lead: Size) -> list[Tensor]:
    inputs = [torch.randn(lead + shape) for shape in likelihood.body.input_shapes]
    return inputs + [torch.randint(1, 6, lead).float() for _ in likelihood.contexts]


# Losses are likelihoods


def test_Bernoulli_is_the_negative_cross_entropy() -> None:
    likelihood = likelihoods.Bernoulli(body(), (1, 4, 4)).double()
    z, x = torch.randn(6, LATENT).double(), torch.randint(0, 2, (6, 1, 4, 4)).double()
    logits = likelihood.head(likelihood.body(z))["logits"]
    cross_entropy = binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(cross_entropy, -likelihood(z).log_prob(x), atol=1e-6, rtol=0)


def test_Normal_of_unit_variance_is_half_the_squared_error_up_to_its_constant() -> None:
    likelihood = likelihoods.Normal(body(), (1, 4, 4), scale=1.0).double()
    z, x = torch.randn(6, LATENT).double(), torch.randn(6, 1, 4, 4).double()
    p = likelihood(z)
    half_squared_error = mse_loss(p.mean, x, reduction="none").sum((1, 2, 3)) / 2
    constant = 16 * math.log(2 * math.pi) / 2
    torch.testing.assert_close(half_squared_error + constant, -p.log_prob(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("reduce", "variance"), [(torch.sum, 1 / 2), (torch.mean, 16 / 2)])
def test_Normal_of_other_scales_is_other_squared_errors(reduce: Callable[..., Tensor], variance: float) -> None:
    likelihood = likelihoods.Normal(body(), 16, scale=math.sqrt(variance)).double()
    z, x = torch.randn(6, LATENT).double(), torch.randn(6, 16).double()
    p = likelihood(z)
    constant = 16 * math.log(2 * math.pi * variance) / 2
    torch.testing.assert_close(reduce((p.mean - x) ** 2, -1) + constant, -p.log_prob(x), atol=1e-6, rtol=0)


def test_Laplace_of_unit_scale_is_the_absolute_error_up_to_its_constant() -> None:
    p = likelihoods.Laplace(body(), 4, scale=1.0).double()(torch.randn(6, LATENT).double())
    x = torch.randn(6, 4).double()
    torch.testing.assert_close((p.mean - x).abs().sum(-1) + 4 * math.log(2), -p.log_prob(x), atol=1e-6, rtol=0)


# All of them


EXACT_MEAN = [name for name in members.LIKELIHOODS if name not in ("MixtureOfDiscretizedLogistics, RGB", "Dequantized")]


@pytest.mark.parametrize("name", EXACT_MEAN)
def test_Likelihood_mean_is_that_of_the_samples(name: str) -> None:
    likelihood = members.LIKELIHOODS[name]().double()
    with torch.no_grad():
        p = likelihood(*(value.double() for value in parents(likelihood, Size())))
        x = p.sample(Size([50_000]))
        standard_error = x.std(0) / math.sqrt(len(x))
        assert bool(((x.mean(0) - p.mean).abs() <= 5 * standard_error + 1e-6).all())


@pytest.mark.parametrize("name", members.LIKELIHOODS)
@pytest.mark.parametrize("magnitude", [1e-6, 1e4])
def test_Likelihood_extreme_outputs_of_the_network_leave_density_and_gradient_finite(
    name: str, magnitude: float
) -> None:
    likelihood = members.LIKELIHOODS[name]()
    given = parents(likelihood, Size([200]))
    with torch.no_grad():
        x = likelihood(*given).sample()
        for parameter in likelihood.head.parameters():
            parameter.mul_(magnitude)
    log_prob = likelihood(*given).log_prob(x)
    log_prob.sum().backward()
    assert bool(log_prob.isfinite().all())
    for parameter in likelihood.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("name", [name for name in members.LIKELIHOODS if "Dequantized" not in name])
def test_Likelihood_log_density_can_be_recorded(name: str) -> None:
    """As the compiled step does: one graph, without a look at the data's values."""
    likelihood = members.LIKELIHOODS[name]()
    given, other = parents(likelihood, Size([6])), parents(likelihood, Size([6]))
    with torch.no_grad():
        x, y = likelihood(*given).sample(), likelihood(*other).sample()
        with pyro.validation_enabled(False):
            graph = make_fx(lambda x, *given: likelihood(*given).log_prob(x))(x, *given)
        torch.testing.assert_close(graph(y, *other), likelihood(*other).log_prob(y))


@pytest.mark.parametrize("name", members.LIKELIHOODS)
def test_Likelihood_density_and_mean_stay_on_the_device_of_the_parameters(name: str) -> None:
    """On the meta device, which refuses tensors of another one as a GPU does, and needs none."""
    likelihood = members.LIKELIHOODS[name]().to("meta")
    given = [value.to("meta") for value in parents(likelihood, Size([6]))]
    x = torch.zeros(6, *likelihood.event_shape, device="meta")
    with pyro.validation_enabled(False):
        p = likelihood(*given)
        assert p.log_prob(x).device.type == "meta"
        assert p.mean.device.type == "meta"


@pytest.mark.parametrize("name", members.LIKELIHOODS)
def test_Likelihood_vae_with_it_trains_and_samples(name: str) -> None:
    likelihood = members.LIKELIHOODS[name]()
    vae = VAE(
        prior=priors.StandardNormal(LATENT),
        likelihood=likelihood,
        posterior=conditionals.DiagonalNormal(nets.MLP(likelihood.event_shape, [5]), LATENT),
    )
    _, *context = parents(likelihood, Size([6]))
    x = vae.sample(6, *context)
    for loss in (elbo.ELBO(num_particles=3), pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True)):
        svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=1e-3), loss, compile=False)
        assert math.isfinite(svi.step(x, *context))
    assert vae.reconstruct(x, *context).shape == x.shape


# One value the likelihood cannot have produced, and what its message says.
REFUSED = {
    "Bernoulli": (
        0.5,
        r"expected binary values, 0 or 1; got values in \[0\.5, 0\.5\], .* at \[0, 0, 0, 0\]\. Binarize",
    ),
    "ContinuousBernoulli": (1.5, r"expected values in \[0, 1\].*Scale the data"),
    "Beta": (0.0, r"expected values in \(0, 1\), without 0 and 1.*Dequantized"),
    "LogitNormal": (1.0, r"expected values in \(0, 1\), without 0 and 1.*Dequantized"),
    "Normal, learned": (math.nan, "got values in no finite value and 4 NaN or infinite.*MissingAtRandom"),
    "SigmaNormal": (math.inf, "expected finite real values.*Remove infinite values"),
    "Laplace": (math.inf, "expected finite real values.*Remove infinite values"),
    "Huber": (math.inf, "expected finite real values.*Remove infinite values"),
    "StudentT": (math.inf, "expected finite real values.*Remove infinite values"),
    "Categorical": (3.0, r"expected values 1 \* k, k = 0, \.\.\., 2.*Number the categories"),
    "Categorical, levels": (0.5, r"expected values 0\.003922 \* k, k = 0, \.\.\., 255.*Number the categories"),
    "OneHotCategorical": (1.0, "expected one-hot vectors along the last dim.*Encode the categories"),
    "Binomial": (0.5, r"expected values 0\.003922 \* k, k = 0, \.\.\., 255.*total_count and spacing"),
    "Binomial, counts": (17.0, r"expected values 1 \* k, k = 0, \.\.\., 16.*total_count and spacing"),
    "Poisson": (0.5, r"expected counts 0, 1, 2, \.\.\..*Give the raw counts"),
    "NegativeBinomial": (-1.0, r"expected counts 0, 1, 2, \.\.\..*Give the raw counts"),
    "ZeroInflatedNegativeBinomial": (0.5, r"expected counts 0, 1, 2, \.\.\..*Give the raw counts"),
    "Multinomial": (0.5, r"expected counts 0, 1, 2, \.\.\..*Give the raw counts"),
    "DiscretizedLogistic": (0.5, r"expected values k / 255, k = 0, \.\.\., 255.*Scale the levels"),
    "MixtureOfDiscretizedLogistics, gray": (0.5, r"expected values k / 15, k = 0, \.\.\., 15.*Scale the levels"),
    "Mixed": (2.0, r"Mixed likelihood, columns 4 to 6: OneHotCategorical likelihood: expected one-hot"),
    "MissingAtRandom": (2.0, r"LogitNormal likelihood: expected values in \(0, 1\)"),
    "Dequantized": (0.5, r"expected values k / 255, k = 0, \.\.\., 255.*Scale the levels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_Likelihood_data_outside_the_support_are_refused_with_a_remedy(name: str) -> None:
    value, message = REFUSED[name]
    likelihood = members.LIKELIHOODS[name]()
    with pytest.raises(ValueError, match=message):
        likelihood.check_data(torch.full((1, *likelihood.event_shape), value))


@pytest.mark.parametrize("name", members.LIKELIHOODS)
def test_Likelihood_data_of_another_shape_or_type_are_refused(name: str) -> None:
    likelihood = members.LIKELIHOODS[name]()
    shape = ", ".join(map(str, likelihood.event_shape))
    with pytest.raises(ValueError, match=rf"likelihood: expected data of shape \(N, {shape}\); got \(2, 9\)"):
        likelihood.check_data(torch.zeros(2, 9))
    with pytest.raises(TypeError, match=r"likelihood: expected floating point data; got torch\.int64"):
        likelihood.check_data(torch.zeros(2, *likelihood.event_shape).long())


@pytest.mark.parametrize("name", members.LIKELIHOODS)
def test_Likelihood_repr_says_what_is_modeled(name: str) -> None:
    likelihood = members.LIKELIHOODS[name]()
    assert f"event_shape={tuple(likelihood.event_shape)}" in repr(likelihood)
    assert likelihood.accepts
    assert likelihood.remedy


def test_Likelihood_contexts_too_few_or_too_many_are_refused() -> None:
    message = (
        r"Poisson likelihood: expected 1 inputs of the body and library_size; got 1 in all\. Give z and the contexts"
    )
    with pytest.raises(TypeError, match=message):
        likelihoods.Poisson(body(), 4, library_size=True)(torch.zeros(2, LATENT))
    with pytest.raises(TypeError, match=r"Normal likelihood: expected 1 inputs of the body; got 2 in all"):
        likelihoods.Normal(body(), 4)(torch.zeros(2, LATENT), torch.zeros(2))


# Location and scale


@pytest.mark.parametrize(
    "kind",
    [likelihoods.Normal, likelihoods.Laplace, likelihoods.Huber, likelihoods.StudentT, likelihoods.Beta],
)
def test_Normal_scale_is_fixed_learned_or_per_element(kind: Callable[..., likelihoods.Normal]) -> None:
    fixed, learned, each = (kind(body(), 4, scale=scale) for scale in (0.5, "learned", "per_element"))
    assert [len(list(one.parameters())) for one in (fixed, learned, each)] == [
        len(list(learned.parameters())) + change for change in (-1, 0, -1)
    ]
    assert [sum(shape.numel() for shape in one.parameter_shapes().values()) for one in (fixed, learned, each)] == [
        4,
        4,
        8,
    ]
    with pytest.raises(
        ValueError, match="likelihood: expected scale a positive number, 'learned' or 'per_element'; got"
    ):
        kind(body(), 4, scale="shared")
    with pytest.raises(
        ValueError, match="likelihood: expected scale a positive number, 'learned' or 'per_element'; got 0"
    ):
        kind(body(), 4, scale=0.0)
    with pytest.raises(ValueError, match=r"likelihood: expected min_scale at least 0; got -1"):
        kind(body(), 4, min_scale=-1.0)


def test_Normal_learned_scale_cannot_collapse() -> None:
    likelihood = likelihoods.Normal(body(), 4, min_scale=0.01)
    assert likelihood.raw_scale is not None
    with torch.no_grad():
        likelihood.raw_scale.fill_(-1e4)
    p = likelihood(torch.zeros(LATENT))
    assert p.base_dist.scale.unique().tolist() == pytest.approx([0.01])


def test_StudentT_degrees_of_freedom_leave_a_mean() -> None:
    likelihood = likelihoods.StudentT(body(), 4)
    assert likelihood.raw_df is not None
    with torch.no_grad():
        likelihood.raw_df.fill_(-50.0)
    assert bool((likelihood(torch.zeros(LATENT)).base_dist.df >= 1).all())
    for wrong in (1.0, "free"):
        with pytest.raises(ValueError, match="StudentT likelihood: expected df a number above 1 or 'learned'; got"):
            likelihoods.StudentT(body(), 4, df=wrong)  # type: ignore[arg-type]


def test_Beta_mode_is_where_the_network_puts_it() -> None:
    likelihood = likelihoods.Beta(body(), 1, scale=0.1).double()
    loc = torch.tensor([-1.0]).double()
    x = torch.linspace(0.001, 0.999, 999).double()[:, None]
    density = likelihood.distribution(loc=loc).log_prob(x)
    assert x[density.argmax()].item() == pytest.approx(torch.sigmoid(loc).item(), abs=1e-3)


# The sigma-VAE


def test_SigmaNormal_optimal_scale_gives_the_closed_form_of_the_negative_log_likelihood() -> None:
    likelihood = likelihoods.SigmaNormal(body(), (1, 5, 5)).double()
    z = torch.randn(100, LATENT).double()
    mean = likelihood(z).mean.detach()
    error = torch.randn_like(mean)
    x = mean + error * (0.01 / (error**2).mean()).sqrt()  # a mean squared error of .01
    likelihood.calibrate(x, mean)
    assert likelihood.scale.item() == pytest.approx(0.1)
    assert -likelihood(z).log_prob(x).mean().item() / 25 == pytest.approx(-0.8836466, abs=1e-7)
    for factor in (0.9, 1.1):  # and no other scale gives less
        worse = dist.Normal(mean, likelihood.scale * factor).to_event(3)
        assert -worse.log_prob(x).mean().item() / 25 > -0.8836466


def test_SigmaNormal_scale_is_state_and_no_parameter() -> None:
    likelihood = likelihoods.SigmaNormal(body(), 4)
    x = torch.randn(8, 4)
    storage = likelihood.scale.data_ptr()
    likelihood.calibrate(x, torch.zeros_like(x, requires_grad=True))
    assert likelihood.scale.data_ptr() == storage
    assert not likelihood.scale.requires_grad
    assert "scale" in likelihood.state_dict()
    assert "scale" not in dict(likelihood.named_parameters())
    before = likelihood.scale.clone()
    likelihood(torch.randn(8, LATENT)).log_prob(x).sum().backward()
    assert torch.equal(likelihood.scale, before)


def test_SigmaNormal_calibrated_scale_has_a_floor_and_leaves_missing_values_out() -> None:
    likelihood = likelihoods.SigmaNormal(body(), 2, min_scale=0.01)
    likelihood.calibrate(torch.ones(3, 2), torch.ones(3, 2))
    assert likelihood.scale.item() == pytest.approx(0.01)
    likelihood.calibrate(torch.tensor([[3.0, torch.nan]]), torch.zeros(1, 2))
    assert likelihood.scale.item() == 3
    with pytest.raises(
        ValueError, match=r"SigmaNormal likelihood: expected min_scale above 0; got 0\. Without a floor"
    ):
        likelihoods.SigmaNormal(body(), 2, min_scale=0)


def test_SigmaNormal_inside_of_another_likelihood_is_calibrated() -> None:
    x, mean = torch.rand(50, 3).mul(16).round() / 16, torch.full((50, 3), 0.5)
    error = (x - mean).square().mean().sqrt()
    missing = likelihoods.MissingAtRandom(likelihoods.SigmaNormal(body(), 3))
    mixed = likelihoods.Mixed(body(), parts=[(slice(0, 2), likelihoods.SigmaNormal), (2, likelihoods.Normal)])
    dequantized = likelihoods.Dequantized(likelihoods.SigmaNormal(body(), 3), levels=17)
    assert [missing.calibrated, mixed.calibrated, dequantized.calibrated] == [True] * 3
    missing.calibrate(x, mean)
    torch.testing.assert_close(missing.get_buffer("likelihood.scale"), error)
    mixed.calibrate(x, mean)
    torch.testing.assert_close(mixed.get_buffer("parts.0.scale"), (x - mean)[:, :2].square().mean().sqrt())
    dequantized.calibrate(x, mean)
    # Cells are 16/17 of the spacing wide, and the noise within one adds a variance of 1/12.
    expected = math.sqrt((error.item() * 16 / 17) ** 2 + 1 / 12 / 17**2)
    assert dequantized.get_buffer("likelihood.scale").item() == pytest.approx(expected, rel=0.02)
    for other in (likelihoods.Normal(body(), 3), likelihoods.Bernoulli(body(), 3)):
        assert not other.calibrated
