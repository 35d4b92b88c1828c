"""The deep top-down hierarchy: an ELBO by hand, the path, and a program as any other."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, silu

from pyro_vae import SVI, TopDownVAE, elbo, fit, likelihoods, load, nets, save
from pyro_vae.evaluation import log_marginal_likelihood
from pyro_vae.graphs.memory import peak_memory

pytestmark = pytest.mark.usefixtures("global_store")

SHAPE = (3, 6, 5)
GROUPS = [1, 2, 0, 1]  # at 1x1, 2x2, 3x3 and 6x5 pixels


def vae(*, checkpoint: bool = False, awake: bool = True, **options: Any) -> TopDownVAE:
    """With random weights in place of the zeros that it starts from, unless it sleeps."""
    torch.manual_seed(0)
    likelihood = likelihoods.Normal(nets.ResidualMaps((4, *SHAPE[1:])), SHAPE, scale=0.5)
    program = TopDownVAE(likelihood, GROUPS, latent_channels=2, checkpoint=checkpoint, **options)
    if awake:
        for parameter in program.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return program


def images(n: int = 3) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))


# The ELBO by hand: plain functions of the state_dict, and nothing of the package.


def two(weights: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    for norm, conv in ((0, 2), (3, 5)):
        h = silu(group_norm(h, 1, weights[f"{name}.{norm}.weight"], weights[f"{name}.{norm}.bias"]))
        kernel = weights[f"{name}.{conv}.weight"]
        h = conv2d(h, kernel, weights[f"{name}.{conv}.bias"], padding=kernel.shape[-1] // 2)
    return h


def pooled(h: Tensor) -> Tensor:
    """The mean of each 2x2 pixels, or of those that there are."""
    rows, columns = (-(-size // 2) for size in h.shape[-2:])
    parts = [[h[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((-2, -1)) for j in range(columns)] for i in range(rows)]
    return torch.stack([torch.stack(row, -1) for row in parts], -2)


def log_normal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (-((value - loc) ** 2) / (2 * scale**2) - scale.log() - math.log(2 * math.pi) / 2).flatten(1).sum(1)


def by_hand(weights: dict[str, Tensor], x: Tensor, draws: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Log p(x|z), (N,), and log q - log p of each group, at standard Normal noise for every group."""
    h = conv2d(x, weights["guide.features.entry.weight"], weights["guide.features.entry.bias"], padding=1)
    features: list[Tensor] = []
    for stage in range(4):
        h = h if stage == 0 else pooled(h)
        for block in (0, 1) if stage == 0 else (1, 2):
            h = h + two(weights, f"guide.features.stages.{stage}.{block}.layers", h)
        features.insert(0, h)
    state, divergences = weights["model.start"].expand(len(x), -1, -1, -1), []
    for number, level in enumerate([0, 1, 1, 3]):
        size = features[level].shape[-2:]
        name = f"model.groups.{number}"
        if state.shape[-2:] != size:
            for rows, columns in ((2, 2),) if level == 1 else ((3, 3), (6, 5)):
                state = state.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :rows, :columns]
            state = state + weights[f"{name}.start"]
        loc, log_scale, added = two(weights, f"{name}.prior", state).split([2, 2, 4], 1)
        seen = torch.cat([state, features[level]], 1)
        q_loc, q_log_scale = two(weights, f"guide.posteriors.{number}.layers", seen).chunk(2, 1)
        z = q_loc + q_log_scale.exp() * draws[number]
        divergences.append(log_normal(z, q_loc, q_log_scale.exp()) - log_normal(z, loc, log_scale.exp()))
        entry = conv2d(z, weights[f"{name}.entry.weight"], weights[f"{name}.entry.bias"])
        state = state + added + entry
        state = state + two(weights, f"{name}.block.layers", state)
    out = state + two(weights, "model.likelihood.body.layers.0.layers", state)
    norm = "model.likelihood.body.layers.1"
    out = silu(group_norm(out, 1, weights[f"{norm}.weight"], weights[f"{norm}.bias"]))
    loc = conv2d(out, weights["model.likelihood.head.layer.weight"], weights["model.likelihood.head.layer.bias"])
    return log_normal(x, loc, torch.tensor(0.5, dtype=x.dtype)), divergences


class Given:
    """Standard Normal noise that is given, in the order in which the guide draws."""

    def __init__(self, n: int) -> None:
        sizes = [(1, 1), (2, 2), (2, 2), (6, 5)]
        self.noise = [torch.randn(n, 2, *size, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_TopDownVAE_has_the_elbo_and_gradient_of_one_by_hand(checkpoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    program, x = vae(checkpoint=checkpoint).double(), images().double()
    given = Given(len(x))
    left = iter(given.noise)
    monkeypatch.setattr(torch.distributions.Normal, "rsample", lambda self, *_: self.loc + self.scale * next(left))
    loss = elbo.ELBO().differentiable_loss(program.model, program.guide, x)
    gradients = torch.autograd.grad(loss, list(program.parameters()))
    weights = {name: value.detach().requires_grad_() for name, value in program.state_dict().items()}
    log_likelihood, divergences = by_hand(weights, x, given.noise)
    bound = log_likelihood - torch.stack(divergences).sum(0)
    torch.testing.assert_close(loss, -bound.sum(), rtol=1e-10, atol=0.0)
    expected = torch.autograd.grad(-bound.sum(), [weights[name] for name, _ in program.named_parameters()])
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    left = iter(given.noise)
    terms = elbo.ELBO().terms(program.model, program.guide, x)
    for number, divergence in enumerate(divergences):
        torch.testing.assert_close(terms.kl_by_site[f"z{number}"], divergence, rtol=1e-9, atol=1e-9)


def test_TopDownVAE_begins_with_standard_normal_priors() -> None:
    program = vae(awake=False)
    nodes: dict[str, Any] = dict(poutine.trace(program.model).get_trace(images()).nodes)
    for name in program.latents:
        prior = nodes[name]["fn"].base_dist
        assert prior.loc.eq(0).all()
        assert prior.scale.eq(1).all()


def test_TopDownVAE_a_latent_depends_on_those_above_it_alone() -> None:
    program, x = vae(), images()
    drawn = {name: value.detach() for name, value in program.guide(x).items()}
    priors: dict[str, Tensor] = {}
    for changed in ("", "z1"):
        latents = {name: value + (name == changed) for name, value in drawn.items()}
        with poutine.trace() as handler, poutine.condition(data=latents):
            program.model(x)
        nodes: dict[str, Any] = dict(handler.trace.nodes)
        locs = {name: nodes[name]["fn"].base_dist.loc for name in program.latents}
        if changed:
            same = [name for name in program.latents if torch.equal(locs[name], priors[name])]
            assert same == ["z0", "z1"]
        priors = locs


def test_TopDownVAE_shapes_of_its_methods() -> None:
    program, x = vae(), images(7)
    sizes = {"z0": (2, 1, 1), "z1": (2, 2, 2), "z2": (2, 2, 2), "z3": (2, 6, 5)}
    assert program.latents == tuple(sizes)
    for lead in ((), (7,), (2, 7)):
        posteriors = program.encode(x[0] if not lead else x.expand(*lead, *SHAPE))
        assert {name: tuple(q.event_shape) for name, q in posteriors.items()} == sizes
        assert all(q.batch_shape == lead for q in posteriors.values())
        latents = {name: q.sample() for name, q in posteriors.items()}
        assert program.decode(latents).batch_shape == lead
    assert program.sample(4).shape == (4, *SHAPE)
    assert program.sample(4, mean=True).var(0).min() > 0  # not one draw for all of them
    assert program.reconstruct(x).shape == x.shape
    assert program.model(size=2).shape == (2, *SHAPE)


def test_TopDownVAE_particles_at_once_are_those_of_single_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    program, x = vae().double(), images().double()
    monkeypatch.setattr(torch.distributions.Normal, "rsample", lambda self, *_: self.loc + 0.5 * self.scale)
    once, several = (elbo.log_weights(program.model, program.guide, x, num_particles=k) for k in (1, 3))
    torch.testing.assert_close(several, once.expand(3, -1), rtol=1e-12, atol=0.0)
    alone = elbo.log_weights(program.model, program.guide, x[:1], num_particles=1)
    torch.testing.assert_close(alone, once[:, :1], rtol=1e-12, atol=0.0)


def test_TopDownVAE_trains_the_same_with_and_without_checkpoint() -> None:
    x, trained = images(16), []
    options: dict[str, Any] = {"steps": 6, "batch_size": 8, "seed": 0, "progress": False, "max_grad_norm": 10.0}
    for checkpoint in (False, True):
        program = vae(checkpoint=checkpoint, awake=False)
        optimizer = partial(torch.optim.SGD, lr=1e-2)
        history = fit(program, x, loss=elbo.IWELBO(2), optimizer=optimizer, **options)
        assert history["loss"][-1] < history["loss"][0]
        trained.append(torch.cat([p.detach().flatten() for p in program.parameters()]))
    torch.testing.assert_close(trained[0], trained[1], rtol=0.0, atol=1e-5)


def test_TopDownVAE_checkpoint_holds_less() -> None:
    x, peaks = torch.rand(8, 3, 16, 16), []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        likelihood = likelihoods.Normal(nets.ResidualMaps((8, 16, 16)), (3, 16, 16))
        program = TopDownVAE(likelihood, [2, 2, 4], latent_channels=2, checkpoint=checkpoint)
        svi = SVI(program.model, program.guide, partial(torch.optim.Adam, lr=1e-3), elbo.ELBO(), compile=False)
        svi.step(x)
        peaks.append(peak_memory(partial(svi.step, x)))
    assert peaks[1] < 0.5 * peaks[0]


def test_TopDownVAE_replays_dropout_with_checkpoint() -> None:
    class Dropping(nn.SiLU):
        def forward(self, h: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(h), 0.5, self.training)

    losses = []
    for checkpoint in (False, True):
        program = vae(checkpoint=checkpoint, activation=Dropping)
        torch.manual_seed(1)
        loss = elbo.ELBO().differentiable_loss(program.model, program.guide, images())
        gradients = torch.autograd.grad(loss, list(program.parameters()))
        losses.append(torch.cat([g.flatten() for g in gradients]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


def test_TopDownVAE_is_saved_and_loaded(tmp_path: Path) -> None:
    program, x = vae(checkpoint=True), images()
    save(tmp_path / "program", program)
    loaded = load(tmp_path / "program")
    values = []
    for each in (program, loaded):
        torch.manual_seed(1)
        values.append(elbo.ELBO().loss(each.model, each.guide, x))
    assert values[0] == values[1]
    assert loaded.model.checkpoint


def test_TopDownVAE_is_evaluated_as_any_program() -> None:
    program, x = vae(), images()
    loose = -elbo.ELBO(50).loss(program.model, program.guide, x) / len(x)
    assert log_marginal_likelihood(program, x, num_particles=50, progress=False).value.mean() > loose


def test_TopDownVAE_takes_missing_values() -> None:
    likelihood = likelihoods.MissingAtRandom(likelihoods.Normal(nets.ResidualMaps((4, 4, 4)), (3, 4, 4)))
    program, x = TopDownVAE(likelihood, [1, 1], latent_channels=2), torch.rand(3, 3, 4, 4)
    x[0, :, 0] = torch.nan
    loss = elbo.ELBO().differentiable_loss(program.model, program.guide, x)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(loss, list(program.parameters())))


def test_TopDownVAE_is_calibrated_by_fit() -> None:
    program = TopDownVAE(likelihoods.SigmaNormal(nets.ResidualMaps((4, 4, 4)), (3, 4, 4)), [1, 1], latent_channels=2)
    x = 10 * torch.randn(7, 3, 4, 4)
    fit(program, x, epochs=1, seed=0, progress=False)
    scale = program.likelihood.distribution(loc=x).base_dist.scale
    assert 5 < scale.mean().item() < 20


def _normal(maps: tuple[int, ...], image: Any = SHAPE) -> likelihoods.Likelihood:
    return likelihoods.Normal(nets.ResidualMaps(maps), image)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopDownVAE(_normal((4, 6, 6)), [1]), "body takes feature maps (C, H, W); got data of shape (3, 6, 5)"),
        (lambda: TopDownVAE(likelihoods.Normal(nets.MLP(2, [5]), 5), [1]), "Use nets.ResidualMaps((16, H, W))"),
        (lambda: TopDownVAE(_normal((4, 6, 5)), [1, 0]), "at the image's own resolution, the last; got groups=[1, 0]"),
        (lambda: TopDownVAE(_normal((4, 6, 5)), []), "at the image's own resolution, the last; got groups=[]"),
        (lambda: TopDownVAE(_normal((4, 6, 5)), [1] * 5), "expected resolutions that halve the one below; got 5"),
        (lambda: TopDownVAE(_normal((4, 6, 5)), [1, -1]), "every number of groups at least 0; got -1"),
        (lambda: TopDownVAE(_normal((4, 6, 5)), [1], latent_channels=0), "latent_channels at least 1; got 0"),
        (lambda: nets.ResidualMaps((2, 6, 5)), "the number of channels at least 4; got 2"),
        (lambda: vae().decode({}), "got none for ['z0', 'z1', 'z2', 'z3']"),
        (lambda: vae().double().encode(images()), "expected inputs of torch.float64 on cpu, like the parameters"),
        (lambda: vae().encode(torch.zeros(2, 3, 6, 6)), "expected data of shape (..., 3, 6, 5); got (2, 3, 6, 6)"),
        (lambda: vae().guide(), "expected data x; got None"),
        (lambda: vae().guide(torch.zeros(2, 3, 6, 6)), "expected data of shape (N, 3, 6, 5)"),
    ],
)
def test_TopDownVAE_refuses_parts_and_data_that_do_not_fit(make: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        make()
