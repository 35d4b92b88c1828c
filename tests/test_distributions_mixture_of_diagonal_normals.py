import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.distributions import MixtureOfDiagonalNormals


def parameters(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Locations and scales of shape ``shape``, logits without its last dim."""
    return (
        torch.randn(shape, dtype=dtype, requires_grad=True),
        torch.rand(shape, dtype=dtype).add(0.3).requires_grad_(),
        torch.randn(shape[:-1], dtype=dtype, requires_grad=True),
    )


@pytest.mark.parametrize("batch", [(), (3,)])
def test_MixtureOfDiagonalNormals_density_and_moments_are_those_of_the_mixture(batch: tuple[int, ...]) -> None:
    loc, scale, logits = parameters(*batch, 5, 2)
    mixture = MixtureOfDiagonalNormals(loc, scale, logits)
    stock = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))
    z = torch.randn(7, *batch, 2, dtype=torch.float64)
    torch.testing.assert_close(mixture.log_prob(z), stock.log_prob(z))
    torch.testing.assert_close(mixture.mean, stock.mean)
    torch.testing.assert_close(mixture.variance, stock.variance)
    assert mixture.batch_shape == batch


def test_MixtureOfDiagonalNormals_of_one_component_equals_it() -> None:
    loc, scale, logits = parameters(4, 1, 3)
    normal = dist.Normal(loc.squeeze(-2), scale.squeeze(-2)).to_event(1)
    mixture = MixtureOfDiagonalNormals(loc, scale, logits)
    torch.manual_seed(1)
    z = mixture.rsample()
    torch.testing.assert_close(mixture.log_prob(z), normal.log_prob(z))
    # and so do the derivatives of a draw, dz/dloc = 1 and dz/dscale = (z - loc) / scale
    gradients = torch.autograd.grad(z.sum(), (loc, scale, logits))
    torch.testing.assert_close(gradients[0], torch.ones_like(loc))
    torch.testing.assert_close(gradients[1], ((z.unsqueeze(-2) - loc) / scale).detach())
    torch.testing.assert_close(gradients[2], torch.zeros_like(logits))


def test_MixtureOfDiagonalNormals_matrix_product_is_accurate_in_single_precision() -> None:
    # 500 narrow components, as a VampPrior's, against double precision: 1e-3 nats of a log-density of about -40
    loc, scale = torch.randn(500, 40), torch.rand(500, 40) / 2 + 0.05
    z = MixtureOfDiagonalNormals(loc, scale, torch.zeros(500)).sample(torch.Size((500,)))
    double = MixtureOfDiagonalNormals(loc.double(), scale.double(), torch.zeros(500).double()).log_prob(z.double())
    single = MixtureOfDiagonalNormals(loc, scale, torch.zeros(500)).log_prob(z)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)


def test_MixtureOfDiagonalNormals_gradient_of_the_log_density() -> None:
    loc, scale, logits = parameters(3, 2)
    z = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *args: MixtureOfDiagonalNormals(*args[1:]).log_prob(args[0]), (z, loc, scale, logits)
    )


@pytest.mark.parametrize("dim", [1, 2])
def test_MixtureOfDiagonalNormals_pathwise_gradients_agree_with_quadrature(dim: int) -> None:
    # the gradient of E[f(z)] in weights, locations and scales
    loc, scale, logits = parameters(3, dim)
    axis = torch.linspace(-9, 9, 721, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(*[axis] * dim, indexing="ij"), -1)

    def f(z: Tensor) -> Tensor:
        return torch.sin(1.3 * z[..., 0] + 0.2) * z[..., -1] + torch.tanh(2 * z[..., -1])

    mass = MixtureOfDiagonalNormals(loc, scale, logits).log_prob(grid).exp() * (axis[1] - axis[0]) ** dim
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)
    expected = torch.autograd.grad((mass * f(grid)).sum(), (loc, scale, logits))
    locs, scales, weights = (p.detach().expand(50000, *p.shape).clone().requires_grad_() for p in (loc, scale, logits))
    draws = MixtureOfDiagonalNormals(locs, scales, weights).rsample()
    gradients = torch.autograd.grad(f(draws).sum(), (locs, scales, weights))
    for gradient, exact in zip(gradients, expected, strict=True):
        standard_error = gradient.std(0) / math.sqrt(len(gradient))
        assert ((gradient.mean(0) - exact).abs() < 5 * standard_error).all()


def test_MixtureOfDiagonalNormals_draws_of_a_shared_mixture_have_the_gradient_of_a_batched_one() -> None:
    loc, scale, logits = parameters(3, 2)
    torch.manual_seed(1)
    z = MixtureOfDiagonalNormals(loc, scale, logits).expand([6]).rsample()
    torch.manual_seed(1)
    batched = MixtureOfDiagonalNormals(loc.expand(6, 3, 2), scale.expand(6, 3, 2), logits.expand(6, 3)).rsample()
    torch.testing.assert_close(z, batched)
    first, second = (torch.autograd.grad(draw.square().sum(), (loc, scale, logits)) for draw in (z, batched))
    torch.testing.assert_close(first, second)


def test_MixtureOfDiagonalNormals_gradients_stay_finite_in_many_dimensions() -> None:
    # the density of 200 dims underflows single precision: only its logarithm may be used
    loc, scale, logits = parameters(8, 5, 200, dtype=torch.float32)
    z = MixtureOfDiagonalNormals(loc, scale, logits).rsample()
    for gradient in torch.autograd.grad(z.square().sum(), (loc, scale, logits)):
        assert gradient.isfinite().all()


def test_MixtureOfDiagonalNormals_particles_and_batches_broadcast() -> None:
    mixture = MixtureOfDiagonalNormals(*parameters(4, 3, 2))
    expanded = mixture.expand([6, 4])
    assert (expanded.batch_shape, expanded.rsample().shape) == ((6, 4), (6, 4, 2))
    assert expanded.mean.shape == (6, 4, 2)
    z = expanded.sample()
    torch.testing.assert_close(expanded.log_prob(z), mixture.log_prob(z))
    assert expanded.log_prob(z[0]).shape == (6, 4)


def test_MixtureOfDiagonalNormals_errors() -> None:
    with pytest.raises(ValueError, match=r"expected loc and scale of shape .* got \(3, 2\), \(3, 2\) and \(2,\)"):
        MixtureOfDiagonalNormals(torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(2))
