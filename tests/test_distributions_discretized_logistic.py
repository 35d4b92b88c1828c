import pytest
import torch

from pyro_vae.distributions import DiscretizedLogistic, MixtureOfDiscretizedLogistics
from pyro_vae.testing import check_density

LEVELS = torch.arange(256, dtype=torch.float64) / 255


@pytest.mark.parametrize("loc", [-3.0, 0.0, 0.02, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.1, 1.0, 1e3])
def test_DiscretizedLogistic_256_bins_sum_to_one_in_single_precision(loc: float, scale: float) -> None:
    log_prob = DiscretizedLogistic(torch.tensor(loc), torch.tensor(scale)).log_prob(LEVELS.float())
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=2e-5)


def test_DiscretizedLogistic_tails_fold_into_the_outer_bins() -> None:
    # Without folding the bins of this one sum to .55.
    loc, scale = torch.tensor(0.02).double(), torch.tensor(0.1).double()
    probs = DiscretizedLogistic(loc, scale).log_prob(LEVELS).exp()
    edges = torch.sigmoid(((torch.arange(255).double() + 0.5) / 255 - loc) / scale)
    expected = torch.cat([edges, edges.new_ones(1)]) - torch.cat([edges.new_zeros(1), edges])
    torch.testing.assert_close(probs, expected, atol=1e-12, rtol=0)
    assert (expected[-1] + expected[0]).item() > 0.44


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("loc", [-50.0, -1.0, 0.5, 2.0, 50.0])
def test_DiscretizedLogistic_single_precision_is_exact_far_in_the_tails(loc: float, scale: float) -> None:
    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        x = (torch.arange(256) / 255).to(dtype)
        parameters = [torch.tensor(value, dtype=torch.float32).to(dtype).requires_grad_() for value in (loc, scale)]
        log_prob = DiscretizedLogistic(parameters[0], parameters[1]).log_prob(x)
        assert bool(log_prob.isfinite().all())
        gradients = torch.autograd.grad(log_prob.sum(), parameters)
        return [value.double() for value in (log_prob, *gradients)]

    for single, double in zip(run(torch.float32), run(torch.float64), strict=True):
        assert bool(single.isfinite().all())
        torch.testing.assert_close(single, double, rtol=2e-3, atol=2e-3)


def test_DiscretizedLogistic_moments_are_those_of_the_levels() -> None:
    d = DiscretizedLogistic(torch.tensor([-0.1, 0.3, 0.9]).double(), torch.tensor([0.05, 1e-3, 2.0]).double())
    probs = d.log_prob(LEVELS[:, None]).exp()
    mean = (probs * LEVELS[:, None]).sum(0)
    torch.testing.assert_close(d.mean, mean)
    torch.testing.assert_close(d.variance, (probs * (LEVELS[:, None] - mean) ** 2).sum(0))


def test_DiscretizedLogistic_samples_come_from_the_density() -> None:
    check_density(DiscretizedLogistic(torch.tensor([0.02, 0.9]).double(), torch.tensor(0.1).double()).to_event(1))


def mixture(components: int, channels: int, levels: int, dtype: torch.dtype) -> MixtureOfDiscretizedLogistics:
    shape = (components, channels, 1, 1)
    return MixtureOfDiscretizedLogistics(
        torch.randn(components, 1, 1, dtype=dtype),
        torch.rand(shape, dtype=dtype),
        torch.rand(shape, dtype=dtype) * 0.3 + 0.05,
        torch.rand(components, channels * (channels - 1) // 2, 1, 1, dtype=dtype) * 2 - 1,
        levels,
    )


def test_MixtureOfDiscretizedLogistics_one_component_and_one_channel_are_a_discretized_logistic() -> None:
    loc, scale = torch.rand(2, 1, 1, 5, 7), torch.rand(2, 1, 1, 5, 7) + 0.01
    d = MixtureOfDiscretizedLogistics(torch.randn(2, 1, 5, 7), loc, scale, torch.zeros(2, 1, 0, 5, 7))
    single = DiscretizedLogistic(loc.squeeze(1), scale.squeeze(1)).to_event(3)
    x = single.sample()
    torch.testing.assert_close(d.log_prob(x), single.log_prob(x))
    torch.testing.assert_close(d.mean, single.mean)


def test_MixtureOfDiscretizedLogistics_equal_components_are_one_component() -> None:
    one = mixture(1, 3, 256, torch.float64)
    four = MixtureOfDiscretizedLogistics(
        torch.randn(4, 1, 1, dtype=torch.float64),
        one.loc.expand(4, -1, -1, -1),
        one.scale.expand(4, -1, -1, -1),
        one.coefficients.expand(4, -1, -1, -1),
    )
    x = one.sample(torch.Size([20]))
    torch.testing.assert_close(four.log_prob(x), one.log_prob(x))


def test_MixtureOfDiscretizedLogistics_mixture_is_the_formula_of_pixelcnn_plus_plus() -> None:
    """The authors' loss, which counts in [-1, 1] and lets green and blue depend on the pixel's red and green."""
    d = mixture(5, 3, 256, torch.float64)
    x = d.sample()
    pixel = 2 * x[:, 0, 0] - 1
    means = [2 * d.loc[:, c, 0, 0] - 1 for c in range(3)]
    r = d.coefficients[:, :, 0, 0]
    means = [means[0], means[1] + r[:, 0] * pixel[0], means[2] + r[:, 1] * pixel[0] + r[:, 2] * pixel[1]]
    total = torch.zeros(5, dtype=torch.float64)
    for c in range(3):
        inverse_scale = 1 / (2 * d.scale[:, c, 0, 0])
        upper = torch.sigmoid(inverse_scale * (pixel[c] - means[c] + 1 / 255))
        lower = torch.sigmoid(inverse_scale * (pixel[c] - means[c] - 1 / 255))
        total += torch.where(pixel[c] < -0.999, upper, torch.where(pixel[c] > 0.999, 1 - lower, upper - lower)).log()
    expected = (d.logits[:, 0, 0].log_softmax(0) + total).logsumexp(0)
    torch.testing.assert_close(d.log_prob(x), expected)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_MixtureOfDiscretizedLogistics_coupled_channels_have_a_probability_that_sums_to_one_and_its_samples(
    channels: int,
) -> None:
    check_density(mixture(3, channels, 6, torch.float64))


def test_MixtureOfDiscretizedLogistics_mean_is_that_of_samples_where_little_is_folded() -> None:
    d = MixtureOfDiscretizedLogistics(
        torch.tensor([0.0, 1.0]).double()[:, None, None],
        torch.tensor([[0.4, 0.5, 0.6], [0.6, 0.4, 0.5]]).double()[:, :, None, None],
        torch.full((2, 3, 1, 1), 0.01).double(),
        torch.tensor([[0.5, -0.5, 0.5], [-0.9, 0.9, 0.1]]).double()[:, :, None, None],
    )
    x = d.sample(torch.Size([100_000]))
    error = (x.mean(0) - d.mean).abs()
    assert bool((error <= 5 * x.std(0) / 100_000**0.5).all())  # five standard errors
