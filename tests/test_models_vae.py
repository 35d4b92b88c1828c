"""The VAE is a pair of ordinary Pyro programs: every tool of stock Pyro works on it."""

import copy
import io
import pickle
import re
from collections.abc import Callable
from functools import partial

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch
from oracles import LinearVAE
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor, nn

from pyro_vae import SVI, VAE, conditionals, elbo, evaluation, fit, likelihoods, nets, priors
from pyro_vae.models.program import Program
from pyro_vae.models.vae import Guide, Model

IMAGE = (1, 2, 3)


def small_vae() -> VAE:
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.MLP(2, [4]), IMAGE),
        conditionals.DiagonalNormal(nets.MLP(IMAGE, [4]), 2),
    )


def vae_with_context() -> VAE:
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4], context_shapes=[3]), 5),
        conditionals.DiagonalNormal(nets.MLP(5, [4]), 2),
    )


def bits(num_data: int = 5) -> Tensor:
    return torch.rand(num_data, *IMAGE).round()


def untrained_by(step: Callable[[Tensor], object], module: nn.Module, steps: int = 3) -> list[str]:
    """Names of the parameters that some steps leave as they are."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    x = bits().to(next(module.parameters()))
    for _ in range(steps):
        step(x)
    assert all(p.isfinite().all() for p in module.parameters())
    return [name for name, p in module.named_parameters() if torch.equal(p, before[name])]


def stock_svi(vae: VAE, loss: pyro.infer.ELBO) -> pyro.infer.SVI:
    return pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss)  # type: ignore[attr-defined]


def our_svi(vae: VAE, loss: pyro.infer.ELBO) -> SVI:
    return SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), loss)


# Under SVI

LOSSES: dict[str, Callable[[], pyro.infer.ELBO]] = {
    "Trace_ELBO": lambda: pyro.infer.Trace_ELBO(),
    "Trace_ELBO, vectorized": lambda: pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True),
    "Trace_ELBO, looped": lambda: pyro.infer.Trace_ELBO(num_particles=3),
    "TraceMeanField_ELBO": lambda: pyro.infer.TraceMeanField_ELBO(),
    "TraceGraph_ELBO": lambda: pyro.infer.TraceGraph_ELBO(),
    "RenyiELBO": lambda: pyro.infer.RenyiELBO(num_particles=3, vectorize_particles=True),
    "ReweightedWakeSleep": lambda: pyro.infer.ReweightedWakeSleep(num_particles=3, vectorize_particles=True),
    "ELBO": lambda: elbo.ELBO(),
    "ELBO, K=3": lambda: elbo.ELBO(num_particles=3),
    "ELBO, analytic KL": lambda: elbo.ELBO(analytic_kl=True),
    "TraceEnum_ELBO": lambda: pyro.infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    "JitTrace_ELBO": lambda: pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True),
    "TraceTailAdaptive_ELBO": lambda: pyro.infer.TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True),
}


@pytest.mark.usefixtures("global_store")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_VAE_every_loss_of_stock_pyro_trains_every_parameter(loss: Callable[[], pyro.infer.ELBO]) -> None:
    vae = small_vae()
    assert untrained_by(stock_svi(vae, loss()).step, vae) == []


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
@pytest.mark.parametrize("loss", LOSSES)
def test_VAE_our_svi_trains_every_parameter_with_every_loss(loss: str) -> None:
    vae = small_vae()
    assert untrained_by(our_svi(vae, LOSSES[loss]()).step, vae) == []


def through_pickle(vae: VAE) -> VAE:
    loaded = pickle.loads(pickle.dumps(vae))
    assert isinstance(loaded, VAE)
    return loaded


def through_torch_save(vae: VAE) -> VAE:
    file = io.BytesIO()
    torch.save(vae, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, VAE)
    return loaded


def through_state_dict(vae: VAE) -> VAE:
    loaded = small_vae()
    loaded.load_state_dict(vae.state_dict())
    return loaded


COPIES: dict[str, Callable[[VAE], VAE]] = {
    "another": lambda vae: small_vae(),
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "torch.save": through_torch_save,
    "state_dict": through_state_dict,
    "double": lambda vae: copy.deepcopy(vae).double(),
}


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("svi", [stock_svi, our_svi], ids=["stock", "ours"])
@pytest.mark.parametrize("copied", COPIES.values(), ids=list(COPIES))
def test_VAE_two_vaes_in_one_process_both_train_and_apart(
    copied: Callable[[VAE], VAE], svi: Callable[[VAE, pyro.infer.ELBO], SVI | pyro.infer.SVI]
) -> None:
    first = small_vae()
    assert untrained_by(svi(first, elbo.ELBO()).step, first) == []
    second = copied(first)
    weights = copy.deepcopy(first.state_dict())
    assert untrained_by(svi(second, pyro.infer.Trace_ELBO()).step, second) == []
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    assert untrained_by(svi(first, pyro.infer.Trace_ELBO()).step, first) == []


@pytest.mark.parametrize("copied", [through_pickle, through_torch_save, through_state_dict, copy.deepcopy])
def test_VAE_copy_has_the_same_weights(copied: Callable[[VAE], VAE]) -> None:
    vae = small_vae()
    weights = vae.state_dict()
    other = copied(vae).state_dict()
    assert list(other) == list(weights)
    assert all(torch.equal(other[name], value) for name, value in weights.items())


@pytest.mark.usefixtures("global_store")
def test_VAE_every_instance_has_root_names_of_its_own() -> None:
    vae = small_vae()
    vaes = [vae, small_vae(), copy.deepcopy(vae), through_pickle(vae), through_torch_save(vae)]
    names = [name for v in vaes for name in (v.model._pyro_name, v.guide._pyro_name)]
    assert len(set(names)) == len(names)
    stock_svi(vae, elbo.ELBO()).step(bits())
    assert len(pyro.get_param_store()) == len(list(vae.parameters()))
    assert {name.split(".")[0] for name in pyro.get_param_store()} == {vae.model._pyro_name, vae.guide._pyro_name}


# As Pyro programs


def test_VAE_is_a_program() -> None:
    vae = small_vae()
    assert isinstance(vae, Program)
    assert (vae.latents, vae.observed) == (("z",), ("x",))
    assert isinstance(vae.model, Model)
    assert isinstance(vae.guide, Guide)
    assert not isinstance(vae, pyro.nn.PyroModule)  # it would rename its children


@pytest.mark.usefixtures("global_store")
def test_VAE_traces_hold_the_sites_and_their_densities() -> None:
    vae, x = small_vae(), bits()
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    assert [n for n, s in guide.nodes.items() if s["type"] == "sample" and n != "data"] == ["z"]
    assert [n for n, s in model.nodes.items() if s["type"] == "sample" and n != "data"] == ["z", "x"]
    z = guide.nodes["z"]["value"]
    assert isinstance(z, Tensor)
    model.compute_log_prob()
    guide.compute_log_prob()
    torch.testing.assert_close(model.nodes["x"]["log_prob"], vae.decode(z).log_prob(x))
    torch.testing.assert_close(model.nodes["z"]["log_prob"], vae.prior().log_prob(z))
    torch.testing.assert_close(guide.nodes["z"]["log_prob"], vae.encode(x).log_prob(z))
    assert guide.nodes["z"]["cond_indep_stack"][0].name == "data"
    assert guide.nodes["z"]["cond_indep_stack"][0].size == 5
    assert model.nodes["z"]["value"] is z
    assert model.nodes["x"]["value"] is x


@pytest.mark.usefixtures("global_store")
def test_VAE_conditioning_observes() -> None:
    vae, x, z = small_vae(), bits(), torch.randn(5, 2)
    trace = poutine.trace(poutine.condition(vae.model, {"x": x, "z": z})).get_trace(size=5)
    assert trace.nodes["x"]["is_observed"]
    assert trace.nodes["z"]["is_observed"]
    expected = vae.prior().log_prob(z) + vae.decode(z).log_prob(x)
    torch.testing.assert_close(trace.log_prob_sum(), expected.sum())


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("parallel", [False, True])
def test_VAE_predictive_draws_from_the_model(parallel: bool) -> None:
    vae = small_vae()
    draws = Predictive(vae.model, num_samples=7, parallel=parallel)(size=4)
    assert {name: value.shape for name, value in draws.items()} == {"z": (7, 4, 2), "x": (7, 4, *IMAGE)}
    assert set(draws["x"].unique().tolist()) == {0.0, 1.0}


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("parallel", [False, True])
def test_VAE_predictive_draws_from_the_posterior_predictive(parallel: bool) -> None:
    oracle = LinearVAE.random()
    vae, x = oracle.vae(), oracle.draw(3)
    predictive = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=200, parallel=parallel)
    draws = predictive(x)
    assert draws["x"].shape == (200, 3, 5)
    loc, covariance = oracle.posterior(x)
    mean = loc @ oracle.weight.T + oracle.bias
    variance = (oracle.weight @ covariance @ oracle.weight.T).diagonal() + oracle.scale**2
    assert ((draws["x"].mean(0) - mean).abs() < 5 * (variance / 200).sqrt()).all()
    # The variance of a normal sample's variance is 2 variance^2 / (n - 1).
    assert ((draws["x"].var(0) - variance).abs() < 5 * variance * (2 / 199) ** 0.5).all()
    again = Predictive(vae.model, {"z": draws["z"]}, parallel=parallel)(size=3)
    assert again["x"].shape == (200, 3, 5)


@pytest.mark.usefixtures("global_store")
def test_VAE_model_generates_as_many_as_asked() -> None:
    vae, conditional = small_vae(), vae_with_context()
    assert vae.model().shape == (1, *IMAGE)
    assert vae.model(size=5).shape == (5, *IMAGE)
    assert conditional.model(None, torch.zeros(6, 3)).shape == (6, 5)
    assert conditional.model(None, torch.zeros(6, 3), size=6).shape == (6, 5)
    x = torch.randn(6, 5)
    assert conditional.model(x, torch.zeros(6, 3)) is x
    assert conditional.guide(x, torch.zeros(6, 3), size=6).shape == (6, 2)


@pytest.mark.usefixtures("global_store")
def test_VAE_context_trains_and_matters() -> None:
    vae, x, context = vae_with_context(), torch.randn(4, 5), torch.randn(4, 3)
    svi = our_svi(vae, elbo.ELBO(num_particles=2))
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi.step(x, context)
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []
    z = torch.randn(4, 2)
    assert (vae.decode(z, context).mean - vae.decode(z, context + 1).mean).abs().max() > 1e-3


# Its own methods


def test_VAE_encode_and_decode_take_any_leading_dims() -> None:
    vae = small_vae()
    assert vae.encode(torch.zeros(3, 4, *IMAGE)).batch_shape == (3, 4)
    assert vae.decode(torch.zeros(3, 4, 2)).batch_shape == (3, 4)
    assert vae.encode(torch.zeros(IMAGE)).batch_shape == ()
    assert vae.reconstruct(torch.zeros(3, 4, *IMAGE)).shape == (3, 4, *IMAGE)
    assert vae_with_context().reconstruct(torch.zeros(3, 5), torch.zeros(3, 3)).shape == (3, 5)


def test_VAE_sample_and_its_mean() -> None:
    oracle = LinearVAE.random()
    vae = oracle.vae()
    draws, means = vae.sample(2000), vae.sample(2000, mean=True)
    signal = (oracle.weight @ oracle.weight.T).diagonal()
    for values, variance in ((draws, signal + oracle.scale**2), (means, signal)):
        assert not values.requires_grad
        assert ((values.mean(0) - oracle.bias).abs() < 5 * (variance / 2000).sqrt()).all()
        assert ((values.var(0) - variance).abs() < 5 * variance * (2 / 1999) ** 0.5).all()
    assert vae_with_context().sample(6, torch.zeros(6, 3)).shape == (6, 5)


def test_VAE_reconstruct_is_the_mean_at_one_draw() -> None:
    vae, x = small_vae(), bits()
    torch.manual_seed(1)
    reconstructed = vae.reconstruct(x)
    torch.manual_seed(1)
    assert torch.equal(reconstructed, vae.decode(vae.encode(x).sample()).mean)
    assert not reconstructed.requires_grad


def test_VAE_double_moves_the_prior_too() -> None:
    vae = small_vae().double()
    assert vae.sample(2).dtype == torch.float64
    assert {value.dtype for value in (*vae.parameters(), *vae.buffers())} == {torch.float64}


# Refused


class NoBody(nn.Module):
    pass


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: VAE(
                priors.StandardNormal(3),
                likelihoods.Bernoulli(nets.MLP(2, []), IMAGE),
                conditionals.DiagonalNormal(nets.MLP(IMAGE, []), 2),
            ),
            ValueError,
            "VAE: expected the latent shape of prior and posterior to be equal; got (3,) and (2,). Make them agree.",
        ),
        (
            lambda: VAE(
                priors.StandardNormal(3),
                likelihoods.Bernoulli(nets.MLP(2, []), IMAGE),
                conditionals.DiagonalNormal(nets.MLP(IMAGE, []), 3),
            ),
            ValueError,
            "VAE: expected the latent shape of prior and likelihood body to be equal; got (3,) and (2,).",
        ),
        (
            lambda: VAE(
                priors.StandardNormal(2),
                likelihoods.Bernoulli(nets.MLP(2, []), IMAGE),
                conditionals.DiagonalNormal(nets.MLP(6, []), 2),
            ),
            ValueError,
            "VAE: expected the data shape of likelihood and posterior body to be equal; got (1, 2, 3) and (6,).",
        ),
        (
            lambda: VAE(
                priors.StandardNormal(2),
                conditionals.DiagonalNormal(nets.MLP(IMAGE, []), 2),  # type: ignore[arg-type]
                likelihoods.Bernoulli(nets.MLP(2, []), IMAGE),  # type: ignore[arg-type]
            ),
            TypeError,
            "VAE: expected likelihood to be a Likelihood; got DiagonalNormal. Build it from pyro_vae.likelihoods.",
        ),
        (
            lambda: VAE(
                pyro.distributions.Normal(0.0, 1.0),
                likelihoods.Bernoulli(nets.MLP(2, []), IMAGE),
                conditionals.DiagonalNormal(nets.MLP(IMAGE, []), 2),
            ),
            TypeError,
            "VAE: expected prior to be a Prior; got Normal. Build it from pyro_vae.priors.",
        ),
        (
            lambda: VAE(
                priors.StandardNormal(2),
                likelihoods.Bernoulli(nets.MLP(2, []), IMAGE),
                nets.MLP(IMAGE, []),  # type: ignore[arg-type]
            ),
            TypeError,
            "VAE: expected posterior to be a Conditional; got MLP. Build it from pyro_vae.conditionals.",
        ),
        (
            lambda: likelihoods.Bernoulli(nn.Linear(2, 6), IMAGE),  # type: ignore[arg-type]
            TypeError,
            "Bernoulli: expected body to be a Body; got Linear. Use nets.MLP, nets.ConvEncoder or",
        ),
        (
            lambda: small_vae().guide(),
            ValueError,
            "Guide: expected data x; got None. q(z|x) has no draw without x: run the model instead.",
        ),
        (
            lambda: small_vae().model(bits(5), size=4),
            ValueError,
            "VAE: expected x, context and size to agree on the number of data; got [4, 5]. Give every tensor the same",
        ),
        (
            lambda: vae_with_context().model(torch.zeros(5, 5), torch.zeros(4, 3)),
            ValueError,
            "VAE: expected x, context and size to agree on the number of data; got [4, 5].",
        ),
        (
            lambda: vae_with_context().guide(torch.zeros(5, 5), torch.zeros(1, 3)),
            ValueError,
            "VAE: expected x, context and size to agree on the number of data; got [1, 5].",
        ),
        (
            lambda: vae_with_context().model(None, torch.zeros(4, 3), size=6),
            ValueError,
            "VAE: expected x, context and size to agree on the number of data; got [4, 6].",
        ),
        (
            lambda: small_vae().model(bits()[0]),
            ValueError,
            "Bernoulli likelihood: expected data of shape (N, 1, 2, 3); got (1, 2, 3). Reshape the data",
        ),
        (
            lambda: small_vae().model(torch.zeros(5, 6)),
            ValueError,
            "Bernoulli likelihood: expected data of shape (N, 1, 2, 3); got (5, 6).",
        ),
        (
            lambda: small_vae().model(torch.full((5, *IMAGE), 0.5)),
            ValueError,
            "Bernoulli likelihood: expected binary values, 0 or 1; got values in [0.5, 0.5], the first wrong one at "
            "[0, 0, 0, 0]. Binarize the data",
        ),
        (
            lambda: small_vae().check_data(torch.full((5, *IMAGE), torch.nan)),
            ValueError,
            "Bernoulli likelihood: expected binary values, 0 or 1; got ",
        ),
        (
            lambda: small_vae().model(torch.zeros(5, *IMAGE, dtype=torch.int64)),
            TypeError,
            "Bernoulli likelihood: expected floating point data; got torch.int64. Convert it with .float().",
        ),
        (
            lambda: small_vae().guide(torch.zeros(5, 6)),
            ValueError,
            "VAE: expected data of shape (N, 1, 2, 3); got (5, 6).",
        ),
        (
            lambda: vae_with_context().model(size=3),
            TypeError,
            "Normal likelihood: expected 2 inputs of the body; got 1 in all. Give z and the contexts in this order",
        ),
    ],
)
@pytest.mark.usefixtures("global_store")
def test_VAE_what_does_not_fit_is_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.usefixtures("global_store")
def test_VAE_values_are_checked_under_validation_and_shapes_always() -> None:
    vae = small_vae()
    with pyro.validation_enabled(False):
        vae.model(torch.full((5, *IMAGE), 0.5))
        with pytest.raises(ValueError, match="expected data of shape"):
            vae.model(torch.zeros(5, 6))


# Latents with a shape of their own

GRID = (2, 2, 3)
SHAPED_PRIORS: dict[str, Callable[[], priors.Prior]] = {
    "StandardNormal": lambda: priors.StandardNormal(GRID),
    "Normal": lambda: priors.Normal(GRID),
    "Laplace": lambda: priors.Laplace(GRID),
    "MixtureOfNormals": lambda: priors.MixtureOfNormals(GRID, 3),
    "MixtureOfNormals, given means": lambda: priors.MixtureOfNormals(GRID, loc=torch.randn(3, *GRID)),
    "VampPrior": lambda: priors.VampPrior(torch.rand(3, 1, 8, 12)),
    "RealNVP": lambda: priors.RealNVP(GRID, hidden=[8]),
    "NeuralSpline": lambda: priors.NeuralSpline(GRID, num_layers=2, hidden=[8], num_bins=4),
    "MaskedAutoregressive": lambda: priors.MaskedAutoregressive(GRID, num_layers=2, hidden=[8]),
}
SHAPED_CONDITIONALS: dict[str, Callable[[nets.Body], conditionals.Conditional]] = {
    "DiagonalNormal": lambda body: conditionals.DiagonalNormal(body, GRID),
    "LowRankNormal": lambda body: conditionals.LowRankNormal(body, GRID, rank=2),
    "FullRankNormal": lambda body: conditionals.FullRankNormal(body, GRID),
    "MixtureOfNormals": lambda body: conditionals.MixtureOfNormals(body, GRID, num_components=2),
    "InverseAutoregressiveFlow": lambda body: conditionals.InverseAutoregressiveFlow(body, GRID, hidden=[8]),
    "RealNVP": lambda body: conditionals.RealNVP(body, GRID, hidden=[8]),
    "NeuralSpline": lambda body: conditionals.NeuralSpline(body, GRID, num_layers=2, hidden=[8], num_bins=4),
    "Householder": lambda body: conditionals.Householder(body, GRID),
    "Planar": lambda body: conditionals.Planar(body, GRID),
    "Sylvester": lambda body: conditionals.Sylvester(body, GRID),
}


def shaped_vae(prior: str = "StandardNormal", posterior: str = "DiagonalNormal") -> VAE:
    image = (1, 8, 12)
    return VAE(
        SHAPED_PRIORS[prior](),
        likelihoods.Bernoulli(nets.ConvDecoder(GRID, image, [4, 4], activation=nn.Tanh), image),
        SHAPED_CONDITIONALS[posterior](nets.ConvEncoder(image, [4, 4], activation=nn.Tanh)),
    )


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [(name, "DiagonalNormal") for name in SHAPED_PRIORS] + [("StandardNormal", name) for name in SHAPED_CONDITIONALS],
)
def test_VAE_latents_with_a_shape_train_and_are_evaluated(prior: str, posterior: str) -> None:
    vae = shaped_vae(prior, posterior)
    x = (torch.rand(12, 1, 8, 12) < 0.3).float()
    assert vae.encode(x).event_shape == GRID
    before = {name: parameter.detach().clone() for name, parameter in vae.named_parameters()}
    fit(vae, x, epochs=2, batch_size=4, progress=False)
    assert [name for name, parameter in vae.named_parameters() if torch.equal(parameter, before[name])] == []
    terms = evaluation.elbo_terms(vae, x, num_particles=3)
    assert terms.elbo.shape == (12,)
    assert vae.sample(3).shape == (3, 1, 8, 12)
    assert vae.reconstruct(x).shape == x.shape
    nll = evaluation.log_marginal_likelihood(vae, x, num_particles=30, progress=False).value
    assert nll.shape == (12,)
    if posterior != "Planar":  # which has no inverse
        vae.eval()
        z = vae.encode(x).sample()
        vectors = vae.encode(x).log_prob(z)
        assert vectors.shape == (12,)


def test_VAE_shaped_latent_is_evaluated_by_every_figure() -> None:
    vae, x = shaped_vae(), (torch.rand(12, 1, 8, 12) < 0.3).float()
    assert isinstance(vae.posterior.head, nets.ConvHead)
    assert evaluation.active_units(vae, x).variance["z"].shape == GRID
    evaluation.elbo_surgery(vae, x)
    evaluation.ais(vae, x, num_particles=2, num_temperatures=3, progress=False)
    evaluation.amortization_gap(vae, x, num_steps=2, num_particles=2, progress=False)
    simulation = evaluation.simulate(vae, torch.zeros(100, 1, 8, 12))
    evaluation.calibration(vae, simulation)
    assert evaluation.posterior_samples(vae, x, num_samples=2, num_particles=5, progress=False)["z"].shape == (
        2,
        12,
        *GRID,
    )


def test_VAE_shaped_density_is_that_of_the_vector() -> None:
    torch.manual_seed(1)
    conditional = conditionals.FullRankNormal(nets.MLP(3, [4]), GRID)
    q, z = conditional(torch.ones(2, 3)), torch.randn(5, 2, *GRID)
    torch.testing.assert_close(q.log_prob(z), q.base_dist.log_prob(z.flatten(2)))
