import math

import pytest
import torch
from torch import Tensor

from pyro_vae.distributions import VonMisesFisher
from pyro_vae.distributions.hyperspherical_uniform import log_surface_area
from pyro_vae.distributions.von_mises_fisher import _cosine_slope


def pole(dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.eye(dim, dtype=dtype)[0]


def cosine_density(dim: int, concentration: Tensor, num_nodes: int = 40001) -> tuple[Tensor, Tensor]:
    """Cosines cos(angle) and the probability of a cell about each, from log_prob and the area of the latitude."""
    angle = torch.linspace(0, math.pi, num_nodes, dtype=torch.float64)
    z = torch.zeros(num_nodes, dim, dtype=torch.float64)
    z[:, 0], z[:, 1] = angle.cos(), angle.sin()
    latitude = math.exp(log_surface_area(dim - 1)) * angle.sin() ** (dim - 2)
    cell = torch.full_like(angle, angle[1].item())
    cell[[0, -1]] /= 2  # trapezoidal rule
    return angle.cos(), VonMisesFisher(pole(dim), concentration).log_prob(z).exp() * latitude * cell


@pytest.mark.parametrize("concentration", [1e-3, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_VonMisesFisher_closed_forms_in_three_dimensions(
    concentration: float, dtype: torch.dtype, tolerance: float
) -> None:
    q = VonMisesFisher(pole(3, dtype), torch.tensor(concentration, dtype=dtype))
    # log density at the pole, k - log(4 pi sinh(k) / k), and E[w] = coth(k) - 1 / k
    log_density = math.log(concentration / (2 * math.pi)) - math.log(-math.expm1(-2 * concentration))
    mean = 1 / math.tanh(concentration) - 1 / concentration
    assert q.log_prob(pole(3, dtype)).item() == pytest.approx(log_density, rel=tolerance, abs=tolerance)
    assert q.mean[0].item() == pytest.approx(mean, abs=tolerance)
    assert q.entropy().item() == pytest.approx(concentration * (1 - mean) - log_density, abs=10 * tolerance)


@pytest.mark.parametrize("dim", [2, 3, 4, 50])
@pytest.mark.parametrize("concentration", [0.1, 5.0, 100.0])
def test_VonMisesFisher_density_integrates_to_one(dim: int, concentration: float) -> None:
    cosine, mass = cosine_density(dim, torch.tensor(concentration, dtype=torch.float64))
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)
    mean = VonMisesFisher(pole(dim), torch.tensor(concentration, dtype=torch.float64)).mean
    assert (mass * cosine).sum().item() == pytest.approx(mean[0].item(), abs=1e-6)


@pytest.mark.parametrize("dim", [2, 3, 20])
@pytest.mark.parametrize("concentration", [0.1, 5.0, 1000.0])
def test_VonMisesFisher_samples_agree_with_the_density(dim: int, concentration: float) -> None:
    # Kolmogorov-Smirnov at 2.3 / sqrt(n): a right sampler fails with probability 2 exp(-2 * 2.3^2) = 5e-5.
    num_samples = 5000
    loc = torch.nn.functional.normalize(torch.arange(1.0, dim + 1, dtype=torch.float64), dim=0)
    kappa = torch.tensor(concentration, dtype=torch.float64)
    z = VonMisesFisher(loc, kappa).sample(torch.Size((num_samples,)))
    cosine, mass = cosine_density(dim, kappa)
    below = 1 - mass.cumsum(0) + mass / 2
    draws = (z @ loc).clamp(-1, 1).sort().values
    index = torch.searchsorted(-cosine, -draws).clamp(max=len(cosine) - 1)
    empirical = (torch.arange(num_samples, dtype=torch.float64) + 0.5) / num_samples
    assert (below[index] - empirical).abs().max() < 2.3 / math.sqrt(num_samples)


def test_VonMisesFisher_directions_about_the_mean_are_uniform() -> None:
    loc = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), dim=0)
    z = VonMisesFisher(loc, torch.tensor(2.0, dtype=torch.float64)).sample(torch.Size((20000,)))
    tangent = torch.nn.functional.normalize(z - (z @ loc).unsqueeze(-1) * loc, dim=-1)
    second = tangent.mT @ tangent / len(tangent)
    # E[t t'] = (I - loc loc') / 2, whose entries have a standard error below 1 / sqrt(n)
    assert (second - (torch.eye(3, dtype=torch.float64) - torch.outer(loc, loc)) / 2).abs().max() < 5 / math.sqrt(20000)
    assert tangent.mean(0).abs().max() < 5 / math.sqrt(20000)


@pytest.mark.parametrize("concentration", [0.3, 4.0, 60.0])
def test_VonMisesFisher_derivative_of_a_draw_is_that_of_its_quantile(concentration: float) -> None:
    # in three dimensions F(w) = (e^{kw} - e^{-k}) / (e^k - e^{-k}), so w(p) = log(e^{-k} + 2 p sinh(k)) / k
    kappa = torch.tensor(concentration, dtype=torch.float64, requires_grad=True)
    probability = torch.linspace(0.001, 0.999, 21, dtype=torch.float64)
    w = 1 + torch.log(probability + (1 - probability) * torch.exp(-2 * kappa)) / kappa
    expected = torch.stack([torch.autograd.grad(value, kappa, retain_graph=True)[0] for value in w])
    slope = _cosine_slope(1 - w.detach(), kappa.detach().expand(21), 2)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dim", [2, 5, 30])
def test_VonMisesFisher_pathwise_gradient_in_the_concentration_agrees_with_quadrature(dim: int) -> None:
    kappa = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    cosine, mass = cosine_density(dim, kappa)
    (expected,) = torch.autograd.grad((mass * torch.sin(3 * cosine)).sum(), kappa)
    each = kappa.detach().expand(50000).clone().requires_grad_()
    z = VonMisesFisher(pole(dim), each).rsample()
    (gradient,) = torch.autograd.grad(torch.sin(3 * z[:, 0]).sum(), each)
    standard_error = gradient.std().item() / math.sqrt(len(gradient))
    assert abs(gradient.mean().item() - expected.item()) < 5 * standard_error


def test_VonMisesFisher_pathwise_gradient_in_the_direction_agrees_with_the_mean() -> None:
    # E[a'z] = A(k) a'loc, differentiated along the sphere
    raw = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([0.2, 1.0, -0.7, 0.5], dtype=torch.float64)
    concentration = torch.tensor(3.0, dtype=torch.float64)
    exact = VonMisesFisher(torch.nn.functional.normalize(raw, dim=-1), concentration).mean @ a
    (expected,) = torch.autograd.grad(exact, raw)
    each = raw.detach().expand(50000, 4).clone().requires_grad_()
    z = VonMisesFisher(torch.nn.functional.normalize(each, dim=-1), concentration).rsample()
    (gradient,) = torch.autograd.grad((z @ a).sum(), each)
    standard_error = gradient.std(0) / math.sqrt(len(gradient))
    assert ((gradient.mean(0) - expected).abs() < 5 * standard_error).all()


def test_VonMisesFisher_single_precision_holds_at_any_concentration() -> None:
    concentration = torch.tensor([1e-3, 1.0, 1e3, 1e6], requires_grad=True)
    for dim in (2, 100):
        q = VonMisesFisher(pole(dim, torch.float32), concentration)
        z = q.rsample(torch.Size((2000,)))
        assert q.support.check(z).all()
        log_prob = q.log_prob(z)
        on_sphere = torch.nn.functional.normalize(z.double(), dim=-1)
        double = VonMisesFisher(pole(dim), concentration.double()).log_prob(on_sphere)
        torch.testing.assert_close(log_prob.double(), double, rtol=1e-5, atol=1e-3)
        (gradient,) = torch.autograd.grad(log_prob.sum() + z.sum(), concentration)
        assert gradient.isfinite().all()


def test_VonMisesFisher_particles_and_batches_broadcast() -> None:
    q = VonMisesFisher(pole(3).expand(4, 3), torch.arange(1.0, 5, dtype=torch.float64))
    expanded = q.expand([6, 4])
    assert (expanded.batch_shape, expanded.rsample().shape) == ((6, 4), (6, 4, 3))
    z = expanded.sample()
    torch.testing.assert_close(q.log_prob(z), expanded.log_prob(z))


def test_VonMisesFisher_errors() -> None:
    with pytest.raises(ValueError, match=r"VonMisesFisher: expected loc of shape .* d at least 2; got \(1,\)"):
        VonMisesFisher(torch.ones(1), torch.tensor(1.0))
    with pytest.raises(ValueError, match="within the support"):
        VonMisesFisher(pole(3), torch.tensor(1.0)).log_prob(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("dims", [2, 50, 500, 5000])
@pytest.mark.parametrize("concentration", [1.0, 1e3, 1e6])
def test_VonMisesFisher_density_in_single_precision_is_that_in_double(dims: int, concentration: float) -> None:
    torch.manual_seed(0)
    loc = torch.nn.functional.normalize(torch.randn(100, dims), dim=-1)
    single = VonMisesFisher(loc, torch.full((100,), concentration))
    x = single.sample()
    double = VonMisesFisher(loc.double(), torch.full((100,), concentration).double(), validate_args=False)
    exact = double.log_prob(x.double())
    # the rounding of the result, which has thousands of nats, and of no term before it
    torch.testing.assert_close(single.log_prob(x).double(), exact, rtol=2e-7, atol=1e-6)
