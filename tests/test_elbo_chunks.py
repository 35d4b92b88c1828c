"""Draws in chunks: the gradients of all draws at once, in the memory of a chunk."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from bounds import BOUNDS, GivenNormal
from torch import Size, Tensor, nn

from pyro_vae import SVI, VAE, conditionals, elbo, fit, likelihoods, nets, priors
from pyro_vae.elbo import score
from pyro_vae.elbo.draws import Chunks
from pyro_vae.graphs.memory import peak_memory

pytestmark = pytest.mark.usefixtures("global_store")

K, CHUNK = 12, 4


class Window:
    """Noise (K, N, L), of which a chunk takes its part, whenever it is drawn."""

    rows = slice(None)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def take(self, shape: Size) -> Tensor:
        rows = self.values[self.rows]
        return rows if len(shape) == rows.dim() else rows[0]  # of the single run that tells of the structure


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tells the noise which chunk is drawn: two layers of random numbers come in another order in chunks."""
    own = Chunks._chunk

    def chunk(self: Chunks, start: int, size: int, before: list[Tensor]) -> tuple[Tensor, ...]:
        monkeypatch.setattr(Window, "rows", slice(start, start + size))
        try:
            return own(self, start, size, before)
        finally:
            monkeypatch.setattr(Window, "rows", slice(None))

    monkeypatch.setattr(Chunks, "_chunk", chunk)


class Two(nn.Module):
    """Two layers, of given noise."""

    def __init__(self, dtype: torch.dtype, k: int = K) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.noise = [Window(torch.randn(k, 2, 8).to(dtype)) for _ in range(2)]
        self.encoder, self.above, self.decoder = nn.Linear(6, 16), nn.Linear(8, 16), nn.Linear(8, 6)
        self.to(dtype)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(8, dtype=x.dtype), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(u, 0.7).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.normal(self.encoder(x), 0))
            pyro.sample("u", self.normal(self.above(z), 1))

    def normal(self, parameters: Tensor, layer: int) -> Any:
        loc, log_scale = parameters.chunk(2, -1)
        return GivenNormal(loc, log_scale.exp(), cast(Any, self.noise[layer])).to_event(1)


def bits(dtype: torch.dtype = torch.float64, n: int = 2) -> Tensor:
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(0)) < 0.4).to(dtype)


def loss_and_gradient(
    estimator: elbo.Estimator, dtype: torch.dtype = torch.float64, program: Any = None
) -> tuple[Tensor, Tensor]:
    program = program or Two(dtype)
    torch.manual_seed(1)
    loss = estimator.differentiable_loss(program.model, program.guide, bits(dtype))
    gradients = torch.autograd.grad(loss, list(program.parameters()))
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def in_chunks(make: Callable[[], elbo.Estimator], size: int | None = CHUNK) -> elbo.Estimator:
    estimator = make()
    estimator.chunk_size = size
    return estimator


ESTIMATORS: dict[str, Callable[[], elbo.Estimator]] = {
    f"{name}, {gradient}": partial(make, K, gradient)
    for name, make in BOUNDS.items()
    for gradient in ("pathwise", "stl", "dreg", "score", "vimco", "covariance")
    if (name[:3] == "TVO" or gradient != "covariance") and (name != "VRMax" or gradient != "dreg")
}
ESTIMATORS |= {
    "IWELBO, ovis": lambda: elbo.IWELBO(K, "ovis"),
    "IWELBO, leave one out": lambda: elbo.IWELBO(K, elbo.Score("leave_one_out")),
    "IWELBO, running mean": lambda: elbo.IWELBO(K, elbo.Score("running_mean")),
    "IWELBO, by site": lambda: elbo.IWELBO(K, {"z": "pathwise", "u": "score"}),
    "PIWELBO": lambda: elbo.PIWELBO(K // 3, num_bounds=3),
    "wake-sleep": lambda: elbo.ReweightedWakeSleep(K),
}


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_chunk_size_has_the_gradient_of_all_draws_at_once(name: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        whole, gradient = loss_and_gradient(ESTIMATORS[name](), dtype)
        loss, found = loss_and_gradient(in_chunks(ESTIMATORS[name]), dtype)
        torch.testing.assert_close(loss, whole, rtol=tolerance, atol=0.0)  # of the same draws, then
        torch.testing.assert_close(found, gradient, rtol=0.0, atol=tolerance * float(gradient.abs().max()))


@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "score"])
def test_chunk_size_of_single_draws_is_that_of_programs_that_run_once_for_each(gradient: Any) -> None:
    """Also one that does not divide K, whose last chunk is smaller."""
    vae = small_vae().double()
    looped = loss_and_gradient(elbo.IWELBO(3, gradient, vectorize=False), program=vae)
    for size in (1, 2):  # 16 normal numbers each draw: torch makes as many at a time, so that they are the same
        for vectorize in (True, False):
            estimator = elbo.IWELBO(3, gradient, vectorize=vectorize, chunk_size=size)
            for one, other in zip(loss_and_gradient(estimator, program=vae), looped, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_chunk_size_takes_the_subsample_of_the_first_chunk() -> None:
    seen: list[Any] = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", 10, subsample_size=4) as rows:
            seen.append(rows)
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 10, subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(weight * x[rows], 0.7))

    x = torch.linspace(-1, 1, 10, dtype=torch.float64)
    elbo.IWELBO(6, chunk_size=2).differentiable_loss(model, guide, x).backward()
    used = seen[-6:]  # three chunks, and each again
    assert all(torch.equal(rows, used[0]) for rows in used)


def test_chunk_size_averages_terms() -> None:
    vae, x = small_vae(), bits(torch.float32)
    found = []
    for size in (None, CHUNK):
        torch.manual_seed(1)
        found.append(elbo.IWELBO(K, chunk_size=size).terms(vae.model, vae.guide, x))
    assert found[0].num_particles == found[1].num_particles == K
    torch.testing.assert_close(found[0].elbo, found[1].elbo, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found[0].kl_by_site, found[1].kl_by_site, rtol=1e-5, atol=0.0)


def test_chunk_size_replays_sleep() -> None:
    """Dreams are of other random numbers than those of the draws, so their order is the same with and without."""
    vae = small_vae()
    found = []
    for size in (None, 8):  # one chunk of draws; but dreams are replayed one by one
        torch.manual_seed(1)
        loss = elbo.ReweightedWakeSleep(4, insomnia=0.3, chunk_size=size).differentiable_loss(
            vae.model, vae.guide, bits(torch.float32)
        )
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.parameters()))]))
    torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=1e-6)


def small_vae(**parts: Any) -> VAE:
    torch.manual_seed(0)
    standard: dict[str, Any] = {
        "prior": priors.StandardNormal(8),
        "likelihood": likelihoods.Bernoulli(nets.MLP(8, [8]), 6),
        "posterior": conditionals.DiagonalNormal(nets.MLP(6, [8]), 8),
    }
    return VAE(**{**standard, **parts})


@pytest.mark.parametrize("gradient", ["dreg", "vimco"])
def test_chunk_size_trains_as_all_draws_do(gradient: Any) -> None:
    trained = []
    for size in (None, CHUNK):
        vae = small_vae()
        loss = elbo.IWELBO(K, gradient, chunk_size=size)
        optimizer = partial(torch.optim.SGD, lr=1e-3)
        fit(vae, bits(n=8), loss=loss, optimizer=optimizer, batch_size=2, steps=6, seed=0, progress=False)
        trained.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    torch.testing.assert_close(trained[0], trained[1], rtol=0.0, atol=1e-6)


def test_chunk_size_bounds_memory() -> None:
    """What 120 more draws add is some tensors of a number for each draw and datum, and nothing of the networks."""
    vae, x = small_vae(likelihood=likelihoods.Bernoulli(nets.MLP(8, [64]), 6)), bits(torch.float32, 20)

    def step(num_particles: int, size: int | None) -> int:
        loss = elbo.IWELBO(num_particles, "dreg", chunk_size=size)
        loss.loss_and_grads(vae.model, vae.guide, x)  # structure, gradients
        return peak_memory(lambda: loss.loss_and_grads(vae.model, vae.guide, x))

    assert step(160, 10) - step(40, 10) < 16 * 4 * 120 * 20
    assert step(160, None) - step(40, None) > 2 * 64 * 4 * 120 * 20


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: elbo.ELBO(4, analytic_kl=True, chunk_size=2), "chunk_size None with analytic_kl=True; got 2"),
        (lambda: elbo.ELBO(4, "enumerate", chunk_size=2), "of all sites together with chunk_size; got Enumerate"),
        (lambda: elbo.ELBO(4, {"z": "stl"}, chunk_size=2), "of all sites together with chunk_size; got BySite"),
        (lambda: elbo.IWELBO(4, chunk_size=0), "expected chunk_size at least 1; got 0"),
        (lambda: elbo.IWELBO(4, chunk_size=2.5), "expected chunk_size a whole number; got 2.5"),  # type: ignore[arg-type]
    ],
)
def test_chunk_size_refuses_what_has_no_chunks(make: Callable[[], elbo.Estimator], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_chunk_size_refuses_batch_normalization_in_training() -> None:
    class Normalized(nets.Body):
        def __init__(self) -> None:
            super().__init__([torch.Size([6])], 8)
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))

        def features(self, *inputs: Tensor) -> Tensor:
            return self.layers(inputs[0])

    vae, x = small_vae(posterior=conditionals.DiagonalNormal(Normalized(), 8)), bits(torch.float32)
    loss = elbo.IWELBO(4, chunk_size=2)
    with pytest.raises(ValueError, match="one draw at a time; got batch normalization"):
        loss.loss(vae.model, vae.guide, x)
    vae.eval()
    assert loss.loss(vae.model, vae.guide, x) > 0


def test_chunk_size_refuses_draws_that_are_not_torchs() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 + random.random()), obs=x)

    weight = torch.tensor(0.5, requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight * x, 0.7))

    loss = elbo.IWELBO(4, chunk_size=2).differentiable_loss(model, guide, torch.ones(3))
    with pytest.raises(RuntimeError, match="expected the same draws when gradients are taken; got others"):
        loss.backward()


def test_chunk_size_is_not_compiled() -> None:
    vae, x = small_vae(), bits(torch.float32)
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=1e-3), elbo.IWELBO(4, chunk_size=2), compile=True)
    svi.step(x)
    with pytest.raises(RuntimeError, match="chunk_size draws random numbers a second time"):
        svi.step(x)


SCRIPT = """
import torch
from functools import partial
from pyro_vae import SVI, VAE, conditionals, elbo, likelihoods, nets, priors

torch.manual_seed(0)
vae = VAE(
    prior=priors.StandardNormal(50),
    likelihood=likelihoods.Bernoulli(nets.MLP(50, [200, 200]), 784),
    posterior=conditionals.DiagonalNormal(nets.MLP(784, [200, 200]), 50),
)
loss = elbo.IWELBO(5000, "dreg", chunk_size=25)
svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=1e-3), loss)
svi.step((torch.rand(100, 784) < 0.4).float())
# Not ru_maxrss, which begins with what the parent has.
print(int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_chunk_size_of_many_draws_fits_into_a_gibibyte() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=900)
    assert int(done.stdout) < 2**20, done.stderr  # in KiB, of the whole process


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_VIMCO_baseline_is_computed_in_blocks_of_draws(mean: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of K x K x N numbers, not all are held at once."""
    log_weights = torch.randn(7, 3, dtype=torch.float64)
    bound = elbo.CIWELBO(7, "score", beta=0.3)
    whole = score._left_out(bound, log_weights, mean)
    monkeypatch.setattr(score, "_NUMBERS", 2 * log_weights.numel())
    torch.testing.assert_close(score._left_out(bound, log_weights, mean), whole, rtol=1e-12, atol=1e-12)
