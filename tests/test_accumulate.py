"""Batches in parts, and steps that do not fit into memory."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import VAE, conditionals, elbo, fit, likelihoods, nets, priors


def bits(n: int = 96) -> Tensor:
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def vae(**parts: Any) -> VAE:
    standard: dict[str, Any] = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(nets.MLP(2, [8]), 6),
        "posterior": conditionals.DiagonalNormal(nets.MLP(6, [8]), 2),
    }
    return VAE(**{**standard, **parts})


def enumerated() -> VAE:
    """A program whose ELBO and gradient are sums over all latents: nothing is drawn."""
    return vae(
        prior=priors.OneHotCategorical(3),
        likelihood=likelihoods.Bernoulli(nets.MLP(3, [8]), 6),
        posterior=conditionals.OneHotCategorical(nets.MLP(6, [8]), 3),
    )


def trained(accumulate: Any, **options: Any) -> VAE:
    torch.manual_seed(0)
    program = enumerated()
    loss = elbo.ELBO(gradient={"z": "enumerate"})
    # Adam would divide rounding by rounding where a gradient is nearly 0.
    options = {"optimizer": partial(torch.optim.SGD, lr=1e-3), **options}
    fit(program, bits(), loss=loss, epochs=2, batch_size=32, seed=0, progress=False, accumulate=accumulate, **options)
    return program


@pytest.mark.parametrize("parts", [2, 3, 100])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.1, "ema_decay": 0.9}], ids=["plain", "clipped"])
def test_accumulate_takes_the_steps_of_whole_batches(parts: int, options: dict[str, Any]) -> None:
    for one, other in zip(trained(1, **options).parameters(), trained(parts, **options).parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6)


@pytest.mark.slow
def test_accumulate_compiles() -> None:
    for one, other in zip(trained(1).parameters(), trained(2, compile=True).parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6)


class Global:
    """A latent of all data beside the plate, or a plate that is subsampled."""

    def __init__(self, *, subsampled: bool) -> None:
        self.subsampled = subsampled
        pyro.clear_param_store()

    def model(self, x: Tensor) -> None:
        mean = torch.zeros(()) if self.subsampled else pyro.sample("mean", dist.Normal(0.0, 1.0))
        size = 960 if self.subsampled else len(x)
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand([len(x), 6]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        if not self.subsampled:
            pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        weight = pyro.param("weight", torch.zeros(6))
        with pyro.plate("data", 960 if self.subsampled else len(x), subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(x @ weight, 1.0))


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: Global(subsampled=False), {"loss": pyro.infer.Trace_ELBO()}, "got 'mean' outside of it"),
        (lambda: Global(subsampled=True), {"loss": pyro.infer.Trace_ELBO()}, "subsampled: site 'z' has scale 30.0"),
        (lambda: vae(posterior=conditionals.DiagonalNormal(_Normalized(), 2)), {}, "got batch normalization"),
    ],
)
def test_accumulate_refuses_what_is_no_sum_over_the_data(make: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(make(), bits(), epochs=1, batch_size=32, progress=False, accumulate=2, **options)


class _Normalized(nets.Body):
    def __init__(self) -> None:
        super().__init__([torch.Size([6])], 8)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(inputs[0])


@pytest.mark.parametrize("wrong", [0, 1.5, "often", True, None])
def test_accumulate_takes_whole_numbers_and_auto(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="expected accumulate"):
        fit(vae(), bits(), epochs=1, progress=False, accumulate=wrong)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int, most_draws: int = 1000) -> list[int]:
    """Lets steps of more than so many data run out of memory; the sizes of those that did not."""
    sizes: list[int] = []
    real = elbo.ELBO.loss_and_grads

    def loss_and_grads(self: Any, model: Any, guide: Any, x: Tensor, *context: Tensor) -> float:
        if (len(x) > most and self.num_particles > most_draws // 10) or self.num_particles * len(x) > most * most_draws:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        sizes.append(len(x))
        return real(self, model, guide, x, *context)

    monkeypatch.setattr(elbo.ELBO, "loss_and_grads", loss_and_grads)
    return sizes


def test_accumulate_auto_halves_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        sizes = short_of_memory(patch, 10, 1)
        in_parts = trained("auto", compile=False)
    assert set(sizes) == {8}
    for one, other in zip(trained(1, compile=False).parameters(), in_parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6)


def test_fit_says_what_fits_where_a_step_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    program = vae()
    before = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    short_of_memory(monkeypatch, 10, 100)
    with pytest.raises(MemoryError, match=r"batch_size=8 fits, and so does accumulate=4 .*; num_particles=6 fits"):
        fit(program, bits(), loss=elbo.ELBO(100), batch_size=32, epochs=1, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.state_dict().items())


SCRIPT = """
import resource, torch
from pyro_vae import VAE, conditionals, elbo, fit, likelihoods, nets, priors

torch.manual_seed(0)
vae = VAE(
    prior=priors.StandardNormal(2),
    likelihood=likelihoods.Bernoulli(nets.MLP(2, [500]), 784),
    posterior=conditionals.DiagonalNormal(nets.MLP(784, [50]), 2),
)
x = (torch.rand(64, 784) < 0.4).float()
fit(vae, x, steps=1, batch_size=2, progress=False, compile=False)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
try:
    fit(vae, x, loss=elbo.IWELBO(1000), steps=2, batch_size=64, progress=False, compile=False)
except MemoryError as error:
    print(error)
history = fit(vae, x, loss=elbo.IWELBO(1000), steps=2, batch_size=64, progress=False, compile=False, accumulate="auto")
print(history["loss"][0] > 0)
"""


@pytest.mark.slow
def test_accumulate_auto_in_real_memory() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=300)
    assert "fits, and so does accumulate=" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "True"
