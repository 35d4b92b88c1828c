"""What a step or an evaluation makes is freed at its end: in a long run any rest of it fills the machine's memory.

Autograd's graph holds the hooks of its tensors, and Python's collector does not see into it, so that a hook which holds
its own tensor's run is never freed. The count is of all objects that the collector knows, after it has run.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from bounds import BOUNDS
from torch import Tensor

from pyro_vae import SVI, VAE, conditionals, evaluation, likelihoods, nets, priors
from pyro_vae.elbo import IWELBO, Estimator, ReweightedWakeSleep
from pyro_vae.evaluation import proposals
from pyro_vae.graphs.memory import peak_memory

CALLS = 3


def growth(call: Callable[[], object], warmup: int = 1) -> float:
    """Objects that each further call leaves behind."""
    for _ in range(warmup):
        call()
    gc.collect()
    gc.freeze()  # all that is there is neither counted nor gone through
    counts = []
    for _ in range(2):  # after the first, what each call replaces has been replaced
        for _ in range(CALLS):
            call()
        gc.collect()
        counts.append(len(gc.get_objects()))
    gc.unfreeze()
    return (counts[1] - counts[0]) / CALLS


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), 5),
        posterior=conditionals.DiagonalNormal(nets.MLP(5, [8]), 2),
    )


@pytest.fixture
def x() -> Tensor:
    return (torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float()


def step(vae: VAE, x: Tensor, loss: Estimator, compile: bool = False) -> Callable[[], object]:
    return partial(SVI(vae.model, vae.guide, torch.optim.Adam, loss, compile=compile).step, x)


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg", "score", "vimco", "ovis"])
def test_step_of_every_bound_leaves_nothing_behind(gradient: str, vae: VAE, x: Tensor) -> None:
    found = {}
    for name, bound in BOUNDS.items():
        with contextlib.suppress(ValueError):  # the gradients that a bound does not have
            found[name] = growth(step(vae, x, bound(4, gradient)))
    assert "IWELBO" in found
    assert max(found.values()) < 1, found


@pytest.mark.parametrize(
    "loss",
    [*(IWELBO(4, gradient, chunk_size=2) for gradient in ("pathwise", "stl", "dreg", "vimco")), ReweightedWakeSleep(4)],
    ids=["chunks, pathwise", "chunks, stl", "chunks, dreg", "chunks, vimco", "wake-sleep"],
)
def test_step_of_chunks_and_of_wake_sleep_leaves_nothing_behind(loss: Estimator, vae: VAE, x: Tensor) -> None:
    assert growth(step(vae, x, loss)) < 1


def test_loss_that_is_never_differentiated_is_freed(vae: VAE, x: Tensor) -> None:
    for gradient in ("pathwise", "dreg"):
        loss = IWELBO(4, gradient)
        assert growth(partial(loss.differentiable_loss, vae.model, vae.guide, x)) < 1
    pyro.clear_param_store()


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["pathwise", "dreg"])
def test_compiled_step_leaves_nothing_behind(gradient: Any, vae: VAE, x: Tensor) -> None:
    assert growth(step(vae, x, IWELBO(4, gradient), compile=True), warmup=8) < 1


def test_evaluation_leaves_nothing_behind(vae: VAE, x: Tensor) -> None:
    marginal = partial(evaluation.log_marginal_likelihood, vae, x, num_particles=20, progress=False)
    calls: dict[str, Callable[[], object]] = {
        "elbo_terms": lambda: evaluation.elbo_terms(vae, x),
        "log_marginal_likelihood": marginal,
        "Defensive": partial(marginal, proposal=proposals.Defensive()),
        "Refined": partial(marginal, proposal=proposals.Refined(num_steps=3)),
        "posterior_samples": lambda: evaluation.posterior_samples(vae, x, num_samples=5),
        "active_units": lambda: evaluation.active_units(vae, x, num_particles=10),
        "amortization_gap": lambda: evaluation.amortization_gap(vae, x, num_steps=3, progress=False),
        "peak_memory": lambda: peak_memory(lambda: vae.reconstruct(x)),
    }
    found = {name: growth(call) for name, call in calls.items()}
    assert max(found.values()) < 1, found


def test_growth_sees_a_hook_that_holds_its_tensor() -> None:
    def held() -> None:
        tensor = torch.ones(2, requires_grad=True) * 2
        tensor.register_hook(lambda gradient: gradient * tensor)

    assert growth(held) >= 1
