"""Hierarchies: exact against linear chains of Normals, in both directions of inference."""

import copy
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor, nn

from pyro_vae import SVI, VAE, HierarchicalVAE, elbo, fit
from pyro_vae.conditionals import Conditional, DiagonalNormal, Dirichlet
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.models.hierarchical import Inference, TopDownGuide
from pyro_vae.nets import MLP
from pyro_vae.priors import HypersphericalUniform, StandardNormal, VampPrior

INFERENCES: tuple[Inference, ...] = ("bottom-up", "top-down")
IMAGE = (1, 2, 3)


def small(inference: Inference, num_layers: int = 3) -> HierarchicalVAE:
    """A hierarchy of bits, with layers of 3, 4, 5, ... dims."""
    dims = list(range(3, 3 + num_layers))
    bodies = (
        [MLP(IMAGE, [7]), *(MLP(dim, [7]) for dim in dims[:-1])]
        if inference == "bottom-up"
        else [MLP(IMAGE, [7]), *(MLP(7, [7]) for _ in dims[:-1])]
    )
    return HierarchicalVAE(
        StandardNormal(dims[-1]),
        [DiagonalNormal(MLP(above, [6]), dim) for dim, above in itertools.pairwise(dims)],
        Bernoulli(MLP(3, [7]), IMAGE),
        [DiagonalNormal(body, dim) for body, dim in zip(bodies, dims, strict=True)],
        inference=inference,
    )


def bits(num_data: int = 5) -> Tensor:
    return torch.rand(num_data, *IMAGE).round()


@dataclass(frozen=True)
class LinearChain:
    """zL ~ Normal(0, I), zl|z(l+1) ~ Normal(slope_l z(l+1) + offset_l, noise^2 I), x|z1 ~ Normal(W z1 + b, scale^2 I).

    Everything acts on each of two dims apart: slopes and offsets are elementwise, and the columns of W orthogonal, so
    that all posteriors are diagonal.
    """

    slopes: Tensor  # (L - 1, 2), nearest to x first
    offsets: Tensor  # (L - 1, 2)
    weight: Tensor  # (D, 2)
    bias: Tensor  # (D,)
    noise: float = 0.6
    scale: float = 0.7

    @classmethod
    def random(cls, num_layers: int, seed: int = 0) -> "LinearChain":
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, dtype=torch.float64, generator=generator)
        weight = torch.linalg.qr(draw(4, 2)).Q * torch.tensor([1.0, 2.0], dtype=torch.float64)
        return cls(draw(num_layers - 1, 2), draw(num_layers - 1, 2), weight, draw(4))

    def marginals(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance of p(zl), z1 first."""
        mean, variance = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        moments = [(mean, variance)]
        for slope, offset in zip(self.slopes.flip(0), self.offsets.flip(0), strict=True):
            mean, variance = slope * mean + offset, slope**2 * variance + self.noise**2
            moments.insert(0, (mean, variance))
        return moments

    def log_marginal_likelihood(self, x: Tensor) -> Tensor:
        mean, variance = self.marginals()[0]
        covariance = (self.weight * variance) @ self.weight.T + self.scale**2 * torch.eye(4, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.weight @ mean + self.bias, covariance).log_prob(x)

    def draw(self, num_data: int) -> Tensor:
        return self.vae("bottom-up").sample(num_data)

    def vae(self, inference: Inference) -> HierarchicalVAE:
        """This model with the exact posterior, factorized in the direction of inference."""
        num_layers = len(self.slopes) + 1
        likelihood = Normal(MLP(2, []), 4, scale=self.scale)
        set_layer(likelihood.head.layer, self.weight, self.bias)
        conditionals = [
            linear_normal(2, slope.diag(), offset, torch.full_like(offset, self.noise**2))
            for slope, offset in zip(self.slopes, self.offsets, strict=True)
        ]
        posteriors = self.bottom_up() if inference == "bottom-up" else self.top_down()
        assert len(posteriors) == num_layers
        return HierarchicalVAE(StandardNormal(2), conditionals, likelihood, posteriors, inference=inference).double()

    def message(self) -> tuple[Tensor, Tensor, Tensor]:
        """p(x|z1) in z1 is proportional to a Normal of mean A x + c and a variance: A, c and the variance."""
        squares = (self.weight**2).sum(0)
        matrix = self.weight.T / squares.unsqueeze(-1)
        return matrix, -matrix @ self.bias, self.scale**2 / squares

    def bottom_up(self) -> list[Conditional]:
        marginals = self.marginals()
        matrix, offset, variance = self.message()
        posteriors = [times_prior(matrix, offset, variance, *marginals[0])]
        for slope, shift, marginal in zip(self.slopes, self.offsets, marginals[1:], strict=True):
            posteriors.append(
                times_prior((1 / slope).diag(), -shift / slope, self.noise**2 / slope**2, *marginal),
            )
        return posteriors

    def top_down(self) -> list[Conditional]:
        matrix, offset, variance = self.message()
        messages: list[Conditional] = []
        for slope, shift in zip(self.slopes, self.offsets, strict=True):
            messages.append(linear_normal(4, matrix, offset, variance))
            matrix, offset = matrix / slope.unsqueeze(-1), (offset - shift) / slope
            variance = (variance + self.noise**2) / slope**2
        return [*messages, times_prior(matrix, offset, variance, torch.zeros_like(offset), torch.ones_like(offset))]


def times_prior(matrix: Tensor, offset: Tensor, variance: Tensor, mean: Tensor, prior_variance: Tensor) -> Conditional:
    """Normal(z; matrix y + offset, variance) Normal(z; mean, prior_variance), normalized, as a conditional on y."""
    total = 1 / (1 / variance + 1 / prior_variance)
    share = total / variance
    return linear_normal(
        matrix.shape[1], share.unsqueeze(-1) * matrix, share * offset + total / prior_variance * mean, total
    )


def linear_normal(inputs: int, matrix: Tensor, offset: Tensor, variance: Tensor) -> Conditional:
    conditional = DiagonalNormal(MLP(inputs, []), 2)
    set_layer(
        conditional.head.layer,
        torch.cat([matrix, torch.zeros_like(matrix)]),
        torch.cat([offset, variance.log() / 2]),
    )
    return conditional


def set_layer(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.clone())


def log_weights(vae: HierarchicalVAE, x: Tensor, num_particles: int) -> Tensor:
    """log p(x, z) - log q(z|x) at draws of the guide, (K, N)."""
    particles = pyro.plate("particles", num_particles, dim=-2)
    guide = poutine.trace(particles(vae.guide)).get_trace(x)
    model = poutine.trace(poutine.replay(particles(vae.model), trace=guide)).get_trace(x)
    for trace in (guide, model):
        trace.compute_log_prob()
    total = model.nodes["x"]["log_prob"]
    for name in vae.latents:
        total = total + model.nodes[name]["log_prob"] - guide.nodes[name]["log_prob"]
    return total


# Against the closed form


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("inference", INFERENCES)
def test_HierarchicalVAE_with_the_exact_posterior_has_the_evidence_for_every_weight(
    inference: Inference, num_layers: int
) -> None:
    chain = LinearChain.random(num_layers)
    vae, x = chain.vae(inference), chain.draw(6)
    expected = chain.log_marginal_likelihood(x)
    torch.testing.assert_close(log_weights(vae, x, 4), expected.expand(4, -1), rtol=0, atol=1e-10)
    losses: list[Any] = [
        pyro.infer.Trace_ELBO(),
        pyro.infer.TraceGraph_ELBO(),
        pyro.infer.RenyiELBO(num_particles=3, vectorize_particles=True),
        elbo.ELBO(),
        elbo.ELBO(num_particles=3),
    ]
    for loss in losses:
        assert loss.loss(vae.model, vae.guide, x) == pytest.approx(-expected.sum().item(), abs=1e-9)


def test_HierarchicalVAE_as_a_chain_agrees_with_bayes_rule() -> None:
    """The oracle itself: p(x|z1) p(z1) / p(z1|x) is p(x), and p(z1|z2) p(z2) / p(z2|z1) is p(z1)."""
    chain = LinearChain.random(2)
    x, z1, z2 = chain.draw(6), torch.randn(6, 2).double(), torch.randn(6, 2).double()
    (mean, variance), _ = chain.marginals()
    normal = torch.distributions.Normal
    p_z1, p_z2 = normal(mean, variance.sqrt()), normal(0.0, 1.0)
    p_z1_given_z2 = normal(chain.slopes[0] * z2 + chain.offsets[0], chain.noise)
    p_x = normal(z1 @ chain.weight.T + chain.bias, chain.scale)
    q_z1, q_z2 = (part.double() for part in chain.bottom_up())
    evidence = p_x.log_prob(x).sum(-1) + p_z1.log_prob(z1).sum(-1) - q_z1(x).log_prob(z1)
    torch.testing.assert_close(evidence, chain.log_marginal_likelihood(x))
    layer = p_z1_given_z2.log_prob(z1).sum(-1) + p_z2.log_prob(z2).sum(-1) - q_z2(z1).log_prob(z2)
    torch.testing.assert_close(layer, p_z1.log_prob(z1).sum(-1))


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("inference", INFERENCES)
def test_HierarchicalVAE_of_one_layer_is_a_vae(inference: Inference) -> None:
    vae, x = small(inference, num_layers=1), bits()
    plain = VAE(vae.prior, vae.likelihood, vae.guide.parts[0])
    losses = []
    for program in (vae, plain):
        torch.manual_seed(1)
        losses.append(elbo.ELBO(num_particles=2).loss(program.model, program.guide, x))
    assert losses[0] == losses[1]


@pytest.mark.slow  # 2 s
@pytest.mark.filterwarnings("ignore:.* was not registered in the param store because requires_grad=False")
@pytest.mark.parametrize("inference", INFERENCES)
def test_HierarchicalVAE_fit_finds_the_exact_posterior(inference: Inference) -> None:
    chain = LinearChain.random(2)
    vae, x = chain.vae(inference).float(), chain.draw(512)
    vae.model.requires_grad_(False).eval()
    for parameter in vae.guide.parameters():
        nn.init.zeros_(parameter)
    history = fit(
        vae,
        x,
        loss=elbo.ELBO(num_particles=4),
        optimizer=partial(torch.optim.Adam, lr=0.05),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=40),
        epochs=40,
        batch_size=64,
        seed=0,
        progress=False,
    )
    # At the exact posterior the figure has no variance, and it approaches the evidence from below.
    gap = chain.log_marginal_likelihood(x).mean().item() - history["train_elbo"][-1]
    assert history["train_elbo"][0] < history["train_elbo"][-1] - 0.1
    assert -0.005 < gap < 0.02


# As Pyro programs


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize(("inference", "order"), [("bottom-up", [1, 2, 3]), ("top-down", [3, 2, 1])])
def test_HierarchicalVAE_sites_and_their_order(inference: Inference, order: list[int]) -> None:
    vae, x = small(inference), bits()
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    assert guide.stochastic_nodes == ["data", *(f"z{level}" for level in order)]
    assert model.stochastic_nodes == ["data", "z3", "z2", "z1"]
    assert model.observation_nodes == ["x"]
    assert vae.latents == ("z1", "z2", "z3")
    draws = vae.guide(x)
    assert list(draws) == [f"z{level}" for level in order]
    assert {name: tuple(z.shape) for name, z in draws.items()} == {"z1": (5, 3), "z2": (5, 4), "z3": (5, 5)}


@pytest.mark.usefixtures("global_store")
def test_TopDownGuide_shares_the_models_parameters_and_holds_them_once() -> None:
    vae = small("top-down")
    names = list(vae.state_dict())
    assert not [name for name in names if name.startswith("guide") and "conditional" in name]
    assert len({value.data_ptr() for value in vae.state_dict().values()}) == len(names)
    copied = copy.deepcopy(vae)
    assert isinstance(copied.guide, TopDownGuide)
    assert copied.guide._model == (copied.model,)
    # The guide's density follows the model's conditional, so its gradient reaches that.
    vae.encode(bits())["z1"].mean.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.model.conditionals[0].parameters())


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("inference", INFERENCES)
def test_HierarchicalVAE_encoder_of_x_runs_once_per_datum(inference: Inference) -> None:
    vae, shapes = small(inference), []
    for part in vae.guide.parts:
        part.body.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    elbo.ELBO(num_particles=4).loss(vae.model, vae.guide, bits())
    calls = shapes[-3:]  # a run before them learns the number of plates
    later = [(4, 5, 3), (4, 5, 4)] if inference == "bottom-up" else [(5, 7), (5, 7)]
    assert calls == [(5, *IMAGE), *later]


@pytest.mark.usefixtures("global_store")
def test_TopDownGuide_has_a_right_closed_form_kl() -> None:
    chain = LinearChain.random(3)
    vae, x = chain.vae("top-down"), chain.draw(6)
    loss = elbo.ELBO(num_particles=20, analytic_kl=True)
    values = torch.tensor([loss.loss(vae.model, vae.guide, x) for _ in range(50)])
    standard_error = values.std().item() / 50**0.5
    assert standard_error < 0.3  # of a KL of tens of nats
    assert abs(values.mean().item() + chain.log_marginal_likelihood(x).sum().item()) < 5 * standard_error


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("parallel", [False, True])
def test_HierarchicalVAE_predictive(parallel: bool) -> None:
    vae = small("top-down")
    draws = Predictive(vae.model, num_samples=7, parallel=parallel)(size=4)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "z3": (7, 4, 5),
        "z2": (7, 4, 4),
        "z1": (7, 4, 3),
        "x": (7, 4, *IMAGE),
    }
    model = poutine.uncondition(vae.model)
    again = Predictive(model, guide=vae.guide, num_samples=7, parallel=parallel)(bits())
    assert again["x"].shape == (7, 5, *IMAGE)


def test_VampPrior_averages_the_posterior_of_the_top_layer() -> None:
    plain, inputs = small("bottom-up"), torch.rand(7, 4)
    vae = HierarchicalVAE(
        VampPrior(inputs),
        list(plain.model.conditionals),  # type: ignore[arg-type]
        plain.likelihood,
        plain.guide.parts,
    )
    z3 = torch.randn(5, 5)
    expected = plain.guide.parts[-1](inputs).log_prob(z3.unsqueeze(1)).logsumexp(1) - math.log(7)
    torch.testing.assert_close(vae.prior().log_prob(z3), expected)


# Its own methods


@pytest.mark.parametrize("inference", INFERENCES)
def test_HierarchicalVAE_encode_gives_every_layers_distribution(inference: Inference) -> None:
    vae = small(inference)
    distributions = vae.encode(bits(12).reshape(3, 4, *IMAGE))
    assert {name: d.batch_shape + d.event_shape for name, d in distributions.items()} == {
        "z1": (3, 4, 3),
        "z2": (3, 4, 4),
        "z3": (3, 4, 5),
    }
    assert vae.reconstruct(bits(12).reshape(3, 4, *IMAGE)).shape == (3, 4, *IMAGE)
    chain = LinearChain.random(1)
    x = chain.draw(3)
    (distribution,) = chain.vae(inference).encode(x).values()
    torch.testing.assert_close(distribution.mean, chain.vae(inference).guide.parts[0](x).mean)


def test_HierarchicalVAE_sample_has_the_moments_of_the_chain() -> None:
    chain = LinearChain.random(3)
    vae = chain.vae("bottom-up")
    mean, variance = chain.marginals()[0]
    signal = (chain.weight**2) @ variance
    for values, spread in ((vae.sample(2000), signal + chain.scale**2), (vae.sample(2000, mean=True), signal)):
        assert not values.requires_grad
        assert ((values.mean(0) - chain.weight @ mean - chain.bias).abs() < 5 * (spread / 2000).sqrt()).all()
        # The variance of a normal sample's variance is 2 variance^2 / (n - 1).
        assert ((values.var(0) - spread).abs() < 5 * spread * (2 / 1999) ** 0.5).all()


@pytest.mark.parametrize("inference", INFERENCES)
def test_HierarchicalVAE_reconstruct_is_the_mean_at_one_draw(inference: Inference) -> None:
    vae, x = small(inference), bits()
    torch.manual_seed(1)
    reconstructed = vae.reconstruct(x)
    torch.manual_seed(1)
    with torch.no_grad():
        draws = vae.guide.infer(x, lambda _, distribution: distribution.sample())
        assert torch.equal(reconstructed, vae.decode(draws["z1"]).mean)


@pytest.mark.parametrize("inference", INFERENCES)
def test_HierarchicalVAE_context_of_the_likelihood(inference: Inference) -> None:
    plain = small(inference)
    vae = HierarchicalVAE(
        plain.prior,
        list(plain.model.conditionals),  # type: ignore[arg-type]
        Normal(MLP(3, [7], context_shapes=[2]), IMAGE),
        plain.guide.parts,
        inference=inference,
    )
    x, context = torch.randn(5, *IMAGE), torch.randn(5, 2)
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), elbo.ELBO(num_particles=2))
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi.step(x, context)
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []
    assert vae.sample(5, context).shape == x.shape
    assert vae.reconstruct(x, context).shape == x.shape


# Refused


def parts() -> dict[str, Any]:
    """The arguments of a bottom-up hierarchy of two layers of 3 and 4 dims."""
    return {
        "prior": StandardNormal(4),
        "conditionals": [DiagonalNormal(MLP(4, []), 3)],
        "likelihood": Bernoulli(MLP(3, []), IMAGE),
        "posteriors": [DiagonalNormal(MLP(IMAGE, []), 3), DiagonalNormal(MLP(3, []), 4)],
    }


class Other(Conditional):
    pass


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"inference": "sideways"},
            ValueError,
            "HierarchicalVAE: expected inference 'bottom-up' or 'top-down'; got 'sideways'. Use one of these.",
        ),
        (
            {"conditionals": []},
            ValueError,
            "HierarchicalVAE: expected one posterior for every conditional and one for the prior; got 2 posteriors and "
            "0 conditionals. Give L and L - 1 of them.",
        ),
        (
            {"prior": DiagonalNormal(MLP(4, []), 4)},
            TypeError,
            "HierarchicalVAE: expected prior to be a Prior; got DiagonalNormal. Build it from pyro_vae.priors.",
        ),
        (
            {"likelihood": MLP(4, [])},
            TypeError,
            "HierarchicalVAE: expected likelihood to be a Likelihood; got MLP. Build it from pyro_vae.likelihoods.",
        ),
        (
            {"conditionals": [MLP(4, [])]},
            TypeError,
            "HierarchicalVAE: expected p(z1|z2) to be a Conditional; got MLP. Build it from pyro_vae.conditionals.",
        ),
        (
            {"posteriors": [DiagonalNormal(MLP(IMAGE, []), 3), MLP(3, [])]},
            TypeError,
            "HierarchicalVAE: expected the posterior of z2 to be a Conditional; got MLP. Build it from pyro_vae.cond",
        ),
        (
            {"likelihood": Bernoulli(MLP(5, []), IMAGE)},
            ValueError,
            "HierarchicalVAE: expected the shape of z1 and the input of the likelihood's body to be equal; got (3,) "
            "and (5,). Make them agree.",
        ),
        (
            {"conditionals": [DiagonalNormal(MLP(5, []), 3)]},
            ValueError,
            "HierarchicalVAE: expected the body of p(z1|z2) to take inputs of shapes [(4,)]; got [(5,)]. Build it for",
        ),
        (
            {"conditionals": [DiagonalNormal(MLP(4, [], context_shapes=[2]), 3)]},
            ValueError,
            "HierarchicalVAE: expected the body of p(z1|z2) to take inputs of shapes [(4,)]; got [(4,), (2,)].",
        ),
        (
            {"posteriors": [DiagonalNormal(MLP(IMAGE, []), 3), DiagonalNormal(MLP(3, []), 5)]},
            ValueError,
            "HierarchicalVAE: expected the shapes of z2 in the model and in the posterior of z2 to be equal; got (4,) "
            "and (5,).",
        ),
        (
            {"posteriors": [DiagonalNormal(MLP(5, []), 3), DiagonalNormal(MLP(3, []), 4)]},
            ValueError,
            "HierarchicalVAE: expected the body of the posterior of z1, given x, to take inputs of shapes [(1, 2, 3)]; "
            "got [(5,)]. Build it for these shapes.",
        ),
        (
            {"posteriors": [DiagonalNormal(MLP(IMAGE, []), 3), DiagonalNormal(MLP(IMAGE, []), 4)]},
            ValueError,
            "HierarchicalVAE: expected the body of the posterior of z2, given z1, to take inputs of shapes [(3,)]; got "
            "[(1, 2, 3)].",
        ),
        (
            {"prior": HypersphericalUniform(4)},
            ValueError,
            "HierarchicalVAE, z2: expected a posterior on the support of the prior HypersphericalUniform, the unit "
            "sphere; got DiagonalNormal on real vectors.",
        ),
        (
            {"posteriors": [Dirichlet(MLP(IMAGE, []), 3), DiagonalNormal(MLP(3, []), 4)]},
            ValueError,
            "HierarchicalVAE, z1: expected a posterior on the support of the prior DiagonalNormal, real vectors; got "
            "Dirichlet on logarithms of proportions.",
        ),
        (
            {"inference": "top-down"},
            ValueError,
            "HierarchicalVAE: expected the body of the posterior of z2, given the features of the posterior of z1, to "
            "take inputs of shapes [(6,)]; got [(3,)].",
        ),
    ],
)
def test_HierarchicalVAE_parts_that_do_not_fit_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        HierarchicalVAE(**parts() | changes)


def test_TopDownGuide_refuses_other_densities_than_normals() -> None:
    other = object.__new__(Other)
    for changes, name in (
        ({"conditionals": [other]}, "p(z1|z2)"),
        ({"posteriors": [other, other]}, "the posterior of z1"),
    ):
        with pytest.raises(TypeError, match=re.escape(f"expected {name} to be a DiagonalNormal; got Other.")):
            HierarchicalVAE(**parts() | changes, inference="top-down")


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: vae.guide(), "Guide: expected data x; got None."),
        (lambda vae: vae.model(bits(5), size=4), "HierarchicalVAE: expected x, context and size to agree"),
        (lambda vae: vae.model(bits()[0]), "Bernoulli likelihood: expected data of shape (N, 1, 2, 3)"),
        (lambda vae: vae.model(bits() / 2), "Bernoulli likelihood: expected binary values, 0 or 1"),
        (lambda vae: vae.check_data(bits() / 2), "Bernoulli likelihood: expected binary values, 0 or 1"),
    ],
)
def test_HierarchicalVAE_data_that_do_not_fit_are_refused(
    call: Callable[[HierarchicalVAE], object], message: str
) -> None:
    x = small("bottom-up")
    with pytest.raises(ValueError, match=re.escape(message)):
        call(x)
