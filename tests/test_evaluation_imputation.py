"""Imputed values against the conditional Normals of factor analysis, and against sums and quadrature."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import FactorAnalysis, SimpleProgram
from torch import Tensor

from pyro_vae import (
    VAE,
    ConditionalVAE,
    HierarchicalVAE,
    SemiSupervisedVAE,
    conditionals,
    distributions,
    evaluation,
    likelihoods,
    nets,
    priors,
)
from pyro_vae.priors import StandardNormal
from pyro_vae.traces.tracing import unchanged_param_store

NAN = math.nan
ORACLE = FactorAnalysis.random()
quiet: dict[str, Any] = {"progress": False}


def holes(x: Tensor, share: float = 0.3, seed: int = 1) -> Tensor:
    """The data with a share of their values taken out at random."""
    generator = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(x.shape, dtype=x.dtype, generator=generator) < share, NAN, x)


@pytest.mark.slow
def test_impute_means_and_covariances_are_those_of_factor_analysis() -> None:
    """Each row 100 times over, so that the replicates tell the standard error of every mean and covariance."""
    replicates, num_samples = 100, 50
    x = holes(ORACLE.draw(6, seed=3), seed=2)
    assert x.isnan().double().mean() == pytest.approx(0.3)  # 0, 1, 1, 2, 2 and 3 of 5
    torch.manual_seed(0)
    result = evaluation.impute(
        ORACLE.vae(widen=1.5, shift=0.3),
        x.repeat_interleave(replicates, 0),
        num_samples=num_samples,
        num_particles=2000,
        **quiet,
    )
    assert result.unreliable == []
    draws = result.samples.reshape(num_samples, len(x), replicates, -1)
    scores = []
    for row in torch.nonzero(x.isnan().any(1)).flatten().tolist():
        missing = x[row].isnan()
        loc, covariance = ORACLE.conditional(x[row])
        own = draws[:, row][..., missing]
        centered = own - loc
        one, other = torch.triu_indices(len(loc), len(loc))
        for estimates, truth in (
            (own.mean(0), loc),
            ((centered[..., one] * centered[..., other]).mean(0), covariance[one, other]),
        ):
            error = estimates.std(0) / math.sqrt(replicates)
            scores.append(((estimates.mean(0) - truth) / error).flatten())
    every = torch.cat(scores)
    assert len(every) == 23
    assert every.abs().max() < 3
    assert every.square().mean() == pytest.approx(1, abs=5 * math.sqrt(2 / 23))


@pytest.mark.slow
def test_impute_intervals_cover_what_was_taken_out_as_often_as_those_of_factor_analysis() -> None:
    complete = ORACLE.draw(600, seed=5)
    x = holes(complete)
    torch.manual_seed(0)
    result = evaluation.impute(ORACLE.vae(widen=1.5, shift=0.3), x, num_samples=99, num_particles=1000, **quiet)
    low, high = result.interval(0.9)
    missing = x.isnan()
    covered = ((low <= complete) & (complete <= high))[missing].double()
    exact = torch.zeros_like(x)
    for row in range(len(x)):
        loc, covariance = ORACLE.conditional(x[row])
        half = 1.6448536269514722 * covariance.diagonal().sqrt()
        exact[row, missing[row]] = ((complete[row, missing[row]] - loc).abs() <= half).double()
    # Values of one row depend on each other, so the standard error is that of a ratio of sums over rows.
    residuals = torch.zeros_like(x)
    residuals[missing] = covered - 0.9
    error = residuals.sum(1).std() * math.sqrt(len(x)) / missing.sum()
    assert 0.002 < error < 0.012
    assert covered.mean() == pytest.approx(0.9, abs=3 * error.item())
    # Against the closed form on the same data, which the draws' own noise alone parts: a few of 1,000 values.
    assert covered.mean() == pytest.approx(exact[missing].mean().item(), abs=0.012)


def test_impute_standard_error_is_that_of_the_mean() -> None:
    replicates = 300
    x = torch.tensor([[0.5, NAN, -1.0, NAN, NAN]], dtype=torch.float64)
    torch.manual_seed(0)
    result = evaluation.impute(
        ORACLE.vae(widen=1.2), x.repeat(replicates, 1), num_samples=100, num_particles=200, **quiet
    )
    actual, told = result.mean.std(0)[1], result.standard_error.mean(0)[1]
    assert actual < told * (1 + 3 / math.sqrt(2 * replicates))
    assert actual > 0.7 * told
    assert (result.standard_error[:, [0, 2]] == 0).all()


def test_impute_leaves_what_was_observed_as_it_was() -> None:
    x = holes(ORACLE.draw(20, seed=2))
    x[0] = ORACLE.bias  # nothing missing
    torch.manual_seed(0)
    result = evaluation.impute(ORACLE.vae(widen=1.2), x, num_samples=30, num_particles=300, **quiet)
    known = ~x.isnan()
    low, high = result.interval(0.8)
    for value in (*result.samples, result.mean, low, high):
        assert torch.equal(value[known], x[known])
        assert not bool(value.isnan().any())
    assert (low <= high).all()
    assert result.samples.shape == (30, 20, 5)
    assert result.samples.dtype == x.dtype
    # every missing value is a draw of its own
    assert (result.samples[:, x.isnan()].std(0) > 0).all()


def test_impute_does_not_mix_up_rows_draws_and_batches() -> None:
    """Rows that are far apart, in several batches of data and of draws: each keeps to its own."""
    x = torch.stack([torch.arange(40, dtype=torch.float64) * 10, torch.full((40,), NAN, dtype=torch.float64)], 1)
    program = _copying()
    torch.manual_seed(0)
    several: list[dict[str, Any]] = [{}, {"batch_size": 7}, {"memory": 30_000}]
    for settings in several:
        result = evaluation.impute(program, x, num_samples=5, num_particles=200, **settings, **quiet)
        assert ((result.samples[:, :, 1] - x[:, 0]).abs() < 1).all()


def _copying(mask: bool = False, whole: bool = True, wrap: bool = True) -> SimpleProgram:
    """Two values that are z but for noise of 0.1; the guide knows it."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=x.dtype), 1000.0))
            normal = dist.Normal(z[..., None].expand(*z.shape, 2), 0.1).to_event(1)
            fn = distributions.MissingAtRandom(normal, torch.tensor(0.0)) if wrap else normal
            fn = fn.mask(torch.arange(len(x)) > 0) if mask else fn
            pyro.sample("x", fn, obs=x if whole else x.clone())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 0.12))

    return SimpleProgram(model, guide)


def test_impute_says_where_a_guide_proposes_badly() -> None:
    x = holes(ORACLE.draw(30, seed=2), 0.5)
    x[0] = ORACLE.draw(1, seed=9)  # nothing to impute, so nothing to warn of
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"impute: expected Pareto k-hat at most 0.7 and at least 100 .* of 30 rows"):
        result = evaluation.impute(ORACLE.vae(widen=0.1, shift=2.0), x, num_particles=500, **quiet)
    assert 0 not in result.unreliable
    assert len(result.unreliable) > 20
    assert f"{len(result.unreliable) / 30:.2f}"[:3] in str(result)


def test_impute_says_where_draws_repeat_few_latents_though_the_tail_is_light() -> None:
    """A guide that is much too wide: k-hat is low, and a few draws have all the weight."""
    x = holes(ORACLE.draw(3, seed=2))
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="at least 100 effective draws"):
        result = evaluation.impute(ORACLE.vae(widen=8.0), x, num_particles=2000, **quiet)
    assert (result.observed.pareto_k < 0.7).any()
    assert result.unreliable == [0, 1, 2]


def test_impute_draws_categories_in_proportion_to_their_probability() -> None:
    """z in {0, 1}; a Bernoulli, a Categorical and a Normal column: the sum over z is exact."""
    vae = _mixed_of_classes()
    rows = 200
    x = torch.tensor([[NAN, NAN, 1.0]]).repeat(rows, 1)
    torch.manual_seed(0)
    result = evaluation.impute(vae, x, num_samples=50, num_particles=400, **quiet)
    likelihood = vae.likelihood(torch.tensor([[0.0], [1.0]]))
    joint = likelihood.base_dist
    (_, bernoulli), (_, categorical), (_, normal) = joint.parts
    weights = normal.log_prob(torch.tensor([[1.0], [1.0]])).softmax(0)
    assert 0.05 < weights.min() < 0.4
    one = (weights * bernoulli.mean[:, 0]).sum()
    assert set(result.samples[..., 0].unique().tolist()) == {0.0, 1.0}
    assert set(result.samples[..., 1].unique().tolist()) == {0.0, 1.0, 2.0}
    shares = [((result.samples[..., 0] == 1).float().mean(0), one)]
    for code in range(3):
        probability = (weights * categorical.log_prob(torch.full((2, 1), float(code))).exp()).sum()
        shares.append(((result.samples[..., 1] == code).float().mean(0), probability))
    for share, truth in shares:
        assert share.mean().item() == pytest.approx(truth.item(), abs=4 * share.std().item() / math.sqrt(rows))


def _mixed_of_classes() -> VAE:
    likelihood = likelihoods.MissingAtRandom(
        likelihoods.Mixed(
            nets.MLP(1, []),
            parts=[
                (0, likelihoods.Bernoulli),
                (1, partial(likelihoods.Categorical, 3)),
                (2, partial(likelihoods.Normal, scale=1.0)),
            ],
        )
    )
    torch.manual_seed(1)
    torch.nn.init.normal_(likelihood.head.layer.weight, std=1.5)
    return VAE(priors.Bernoulli(1), likelihood, conditionals.Bernoulli(nets.MLP(3, [], masked=True), 1))


@pytest.mark.slow
def test_impute_takes_hierarchies_contexts_and_standardized_columns() -> None:
    standardize = nets.Standardize(torch.tensor([1e4, 0.0]), torch.tensor([50.0, 1.0]))
    normal = partial(likelihoods.Normal, event_shape=2, scale=0.5)
    hierarchy = HierarchicalVAE(
        StandardNormal(2),
        [conditionals.DiagonalNormal(nets.MLP(2, [4]), 3)],
        likelihoods.MissingAtRandom(likelihoods.Standardized(normal(nets.MLP(3, [4])), standardize)),
        [
            conditionals.DiagonalNormal(nets.MLP(2, [4], transform=standardize, masked=True), 3),
            conditionals.DiagonalNormal(nets.MLP(3, [4]), 2),
        ],
    )
    conditional = ConditionalVAE(
        StandardNormal(2),
        likelihoods.MissingAtRandom(
            likelihoods.Standardized(normal(nets.MLP(2, [4], context_shapes=[1])), standardize)
        ),
        conditionals.DiagonalNormal(nets.MLP(2, [4], transform=standardize, context_shapes=[1]), 2),
    )
    rows = torch.tensor([[1e4 + 30, NAN], [NAN, 0.3], [NAN, NAN]])
    replicates, num_prior = 100, 100_000
    torch.manual_seed(0)
    for program, context, size in (
        (hierarchy, (), {"size": num_prior}),
        (conditional, (torch.ones(num_prior, 1),), {}),
    ):
        # The same by weighted draws from the prior, which know nothing of the guide.
        with torch.no_grad(), unchanged_param_store():
            fn: Any = pyro.poutine.trace(program.model).get_trace(None, *context, **size).nodes["x"]["fn"]
            weights = torch.stack([fn.log_prob(row).softmax(0) for row in rows])
            truth = weights @ standardize(fn.mean)
        x = rows.repeat_interleave(replicates, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the guide is not trained
            result = evaluation.impute(
                program, x, *(c[: len(x)] for c in context), num_samples=50, num_particles=1000, **quiet
            )
        means = standardize(result.mean).reshape(len(rows), replicates, 2)
        error = (means.var(1) / replicates + 2 / num_prior).sqrt()
        assert (means.mean(1) - truth)[rows.isnan()].abs().max() < 0.5
        assert ((means.mean(1) - truth) / error)[rows.isnan()].abs().max() < 5


def test_impute_context_reaches_the_decoder() -> None:
    vae = ConditionalVAE(
        StandardNormal(1),
        likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(1, [], context_shapes=[1]), 2, scale=0.1)),
        conditionals.DiagonalNormal(nets.MLP(2, [], context_shapes=[1]), 1),
    )
    layer = vae.likelihood.head.layer
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
        layer.bias = torch.nn.Parameter(torch.zeros(2))
    context = torch.tensor([[1.0], [5.0]])
    result = evaluation.impute(vae, torch.tensor([[NAN, 2.0], [NAN, 10.0]]), context, num_particles=500, **quiet)
    assert ((result.mean[:, 0] - context[:, 0]).abs() < 0.1).all()


def test_impute_knows_classes_as_far_as_they_are_given() -> None:
    """x_d | y ~ Normal(-3 or 3, 0.5) by class: a label decides, and without one the observed value does."""
    vae = SemiSupervisedVAE(
        StandardNormal(1),
        likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(1, [], context_shapes=[2]), 2, scale=0.5)),
        conditionals.DiagonalNormal(nets.MLP(2, [], context_shapes=[2]), 1),
        conditionals.OneHotCategorical(nets.MLP(2, []), 2),
    )
    with torch.no_grad():
        for part in (vae.guide.posterior, vae.guide.classifier):
            for parameter in part.parameters():
                parameter.zero_()
        vae.likelihood.head.layer.weight.copy_(torch.tensor([[0.0, -3.0, 3.0]] * 2))
        torch.nn.init.zeros_(vae.likelihood.head.bias("loc"))
    x = torch.tensor([[NAN, NAN], [NAN, NAN], [-3.0, NAN], [3.0, NAN], [NAN, NAN]])
    torch.manual_seed(0)
    result = evaluation.impute(vae, x, torch.tensor([0, 1, -1, -1, -1]), num_samples=200, num_particles=1000, **quiet)
    draws = result.samples[..., 1]
    assert ((draws[:, :4] - torch.tensor([-3.0, 3.0, -3.0, 3.0])).abs() < 2.5).all()
    assert (draws[:, 4] > 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert ((result.samples[:, 4, 0] > 0) == (draws[:, 4] > 0)).all()  # of one class, both values
    assert result.observed.value[:2].tolist() == pytest.approx([math.log(0.5)] * 2, abs=1e-4)  # the label's own


@pytest.mark.slow
def test_condition_on_an_event_of_probability_a_thousandth_needs_no_rejection() -> None:
    """x_0 | z ~ Bernoulli(sigmoid(3 z - 11.1)), x_1 | z ~ Normal(z, 0.5): E[x_1 | x_0 = 1] by quadrature."""
    likelihood = likelihoods.MissingAtRandom(
        likelihoods.Mixed(
            nets.MLP(1, []), parts=[(0, likelihoods.Bernoulli), (1, partial(likelihoods.Normal, scale=0.5))]
        )
    )
    vae = VAE(StandardNormal(1), likelihood, conditionals.DiagonalNormal(nets.MLP(2, [], masked=True), 1)).double()
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    weight, bias = 3.0, -11.1
    with torch.no_grad():
        likelihood.head.layer.weight.copy_(torch.tensor([[weight], [1.0]]))
        likelihood.head.layer.bias = torch.nn.Parameter(torch.tensor([bias, 0.0], dtype=torch.float64))
        encoder = vae.posterior.head.layer
        encoder.weight.zero_()
        encoder.bias = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        encoder.weight[0, 0] = 2.5  # where x_0 = 1 the guide goes up, not quite to where the posterior is
    joint = torch.sigmoid(weight * z + bias) * dist.Normal(0.0, 1.0).log_prob(z).exp()
    probability = torch.trapezoid(joint, z)
    assert probability.item() == pytest.approx(1e-3, rel=0.1)
    loc = torch.trapezoid(z * joint, z) / probability
    second = torch.trapezoid((z**2 + 0.25) * joint, z) / probability
    torch.manual_seed(0)
    runs = [evaluation.condition(vae, {0: 1.0}, num_samples=200, **quiet) for _ in range(60)]
    assert all(run.unreliable == [] for run in runs)
    assert all(run.observed.effective_sample_size > 1000 for run in runs)  # of 5,000; rejection keeps 5
    for power, truth in ((1, loc), (2, second)):
        means = torch.stack([(run.samples[:, 0, 1] ** power).mean() for run in runs])
        assert means.mean().item() == pytest.approx(truth.item(), abs=3 * means.std().item() / math.sqrt(len(runs)))
    log_probability = torch.cat([run.observed.value for run in runs])
    assert log_probability.mean().item() == pytest.approx(probability.log().item(), abs=0.02)


def test_condition_is_impute_of_one_row() -> None:
    vae = ORACLE.vae(widen=1.2)
    columns = ["a", "b", "c", "d", "e"]
    results = []
    for given, names in (({1: 0.5, 4: -1.0}, None), ({"e": -1.0, "b": 0.5}, columns), ({"e": -1.0, 1: 0.5}, columns)):
        torch.manual_seed(0)
        results.append(
            evaluation.condition(vae, given, columns=names, num_particles=500, **quiet)  # type: ignore[arg-type]
        )
    torch.manual_seed(0)
    row = torch.tensor([[NAN, 0.5, NAN, NAN, -1.0]], dtype=torch.float64)
    imputed = evaluation.impute(vae, row, num_particles=500, **quiet)
    for result in results:
        torch.testing.assert_close(result.samples, imputed.samples, atol=0, rtol=0)


def test_condition_on_nothing_draws_from_the_model() -> None:
    torch.manual_seed(0)
    result = evaluation.condition(ORACLE.vae(), {}, num_samples=4000, num_particles=8000, **quiet)
    assert result.observed.value.item() == pytest.approx(0, abs=1e-9)
    deviation = ORACLE.covariance.diagonal().sqrt()
    assert ((result.mean[0] - ORACLE.bias).abs() < 5 * deviation * math.sqrt(1 / 4000 + 1 / 8000)).all()


@pytest.mark.parametrize(
    ("given", "columns", "error", "message"),
    [
        ({"agge": 1.0}, [*"abcd", "age"], ValueError, r"got 'agge'. Use 'age'\."),
        ({"age": 1.0}, None, ValueError, r"expected a name of columns \[\]; got 'age'. Pass columns=\.\.\."),
        ({5: 1.0}, None, ValueError, "expected columns below 5, each once; got 5"),
        ({-1: 1.0}, None, ValueError, "expected the number of a column at least 0; got -1"),
        ({True: 1.0}, None, TypeError, "expected the number of a column a whole number; got True"),
        ({"a": 1.0, 0: 2.0}, list("abcde"), ValueError, "each once; got 0"),
        ({0: NAN}, None, ValueError, "expected the value of column 0 finite; got nan"),
        ({0: "high"}, None, TypeError, "expected the value of column 0 a number; got 'high'"),
        ({0: 1.0}, ["a", "b"], ValueError, "expected columns to hold 5 different names, one for each; got 2"),
        ({0: 1.0}, list("aabcd"), ValueError, "got 5, of which 4 differ"),
        ([1.0], None, TypeError, "expected given values by column; got list"),
    ],
)
def test_condition_refuses_columns_that_are_none(
    given: object, columns: list[str] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"condition: .*{message}"):
        evaluation.condition(ORACLE.vae(), given, columns=columns, **quiet)  # type: ignore[arg-type]


def test_condition_refuses_data_without_columns() -> None:
    vae = VAE(
        StandardNormal(1),
        likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(1, []), (2, 2))),
        conditionals.DiagonalNormal(nets.MLP((2, 2), []), 1),
    )
    with pytest.raises(ValueError, match=r"condition: expected .* rows of columns; got data of shape \(2, 2\). Use"):
        evaluation.condition(vae, {0: 1.0}, **quiet)
    with pytest.raises(ValueError, match=r"condition: expected .* rows of columns; got SimpleProgram. Use impute"):
        evaluation.condition(_copying(), {0: 1.0}, **quiet)


@pytest.mark.slow
def test_log_conditional_likelihood_is_that_of_factor_analysis() -> None:
    complete = ORACLE.draw(200, seed=4)
    x = holes(complete)
    x[0] = complete[0]  # nothing to add
    x[1] = NAN  # all of it
    values = complete.clone()
    values[2, 0], x[2, 0], x[2, 1] = NAN, NAN, NAN  # still missing in both, and one that is not
    torch.manual_seed(0)
    result = evaluation.log_conditional_likelihood(
        ORACLE.vae(widen=1.3, shift=0.2), x, values=values, num_particles=2000, **quiet
    )
    truth = ORACLE.log_marginal_likelihood(values) - ORACLE.log_marginal_likelihood(x)
    assert truth[0] == result.value[0] == result.standard_error[0] == 0
    added = (x.isnan() & ~values.isnan()).any(1)
    assert 100 < added.sum() < 200
    assert (result.value[~added] == 0).all()
    z = ((result.value - truth) / result.standard_error)[added]
    assert z.abs().max() < 4.5
    assert z.square().mean() == pytest.approx(1, abs=5 * math.sqrt(2 / len(z)))
    assert result.mean.value == pytest.approx(truth.mean().item(), abs=0.02)
    # The chain rule ties it to the draws: the same density at a value, by the conditional Normal.
    loc, covariance = ORACLE.conditional(x[1])
    direct = torch.distributions.MultivariateNormal(loc, covariance).log_prob(complete[1])
    assert result.value[1].item() == pytest.approx(direct.item(), abs=5 * result.standard_error[1].item())


def test_log_conditional_likelihood_refuses_other_observed_values() -> None:
    x = holes(ORACLE.draw(4))
    values = ORACLE.draw(4)
    values[2] += 1
    with pytest.raises(ValueError, match="expected values equal to x where it is observed; got others in rows 2"):
        evaluation.log_conditional_likelihood(ORACLE.vae(), x, values=values, **quiet)
    with pytest.raises(ValueError, match=r"expected values like x, torch.float64 of shape \(4, 5\); got torch.float32"):
        evaluation.log_conditional_likelihood(ORACLE.vae(), x, values=values.float(), **quiet)


def test_impute_refuses_a_likelihood_of_complete_data() -> None:
    vae = VAE(
        StandardNormal(1), likelihoods.Normal(nets.MLP(1, []), 2), conditionals.DiagonalNormal(nets.MLP(2, []), 1)
    )
    with pytest.raises(ValueError, match=r"NaN stands for a missing value; got Normal. Wrap it, likelihoods.Missing"):
        evaluation.impute(vae, torch.tensor([[NAN, 1.0]]), **quiet)
    x = torch.zeros(2, 2)  # complete rows are right: there is nothing to do
    assert torch.equal(evaluation.impute(vae, x, num_particles=5, num_samples=3, **quiet).samples, x.expand(3, 2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrap": False}, "NaN stands for a missing value; got Normal at site 'x'. Observe x with distributions.Miss"),
        ({"whole": False}, r"expected one site that observes x, .* got 0 among \['x'\]. Observe x whole"),
        ({"mask": True}, "NaN stands for a missing value; got MaskedDistribution at site 'x'"),
    ],
)
def test_impute_refuses_programs_for_which_it_would_be_wrong(options: dict[str, bool], message: str) -> None:
    with pytest.raises(ValueError, match=f"impute: .*{message}"):
        evaluation.impute(_copying(**options), torch.tensor([[1.0, NAN], [2.0, NAN]]), **quiet)


def test_impute_refuses_a_mask_around_x() -> None:
    program = _copying()

    def model(x: Tensor) -> None:
        with pyro.poutine.mask(mask=torch.arange(len(x)) > 0):  # type: ignore[call-overload]
            program.model(x)

    masked = SimpleProgram(model, program.guide)
    with pytest.raises(ValueError, match="expected a density of x that counts in full; got a mask at site 'x'"):
        evaluation.impute(masked, torch.tensor([[1.0, NAN], [2.0, NAN]]), **quiet)


def test_impute_refuses_latents_that_the_model_sums_out() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            y = pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.5)), infer={"enumerate": "parallel"})
            loc = (z + 3 * y)[..., None]
            normal = dist.Normal(loc.expand(*loc.shape[:-1], 2), 1.0).to_event(1)
            pyro.sample("x", distributions.MissingAtRandom(normal, torch.tensor(0.0)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    with pytest.raises(ValueError, match=r"expected a guide that draws every latent of the model; got \['y'\]"):
        evaluation.impute(SimpleProgram(model, guide), torch.tensor([[1.0, NAN]] * 2), num_particles=50, **quiet)


def test_impute_refuses_rows_that_no_particle_could_have_made() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            loc = z[..., None].expand(*z.shape, 2)
            uniform = dist.Uniform(loc, loc + 1, validate_args=False).to_event(1)
            pyro.sample("x", distributions.MissingAtRandom(uniform, torch.tensor(0.0)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.tensor([[0.5, NAN], [100.0, NAN]])
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"the model can have made; got log p\(x_observed\) of -inf for 1\."),
    ):
        evaluation.impute(SimpleProgram(model, guide), x, num_particles=50, **quiet)


def test_Imputation_interval_needs_draws_beyond_its_ends() -> None:
    x = torch.tensor([[NAN, 0.5, NAN, NAN, -1.0]], dtype=torch.float64)
    result = evaluation.impute(ORACLE.vae(), x, num_samples=19, num_particles=500, **quiet)
    low, high = result.interval(0.9)
    torch.testing.assert_close(low, result.samples.amin(0))
    torch.testing.assert_close(high, result.samples.amax(0))
    with pytest.raises(ValueError, match=r"expected at least 39 draws for a level of 0\.95; got 19"):
        result.interval(0.95)
    with pytest.raises(ValueError, match=r"expected level above 0 and below 1; got 1\."):
        result.interval(1.0)


def test_Imputation_tells_its_figures() -> None:
    x = torch.tensor([[NAN, 0.5, NAN, NAN, -1.0]], dtype=torch.float64).repeat(2, 1)
    result = evaluation.impute(ORACLE.vae(), x, num_samples=19, num_particles=500, **quiet)
    assert result.estimates()["missing"].value == pytest.approx(0.6)
    assert result.estimates()["unreliable"].value == 0
    assert '"pareto_k"' in result.to_json()
