import math
from collections.abc import Callable

import members
import pyro.distributions as dist
import pytest
import torch
from test_priors import unwrapped
from torch import Size, Tensor

from pyro_vae import conditionals, nets
from pyro_vae.conditionals import Conditional

DIM = 5


def body() -> nets.MLP:
    return nets.MLP(4, [6])


@pytest.mark.parametrize("name", members.CONDITIONALS)
def test_Conditional_has_the_support_of_its_distribution(name: str) -> None:
    conditional = members.CONDITIONALS[name]()
    assert repr(conditional.support) == repr(unwrapped(conditional(torch.zeros(1, 2, 2)).support))


# In more dimensions than the contract's quadrature allows

CONTINUOUS: dict[str, Callable[[], Conditional]] = {
    "DiagonalNormal": lambda: conditionals.DiagonalNormal(body(), DIM),
    "LowRankNormal": lambda: conditionals.LowRankNormal(body(), DIM, rank=2),
    "FullRankNormal": lambda: conditionals.FullRankNormal(body(), DIM),
    "MixtureOfNormals": lambda: conditionals.MixtureOfNormals(body(), DIM, num_components=3),
    "InverseAutoregressiveFlow": lambda: conditionals.InverseAutoregressiveFlow(body(), DIM, hidden=[16]),
    "RealNVP": lambda: conditionals.RealNVP(body(), DIM, hidden=[16]),
    "NeuralSpline": lambda: conditionals.NeuralSpline(body(), DIM, hidden=[16]),
    "Householder": lambda: conditionals.Householder(body(), DIM),
    "Planar": lambda: conditionals.Planar(body(), DIM),
    "Sylvester": lambda: conditionals.Sylvester(body(), DIM),
    "VonMisesFisher": lambda: conditionals.VonMisesFisher(body(), DIM),
    "Dirichlet": lambda: conditionals.Dirichlet(body(), DIM),
    "LogisticNormal": lambda: conditionals.LogisticNormal(body(), DIM),
    "RelaxedBernoulli": lambda: conditionals.RelaxedBernoulli(body(), DIM),
    "RelaxedOneHotCategorical": lambda: conditionals.RelaxedOneHotCategorical(body(), DIM),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_Conditional_particles_of_a_batch_have_the_density_of_each(name: str) -> None:
    # under plates of particles and data, a site's distribution is expanded
    q = CONTINUOUS[name]().double()(torch.randn(3, 4, dtype=torch.float64))
    expanded = q.expand([2, 3])
    z = expanded.rsample()
    assert z.shape == (2, 3, DIM)
    torch.testing.assert_close(expanded.log_prob(z), torch.stack([q.log_prob(particle.clone()) for particle in z]))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_Conditional_density_at_a_draw_is_the_density_there(name: str) -> None:
    # whether kept with the draw or found by inverting
    q = CONTINUOUS[name]().double()(torch.randn(3, 4, dtype=torch.float64))
    z = q.rsample()
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTINUOUS)
def test_Conditional_score_at_draws_has_mean_zero(name: str) -> None:
    # E_q[d log q(z) / d parameters] = 0 if the draws come from the density; projected on a random direction, and
    # within 5 standard errors of a mean over 100 groups of draws
    conditional = CONTINUOUS[name]().double()
    parameters = list(conditional.parameters())
    direction = [torch.randn_like(parameter) for parameter in parameters]
    scores = []
    for _ in range(100):
        q = conditional(torch.ones(20, 4, dtype=torch.float64))
        gradients = torch.autograd.grad(q.log_prob(q.sample()).sum(), parameters)
        scores.append(sum(((g * d).sum() for g, d in zip(gradients, direction, strict=True)), torch.zeros(())))
    score = torch.stack(scores)
    assert score.mean().abs() < 5 * score.std() / 10


def set_parameters(conditional: Conditional, **values: Tensor) -> None:
    """Makes a conditional give these parameters for every y."""
    assert isinstance(conditional.head, nets.LinearHead)
    torch.nn.init.zeros_(conditional.head.layer.weight)
    for name, value in values.items():
        conditional.head.set_bias(name, value)


def zero_flow(kind: str) -> Conditional:
    """A flow that is the identity, with the network's loc and scale."""
    conditional = CONTINUOUS[kind]().double()
    if isinstance(conditional, conditionals.Sylvester):
        # R is 0; S, b and Q are the network's
        for name in ("triangles", "diagonals"):
            rows = conditional.head.bias(name)
            start = rows.storage_offset()
            with torch.no_grad():
                conditional.head.layer.weight[start : start + len(rows)] = 0
                rows.zero_()
    else:
        for layer in conditional.layers.transform.transforms:  # type: ignore[union-attr]
            last = list(layer.hyper.children())[-1]
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
    return conditional


@pytest.mark.parametrize("kind", ["InverseAutoregressiveFlow", "RealNVP", "NeuralSpline", "Sylvester"])
def test_FlowConditional_of_zero_is_a_diagonal_normal(kind: str) -> None:
    conditional, y = zero_flow(kind), torch.randn(7, 4, dtype=torch.float64)
    parameters = conditional.head(conditional.body(y))
    normal = dist.Normal(parameters["loc"], parameters["log_scale"].exp()).to_event(1)
    z = normal.sample()
    torch.testing.assert_close(conditional(y).log_prob(z), normal.log_prob(z))
    torch.manual_seed(1)
    draw = conditional(y).rsample()
    torch.manual_seed(1)
    torch.testing.assert_close(draw, normal.rsample())


def test_MixtureOfNormals_of_one_component_is_a_diagonal_normal() -> None:
    mixture = conditionals.MixtureOfNormals(body(), DIM, num_components=1)
    loc, log_scale = torch.randn(DIM), torch.randn(DIM)
    set_parameters(mixture, loc=loc, log_scale=log_scale)
    normal, y = dist.Normal(loc, log_scale.exp()).to_event(1), torch.randn(7, 4)
    z = normal.sample(Size((7,)))
    torch.testing.assert_close(mixture(y).log_prob(z), normal.log_prob(z))


def test_FullRankNormal_and_LowRankNormal_have_the_covariance_of_their_parameters() -> None:
    full = conditionals.FullRankNormal(body(), 3)
    set_parameters(full, loc=torch.zeros(3), log_scale=torch.tensor([0.0, 0.5, -0.5]), below_diagonal=torch.arange(3.0))
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.0, math.exp(0.5), 0.0], [1.0, 2.0, math.exp(-0.5)]])
    torch.testing.assert_close(full(torch.ones(4)).covariance_matrix, factor @ factor.mT)
    low = conditionals.LowRankNormal(body(), 3, rank=1)
    column = torch.arange(1.0, 4).unsqueeze(-1)
    set_parameters(low, loc=torch.zeros(3), log_scale=torch.full((3,), -0.5), factor=column)
    expected = column @ column.mT + math.exp(-1) * torch.eye(3)
    torch.testing.assert_close(low(torch.ones(4)).covariance_matrix, expected)


def test_Householder_is_a_normal_of_reflected_axes() -> None:
    conditional = conditionals.Householder(body(), 3, num_layers=2).double()
    loc, log_scale, normals = torch.randn(3).double(), torch.randn(3).double(), torch.randn(2, 3).double()
    set_parameters(conditional, loc=loc, log_scale=log_scale, normal=normals)
    reflections = [torch.eye(3).double() - 2 * torch.outer(n, n) / n.dot(n) for n in normals]
    rotation = reflections[1] @ reflections[0]
    covariance = rotation @ torch.diag((2 * log_scale).exp()) @ rotation.mT
    z = torch.randn(7, 3, dtype=torch.float64)
    q = conditional(torch.randn(7, 4, dtype=torch.float64))
    torch.testing.assert_close(q.log_prob(z), dist.MultivariateNormal(rotation @ loc, covariance).log_prob(z))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_FlowConditional_reverses_the_order_of_the_dimensions_between_layers(num_layers: int) -> None:
    # one autoregressive layer has a triangular derivative, two a full one
    conditional = conditionals.InverseAutoregressiveFlow(body(), DIM, num_layers, hidden=[64]).double()
    transform = conditional.layers(torch.randn(64, dtype=torch.float64))
    jacobian = torch.autograd.functional.jacobian(transform, torch.randn(DIM, dtype=torch.float64))
    above = jacobian[torch.triu_indices(DIM, DIM, 1).unbind()]
    assert bool((above == 0).all()) == (num_layers == 1)
    assert bool((jacobian.tril() != 0).sum() == DIM * (DIM + 1) // 2)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_Conditional_of_every_kind_sees_y(kind: str) -> None:
    q = CONTINUOUS[kind]()(torch.randn(2, 4))
    z = q.sample()[0]
    log_prob = q.log_prob(z.expand(2, DIM))
    assert log_prob[0] != log_prob[1]


def test_FlowConditional_layers_see_y() -> None:
    # beside loc and scale: with these fixed, the density still depends on the context
    for kind in ("InverseAutoregressiveFlow", "RealNVP", "NeuralSpline"):
        conditional = CONTINUOUS[kind]()
        context = torch.randn(2, 64)
        q = conditional.distribution(loc=torch.zeros(2, DIM), log_scale=torch.zeros(2, DIM), context=context)
        log_prob = q.log_prob(torch.ones(2, DIM))
        assert log_prob[0] != log_prob[1]


def test_Bernoulli_and_OneHotCategorical_have_no_pathwise_gradient_and_relaxed_ones_do() -> None:
    y = torch.zeros(4)
    for discrete in (conditionals.Bernoulli, conditionals.OneHotCategorical):
        assert not discrete(body(), 3)(y).has_rsample
    for relaxed in (conditionals.RelaxedBernoulli, conditionals.RelaxedOneHotCategorical):
        assert relaxed(body(), 3)(y).has_rsample


@pytest.mark.parametrize(
    "kind",
    [
        conditionals.Bernoulli,
        conditionals.OneHotCategorical,
        conditionals.RelaxedBernoulli,
        conditionals.RelaxedOneHotCategorical,
    ],
)
def test_Bernoulli_takes_latents_of_several_dims(kind: type[conditionals.Bernoulli]) -> None:
    q = kind(body(), (6, 3))(torch.zeros(2, 4))
    assert (q.batch_shape, q.event_shape) == ((2,), (6, 3))
    assert q.log_prob(q.expand([5, 2]).sample()).shape == (5, 2)


def test_RelaxedBernoulli_temperature_can_be_changed_at_any_step_and_is_saved() -> None:
    for kind in (conditionals.RelaxedBernoulli, conditionals.RelaxedOneHotCategorical):
        conditional = kind(body(), 3, temperature=1.0)
        y, z = torch.zeros(4), torch.full((3,), 1 / 3).log()
        before = conditional(y).log_prob(z)
        conditional.temperature.fill_(0.3)
        assert conditional.state_dict()["temperature"].item() == pytest.approx(0.3)
        assert conditional(y).log_prob(z) != before


def test_RelaxedBernoulli_and_Dirichlet_stay_finite_at_low_temperatures_and_concentrations() -> None:
    y = torch.randn(200, 4)
    for kind in ("RelaxedBernoulli", "RelaxedOneHotCategorical", "Dirichlet"):
        conditional = CONTINUOUS[kind]()
        if kind == "Dirichlet":
            conditional.head.set_bias("concentration", torch.tensor(-20.0))
        else:
            conditional.get_buffer("temperature").fill_(1e-3)
        q = conditional(y)
        z = q.rsample()
        (q.log_prob(z) + z.square().sum(-1)).sum().backward()
        assert q.log_prob(z).isfinite().all(), kind
        assert all(bool(p.grad.isfinite().all()) for p in conditional.parameters() if p.grad is not None), kind


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: conditionals.LowRankNormal(body(), 3, rank=0), "LowRankNormal: expected rank at least 1; got 0"),
        (lambda: conditionals.MixtureOfNormals(body(), 3, 0), "expected num_components at least 1; got 0"),
        (lambda: conditionals.Planar(body(), 3, 0), "Planar: expected num_layers at least 1; got 0"),
        (lambda: conditionals.Sylvester(body(), 3, num_reflections=0), "expected num_reflections at least 1; got 0"),
        (lambda: conditionals.InverseAutoregressiveFlow(body(), 3, 0), "Flow: expected num_layers at least 1; got 0"),
        (lambda: conditionals.RelaxedBernoulli(body(), 3, temperature=0.0), "expected temperature above 0; got 0.0"),
        (lambda: conditionals.VonMisesFisher(body(), 1), "VonMisesFisher: expected latent_dim an int of at least 2"),
        (lambda: conditionals.Dirichlet(body(), (2, 3)), r"Dirichlet: expected latent_dim an int .* got \(2, 3\)"),
    ],
)
def test_Conditional_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
