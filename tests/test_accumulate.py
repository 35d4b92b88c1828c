"""Batches in parts, and steps that do not fit into memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from bounds import BOUNDS, GivenNormal, Noise
from torch import Tensor, nn

from pyro_vae import SVI, VAE, conditionals, elbo, fit, likelihoods, nets, priors


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


class Given:
    """Two layers whose draws are made from given noise, a context, so that a part draws what the whole batch does."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.encoder, self.above, self.decoder = nn.Linear(6, 4), nn.Linear(2, 4), nn.Linear(2, 6)
        self.baseline = Baseline()
        for module in (self.encoder, self.above, self.decoder, self.baseline):
            module.to(dtype)

    def model(self, x: Tensor, noise: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(u, 0.7).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor, noise: Tensor) -> None:
        pyro.module("encoder", nn.ModuleList([self.encoder, self.above]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.normal(self.encoder(x), noise[:, 0]))
            pyro.sample("u", self.normal(self.above(z), noise[:, 1]))

    @staticmethod
    def normal(parameters: Tensor, noise: Tensor) -> Any:
        loc, log_scale = parameters.chunk(2, -1)
        return GivenNormal(loc, log_scale.exp(), Noise(noise.movedim(1, 0))).to_event(1)


class Baseline(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.layer(x).squeeze(-1)


K = 4
ESTIMATORS: dict[str, Callable[[Given], elbo.Estimator]] = {
    f"{name}, {gradient}": lambda _, make=make, gradient=gradient: make(K, gradient)  # type: ignore[misc]
    for name, make in {**BOUNDS, "PIWELBO": lambda k, gradient: elbo.PIWELBO(k // 2, gradient, num_bounds=2)}.items()
    for gradient in ("pathwise", "stl", "dreg", "score", "vimco", "ovis", "covariance")
    if (name == "IWELBO" or gradient != "ovis")
    and (name[:3] == "TVO" or gradient != "covariance")
    and (name != "VRMax" or gradient != "dreg")
    and (name != "PIWELBO" or gradient == "pathwise")
}
ESTIMATORS |= {
    "ELBO, analytic": lambda _: elbo.ELBO(K, analytic_kl=False, beta=0.5),
    "wake-sleep": lambda _: elbo.ReweightedWakeSleep(K),
    "IWELBO, leave one out": lambda _: elbo.IWELBO(K, elbo.Score("leave_one_out")),
    "IWELBO, learned": lambda given: elbo.IWELBO(K, elbo.Score(given.baseline)),
    "IWELBO, running mean": lambda _: elbo.IWELBO(K, elbo.Score("running_mean")),
    "ELBO, running mean": lambda _: elbo.ELBO(K, elbo.Score("running_mean")),
    "ELBO, by site": lambda given: elbo.ELBO(K, {"z": "stl", "u": elbo.Score(given.baseline)}),
    "ELBO, running means by site": lambda _: elbo.ELBO(
        K, {"z": elbo.Score("running_mean"), "u": elbo.Score("running_mean")}
    ),
    "IWELBO, by site": lambda _: elbo.IWELBO(K, {"z": "pathwise", "u": elbo.Score("running_mean")}),
}


def gradients_of_steps(name: str, parts: int, dtype: torch.dtype) -> Tensor:
    """Of three steps, of which the later ones see what the first leave, such as running means."""
    pyro.clear_param_store()
    given, gradients = Given(dtype), list[Tensor]()
    x, noise = bits(30).to(dtype), torch.randn(30, 2, K, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    optimizer = partial(torch.optim.SGD, lr=1e-4)
    svi = SVI(given.model, given.guide, optimizer, ESTIMATORS[name](given), compile=False)
    svi.initialize(x, noise)
    assert isinstance(svi.optimizer, torch.optim.SGD)

    def keep(*_: object) -> None:
        named = svi.named_parameters().values()
        gradients.extend(p.grad.flatten() for p in named if p.grad is not None)

    svi.optimizer.register_step_pre_hook(keep)
    for _ in range(3):
        if parts == 1:
            svi.advance(x, noise)
        else:
            svi.advance_in_parts(list(zip(x.tensor_split(parts), noise.tensor_split(parts), strict=True)))
    return torch.cat(gradients)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_accumulate_has_the_gradient_of_the_whole_batch(name: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        whole, parts = (gradients_of_steps(name, parts, dtype) for parts in (1, 4))
        torch.testing.assert_close(parts, whole, rtol=0.0, atol=tolerance * float(whole.abs().max()))


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
        (
            lambda: vae(),
            {"loss": elbo.ELBO(gradient=elbo.Score(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 1), nn.Flatten(0))))},
            "got batch normalization",
        ),
        (lambda: vae(), {"loss": pyro.infer.RenyiELBO(num_particles=2)}, "a sum over the data .*; got RenyiELBO"),
        (lambda: vae(), {"loss": pyro.infer.ReweightedWakeSleep()}, "a sum over the data .*; got ReweightedWakeSleep"),
        (
            lambda: vae(),
            {"loss": pyro.infer.TraceTailAdaptive_ELBO(2)},
            "a sum over the data .*; got TraceTailAdaptive",
        ),
        (lambda: _Decaying(), {"loss": pyro.infer.TraceGraph_ELBO()}, "got a decaying average at site 'z'"),
    ],
)
def test_accumulate_refuses_what_is_no_sum_over_the_data(make: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(make(), bits(), epochs=1, batch_size=32, progress=False, accumulate=2, **options)


class _Decaying:
    """A program with a baseline of Pyro's own, which every part would move."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand([len(x), 6]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        logits = x @ pyro.param("weight", torch.zeros(6))
        infer: Any = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits), infer=infer)


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
