import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions import NormalizingFlow
from pyro_vae.distributions.zuko import flows


def flow(dim: int, context: torch.Tensor, *, invert: bool) -> tuple[NormalizingFlow, torch.nn.Module]:
    layers = flows.MAF(dim, context.shape[-1], transforms=2, hidden_features=(8,)).double().transform
    base = dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1).expand(context.shape[:-1])
    transform = layers(context)
    return NormalizingFlow(base, transform.inv if invert else transform), layers


def test_NormalizingFlow_affine_flow_is_a_normal() -> None:
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    affine = dist.transforms.AffineTransform(torch.tensor([1.0, 2.0, 3.0]), 0.5, event_dim=1)
    z = torch.randn(5, 3)
    normal = dist.Normal(torch.tensor([1.0, 2.0, 3.0]), 0.5).to_event(1)
    torch.testing.assert_close(NormalizingFlow(base, affine).log_prob(z), normal.log_prob(z))


@pytest.mark.parametrize("invert", [False, True])
def test_NormalizingFlow_density_kept_with_a_draw_is_the_density_there(invert: bool) -> None:
    q, layers = flow(3, torch.randn(4, 2).double(), invert=invert)
    q = q.expand([5, 4])
    z = q.rsample()
    kept, anew = q.log_prob(z), q.log_prob(z.clone())
    torch.testing.assert_close(kept, anew)
    # in its gradient too
    first, second = (torch.autograd.grad(v.sum(), tuple(layers.parameters()), retain_graph=True) for v in (kept, anew))
    torch.testing.assert_close(first, second)


def test_NormalizingFlow_draw_without_gradient_is_scored_with_the_gradient_there() -> None:
    q, layers = flow(3, torch.randn(4, 2).double(), invert=False)
    z = q.sample()
    with torch.no_grad():
        assert q.log_prob(z) is q.log_prob(z)  # kept
    first, second = (torch.autograd.grad(q.log_prob(v).sum(), tuple(layers.parameters())) for v in (z, z.clone()))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("invert", [False, True])
def test_NormalizingFlow_density_integrates_to_one(invert: bool) -> None:
    q, _ = flow(2, torch.randn(3).double(), invert=invert)
    axis = torch.linspace(-12, 12, 301, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    mass = q.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_NormalizingFlow_importing_leaves_the_validation_of_arguments_on() -> None:
    script = (
        "import torch, pyro; from torch.distributions import Distribution as D; before = D._validate_args; "
        "import pyro_vae; import sys; assert 'zuko' in sys.modules; print(before, D._validate_args)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]
