"""What holds for every program: it is a pair of ordinary Pyro programs, which stock Pyro and all estimators serve."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch
from members import PROGRAMS, Member
from pyro import poutine
from pyro.infer import Predictive
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_vae import (
    SVI,
    VAE,
    ConditionalVAE,
    HierarchicalVAE,
    SemiSupervisedVAE,
    conditionals,
    data,
    elbo,
    evaluation,
    fit,
    likelihoods,
    nets,
    priors,
)
from pyro_vae.models.hierarchical import Inference, TopDownGuide
from pyro_vae.models.program import Program, RootModule

Step = Callable[..., object]

STOCK: dict[str, Callable[[], Any]] = {
    "Trace_ELBO": pyro.infer.Trace_ELBO,
    "Trace_ELBO, vectorized": partial(pyro.infer.Trace_ELBO, num_particles=3, vectorize_particles=True),
    "Trace_ELBO, looped": partial(pyro.infer.Trace_ELBO, num_particles=3),
    "TraceGraph_ELBO": pyro.infer.TraceGraph_ELBO,
    "TraceMeanField_ELBO": pyro.infer.TraceMeanField_ELBO,
    "TraceEnum_ELBO": partial(pyro.infer.TraceEnum_ELBO, max_plate_nesting=1, strict_enumeration_warning=False),
    "RenyiELBO": partial(pyro.infer.RenyiELBO, num_particles=3, vectorize_particles=True),
    "ReweightedWakeSleep": partial(pyro.infer.ReweightedWakeSleep, num_particles=3, vectorize_particles=True),
    "JitTrace_ELBO": partial(pyro.infer.JitTrace_ELBO, ignore_jit_warnings=True),
}
VECTORS = [name for name in PROGRAMS if name != "TopDownVAE"]  # which is of images
# The stock losses whose gradient of a discrete latent is 0 or wrong without a word, and the one that merely warns.
NOT_FOR = {
    ("SemiSupervisedVAE", "TraceMeanField_ELBO"),
    ("SemiSupervisedVAE", "RenyiELBO"),
    ("HierarchicalVAE, bottom-up", "TraceMeanField_ELBO"),
}

OURS: dict[str, Callable[[], elbo.Estimator]] = {
    "ELBO": elbo.ELBO,
    "ELBO, K=3": partial(elbo.ELBO, num_particles=3),
    "ELBO, analytic KL": partial(elbo.ELBO, analytic_kl=True),
    "ELBO, stl": partial(elbo.ELBO, gradient="stl"),
    "ELBO, score": partial(elbo.ELBO, gradient="score"),
    "ELBO, enumerate": partial(elbo.ELBO, gradient="enumerate"),
    "IWELBO": partial(elbo.IWELBO, num_particles=3),
    "IWELBO, dreg": partial(elbo.IWELBO, num_particles=3, gradient="dreg"),
    "IWELBO, vimco": partial(elbo.IWELBO, num_particles=3, gradient="vimco"),
    "RenyiELBO": partial(elbo.RenyiELBO, num_particles=3, alpha=0.5),
    "ReweightedWakeSleep": partial(elbo.ReweightedWakeSleep, num_particles=3),
}
# Why one of ours does not serve a program, as it says itself.
PATHWISE = "expected a reparameterized guide at site 'y'"
REFUSED = {
    ("SemiSupervisedVAE", "ELBO"): PATHWISE,
    ("SemiSupervisedVAE", "ELBO, K=3"): PATHWISE,
    ("SemiSupervisedVAE", "ELBO, stl"): PATHWISE,
    ("SemiSupervisedVAE", "ELBO, analytic KL"): PATHWISE,
    ("SemiSupervisedVAE", "IWELBO"): PATHWISE,
    ("SemiSupervisedVAE", "IWELBO, dreg"): PATHWISE,
    ("SemiSupervisedVAE", "RenyiELBO"): PATHWISE,
    ("HierarchicalVAE, bottom-up", "ELBO, analytic KL"): "order",
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.trace` is deprecated",
    "ignore:y\n:UserWarning",  # of stock losses: "if you want to enumerate sites, use TraceEnum_ELBO"
    "ignore:TraceEnum_ELBO found no sample sites",
)


def untrained_by(step: Step, program: Member, args: tuple[Tensor, ...]) -> list[str]:
    """Names of the parameters that three steps leave as they are."""
    before = {name: p.detach().clone() for name, p in program.named_parameters()}
    dtype = next(program.parameters()).dtype
    for _ in range(3):
        step(*(a.to(dtype) if a.is_floating_point() else a for a in args))
    assert all(p.isfinite().all() for p in program.parameters())
    return [name for name, p in program.named_parameters() if torch.equal(p, before[name])]


def stock_svi(program: Member, loss: Any) -> pyro.infer.SVI:
    return pyro.infer.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), loss)  # type: ignore[attr-defined]


def our_svi(program: Member, loss: Any) -> SVI:
    return SVI(program.model, program.guide, partial(torch.optim.Adam, lr=0.01), loss)


@pytest.mark.usefixtures("global_store")
def test_ProgramModule_part_held_by_reference_can_be_pickled_after_stock_training() -> None:
    vae = VAE(
        priors.VampPrior(torch.rand(5, 4)),
        likelihoods.Bernoulli(nets.MLP(2, [5]), 4),
        conditionals.DiagonalNormal(nets.MLP(4, [5]), 2),
    )
    stock_svi(vae, pyro.infer.Trace_ELBO()).step(torch.rand(3, 4).round())
    prior = pickle.loads(pickle.dumps(vae.model)).prior
    torch.testing.assert_close(prior().log_prob(torch.zeros(2)), vae.prior().log_prob(torch.zeros(2)))


def with_likelihood(name: str, make: Callable[[nets.Body], likelihoods.Likelihood]) -> Member:
    """The program of that name for vectors of four, with a likelihood made from its body."""
    program, _ = PROGRAMS[name]()
    prior: Any = program.model.prior
    contexts = list(program.likelihood.body.input_shapes[1:])
    likelihood = make(nets.MLP(2, [5], context_shapes=contexts))
    posterior = conditionals.DiagonalNormal(nets.MLP(4, [5], context_shapes=contexts), 2)
    if isinstance(program, HierarchicalVAE):
        layers: Any = program.model.conditionals
        parts = [conditionals.DiagonalNormal(nets.MLP(4, [5]), 2), *program.guide.parts[1:]]
        inference: Inference = "top-down" if isinstance(program.guide, TopDownGuide) else "bottom-up"
        return HierarchicalVAE(prior, list(layers), likelihood, parts, inference=inference)
    if isinstance(program, SemiSupervisedVAE):
        classifier = conditionals.OneHotCategorical(nets.MLP(4, [5]), 3)
        return SemiSupervisedVAE(prior, likelihood, posterior, classifier, classification_weight=1.0)
    assert isinstance(program, VAE | ConditionalVAE)
    return type(program)(prior, likelihood, posterior)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", VECTORS)
def test_ProgramModule_leaves_missing_values_out(name: str) -> None:
    program = with_likelihood(name, lambda body: likelihoods.MissingAtRandom(likelihoods.Normal(body, 4, scale=0.5)))
    complete = copy.deepcopy(program)
    x, context = torch.randn(7, 4), PROGRAMS[name]()[1][1:]
    x[2, 1] = x[5, 3] = torch.nan
    dataset = data.as_dataset(x).conditioned_on(*context)
    loss = elbo.ELBO(gradient="enumerate") if name == "SemiSupervisedVAE" else elbo.ELBO()
    before = {key: value.clone() for key, value in program.state_dict().items()}
    fit(program, dataset, dataset, loss=loss, epochs=1, seed=0, progress=False)
    assert [key for key, value in program.state_dict().items() if torch.equal(value, before[key])] == []
    assert all(value.isfinite().all() for value in program.state_dict().values())
    assert program.reconstruct(x, *context).isfinite().all()
    # Rows without missing values have the log-weights that they have without the others.
    whole = x.isfinite().all(1)
    weights = []
    for rows in (x, x.nan_to_num(0.0)):
        torch.manual_seed(1)
        weights.append(elbo.log_weights(complete.model, complete.guide, rows, *context, num_particles=2))
    assert torch.equal(weights[0][:, whole], weights[1][:, whole])
    assert (weights[0][:, ~whole] > weights[1][:, ~whole]).all()  # of densities below one, two are left out


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", VECTORS)
def test_ProgramModule_is_calibrated_by_fit(name: str) -> None:
    program = with_likelihood(name, lambda body: likelihoods.SigmaNormal(body, 4))
    context = PROGRAMS[name]()[1][1:]
    loss = elbo.ELBO(gradient="enumerate") if name == "SemiSupervisedVAE" else elbo.ELBO()
    x = 10 * torch.randn(7, 4)
    fit(program, data.as_dataset(x).conditioned_on(*context), loss=loss, epochs=1, seed=0, progress=False)
    scale = program.likelihood.distribution(loc=x).base_dist.scale
    assert 5 < scale.mean().item() < 20
    torch.manual_seed(1)
    program.calibrate(x, *context)
    torch.manual_seed(1)
    error = (x - program.reconstruct(x, *context)).square().mean().sqrt()
    torch.testing.assert_close(program.likelihood.distribution(loc=x).base_dist.scale.mean(), error)


@pytest.mark.parametrize("name", PROGRAMS)
def test_Program_is_the_protocol_of_each(name: str) -> None:
    program, _ = PROGRAMS[name]()
    assert isinstance(program, Program)
    assert isinstance(program.model, RootModule)
    assert isinstance(program.guide, RootModule)
    assert not isinstance(program, pyro.nn.PyroModule)  # it would rename its children


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", PROGRAMS)
def test_Program_sites_lie_in_the_plate(name: str) -> None:
    program, args = PROGRAMS[name]()
    program.eval()
    guide = poutine.trace(program.guide).get_trace(*args)
    model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(*args)
    assert set(guide.stochastic_nodes) == {"data", *program.latents}
    assert set(model.stochastic_nodes) == {"data", *program.latents}
    assert set(model.observation_nodes) == set(program.observed)
    for trace in (guide, model):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and site["name"] != "data":
                assert [frame.name for frame in site["cond_indep_stack"]] == ["data"]
                assert site["log_prob"].shape == (7,)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize(("name", "loss"), [pair for pair in itertools.product(PROGRAMS, STOCK) if pair not in NOT_FOR])
def test_ProgramModule_stock_svi_trains_every_parameter(name: str, loss: str) -> None:
    program, args = PROGRAMS[name]()
    assert untrained_by(stock_svi(program, STOCK[loss]()).step, program, args) == []


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("svi", [stock_svi, our_svi], ids=["stock SVI", "our SVI"])
@pytest.mark.parametrize("loss", OURS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_ProgramModule_our_estimators_train_every_parameter_or_say_why_not(
    name: str, loss: str, svi: Callable[[Member, Any], SVI | pyro.infer.SVI]
) -> None:
    program, args = PROGRAMS[name]()
    step = svi(program, OURS[loss]()).step
    if (name, loss) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name, loss]):
            step(*args)
    else:
        assert untrained_by(step, program, args) == []


@pytest.mark.slow  # 30 s in all
@pytest.mark.parametrize("name", PROGRAMS)
def test_ProgramModule_step_compiles(name: str) -> None:
    program, args = PROGRAMS[name]()
    discrete = name == "SemiSupervisedVAE"
    loss = elbo.IWELBO(num_particles=3, gradient="vimco") if discrete else elbo.ELBO()
    # Compiled, a step is held against an eager one before it is used, and an error is raised where they differ.
    svi = SVI(program.model, program.guide, partial(torch.optim.Adam, lr=0.01), loss, compile=True)
    assert untrained_by(svi.step, program, args) == []


def through_pickle(program: Member) -> Member:
    loaded = pickle.loads(pickle.dumps(program))
    assert isinstance(loaded, type(program))
    return loaded


def through_torch_save(program: Member) -> Member:
    file = io.BytesIO()
    torch.save(program, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, type(program))
    return loaded


COPIES: dict[str, Callable[[Member], Member]] = {
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "torch.save": through_torch_save,
    "double": lambda program: copy.deepcopy(program).double(),
}


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("svi", [stock_svi, our_svi], ids=["stock SVI", "our SVI"])
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_ProgramModule_two_in_one_process_both_train_and_apart(
    name: str, copied: str, svi: Callable[[Member, Any], SVI | pyro.infer.SVI]
) -> None:
    first, args = PROGRAMS[name]()
    loss = STOCK["TraceEnum_ELBO"]
    assert untrained_by(svi(first, loss()).step, first, args) == []
    second = COPIES[copied](first)
    weights = copy.deepcopy(first.state_dict())
    assert [torch.equal(value.to(weights[key]), weights[key]) for key, value in second.state_dict().items()]
    assert untrained_by(svi(second, loss()).step, second, args) == []
    assert all(torch.equal(value, weights[key]) for key, value in first.state_dict().items())
    assert untrained_by(svi(first, loss()).step, first, args) == []


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", PROGRAMS)
def test_ProgramModule_state_holds_every_parameter_once_and_all_that_a_copy_needs(name: str, tmp_path: Path) -> None:
    program, args = PROGRAMS[name]()
    state = program.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    save_file(state, tmp_path / "state.safetensors")
    other, _ = PROGRAMS[name]()
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    weights = []
    for one in (program, other):
        torch.manual_seed(1)
        weights.append(elbo.log_weights(one.model, one.guide, *args, num_particles=2))
    assert torch.equal(*weights)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_ProgramModule_predictive_draws_every_site(name: str, parallel: bool) -> None:
    program, (x, *context) = PROGRAMS[name]()
    program.eval()
    prior = Predictive(program.model, num_samples=4, parallel=parallel)(
        None, *context, **{} if context else {"size": 7}
    )
    posterior = Predictive(poutine.uncondition(program.model), guide=program.guide, num_samples=4, parallel=parallel)(
        x, *context
    )
    for draws in (prior, posterior):
        assert set(draws) >= {*program.latents, "x"}
        assert draws["x"].shape == (4, *x.shape)
        assert set(draws["x"].unique().tolist()) == {0.0, 1.0}


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", PROGRAMS)
def test_ProgramModule_vectorized_and_looped_draws_have_log_weights_of_one_mean(name: str) -> None:
    program, args = PROGRAMS[name]()
    draw = partial(elbo.log_weights, program.model, program.guide, *args)
    vectorized = draw(num_particles=1000)
    looped = torch.cat([draw(num_particles=1) for _ in range(30)])
    assert vectorized.shape == (1000, 7)
    standard_error = (vectorized.var(0) / 1000 + looped.var(0) / 30).sqrt()
    assert ((vectorized.mean(0) - looped.mean(0)).abs() < 5 * standard_error).all()


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", PROGRAMS)
def test_ProgramModule_fit_and_evaluation_take_it(name: str) -> None:
    program, (x, *context) = PROGRAMS[name]()
    dataset = data.as_dataset(x).conditioned_on(*context)
    loss = elbo.ELBO(gradient="enumerate") if name == "SemiSupervisedVAE" else elbo.ELBO()
    adam = partial(torch.optim.Adam, lr=0.03)
    history = fit(program, dataset, dataset, loss=loss, optimizer=adam, epochs=20, batch_size=4, seed=0, progress=False)
    assert history["loss"][-1] < history["loss"][0]
    terms = evaluation.elbo_terms(program, x, *context, num_particles=1000)
    assert set(terms.kl_by_site) == set(program.latents)
    # The history has one draw per datum.
    draws = elbo.log_weights(program.model, program.guide, x, *context, num_particles=1000)
    standard_error = draws.mean(1).std().item()
    assert abs(history["validation_elbo"][-1] - terms.elbo.mean().item()) < 5 * standard_error
