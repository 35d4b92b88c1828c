"""How programs are run: what is looked at first, what is shared between runs, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import NormalNormal
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.elbo import ELBO, IWELBO, log_weights
from pyro_vae.traces.structure import UndrawnLatentError
from pyro_vae.traces.tracing import inspect, trace_programs

pytestmark = pytest.mark.usefixtures("global_store")

X = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def labeled(x: Tensor, label: Tensor | None = None) -> None:
    """A class that is observed or, where no labels are given, summed out."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        rate = torch.sigmoid(z)
        c = pyro.sample("c", dist.Bernoulli(rate), obs=label, infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)


def guide(x: Tensor, label: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


LABEL = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_inspect_latent_that_is_observed_in_some_calls(num_particles: int) -> None:
    """An estimator that has seen labeled data sums the class out of the rest, and the other way round."""
    for estimator in (ELBO(num_particles), IWELBO(num_particles)):
        calls: list[tuple[Any, ...]] = [(X, LABEL), (X,), (X, None), (X, LABEL)]
        for args in calls:
            fresh = type(estimator)(num_particles)
            values = []
            for loss in (estimator, fresh, fresh):
                torch.manual_seed(3)
                values.append(loss.loss(labeled, guide, *args))
            assert values[0] in values[1:]  # the first call of a fresh estimator may take two runs
    summed = log_weights(labeled, guide, X, num_particles=2000).logsumexp(0)
    seen = [log_weights(labeled, guide, X, label.expand(3).double(), num_particles=2000) for label in torch.eye(2)[1]]
    torch.testing.assert_close(summed, torch.logaddexp(*(w.logsumexp(0) for w in seen)), rtol=0.02, atol=0.0)


def test_inspect_latent_that_appears_by_the_value_of_an_argument() -> None:
    """No argument is left out, so that only the run itself can tell."""

    def model(x: Tensor, label: Tensor) -> None:
        labeled(x, label if bool((label >= 0).all()) else None)

    def program(x: Tensor, label: Tensor) -> None:
        guide(x)

    estimator = IWELBO(4)
    estimator.loss(model, program, X, LABEL)
    estimator.loss(model, program, X, -LABEL)
    torch.manual_seed(3)
    found = estimator.loss(model, program, X, -LABEL)
    torch.manual_seed(3)
    assert found == pytest.approx(IWELBO(4).loss(labeled, guide, X))


def undrawn(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        w = pyro.sample("w", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_inspect_latent_that_nobody_draws_is_refused(num_particles: int) -> None:
    message = (
        "Guide: expected a site for every latent of the model; got none for ['w']. Sample them in the guide under the "
        "same names, observe them in the model with obs=..., or mark discrete ones with "
        'infer={"enumerate": "parallel"} to have them summed out.'
    )
    for estimator in (ELBO(num_particles), IWELBO(num_particles), ELBO(num_particles, analytic_kl=True)):
        with pytest.raises(UndrawnLatentError, match=re.escape(message)):
            estimator.loss(undrawn, guide, X)
    with pytest.raises(UndrawnLatentError, match=re.escape(message)):
        log_weights(undrawn, guide, X, num_particles=num_particles)


def test_inspect_auxiliary_latent_of_the_guide_counts() -> None:
    """A site that the model has not: the bound is that of the model extended by a flat factor, as in Pyro."""

    def with_auxiliary(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(torch.zeros_like(x), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = log_weights(NormalNormal.exact(X).model, with_auxiliary, X, num_particles=4)
    draws = log_weights(NormalNormal.exact(X).model, guide, X, num_particles=4)
    torch.testing.assert_close(draws, NormalNormal.log_marginal_likelihood(X).expand(4, -1))
    assert (found - draws).std() > 0.1


def test_inspect_changes_nothing() -> None:
    program = NormalNormal(0 * X, 1 + 0 * X, functions=True)
    before = torch.get_rng_state()
    with poutine.trace() as trace:
        structure = inspect(program.model, program.guide, (X,), {})
    assert torch.equal(torch.get_rng_state(), before)
    assert [name for name, site in trace.trace.nodes.items() if site["type"] == "sample"] == []
    assert structure.nesting == 1
    assert structure.outside == {"data": None}


def test_inspect_updates_no_running_mean() -> None:
    model = NormalNormal.exact(X).model
    body = nn.BatchNorm1d(1, dtype=X.dtype)

    def normalized(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(body(x.unsqueeze(-1)).squeeze(-1), 1.0))

    estimator = IWELBO(4)
    for _ in range(2):
        estimator.loss(model, normalized, X)
    assert body.num_batches_tracked == 2
    torch.testing.assert_close(body.running_mean, (1 - 0.9**2) * X.mean(0, keepdim=True))


def test_Estimator_draws_as_stock_pyro_does() -> None:
    """Looking at a program takes no random numbers, so that a seed gives stock Pyro's draws."""
    program = NormalNormal(0 * X, 1 + 0 * X)
    torch.manual_seed(3)
    IWELBO(4).loss(program.model, program.guide, X)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), after)


def test_inspect_is_made_once_for_a_program() -> None:
    calls = []

    def counted(x: Tensor) -> None:
        calls.append(len(x))
        guide(x)

    model, estimator = NormalNormal.exact(X).model, IWELBO(4)
    for _ in range(3):
        estimator.loss(model, counted, X)
    estimator.loss(model, counted, X[:2])  # a smaller batch is the same program
    assert calls == [3, 3, 3, 3, 2]


def test_inspect_of_many_programs_does_not_pile_up() -> None:
    estimator = IWELBO(2)
    for _ in range(50):
        program = NormalNormal.exact(X, functions=True)
        estimator.loss(program.model, program.guide, X)
        pyro.clear_param_store()
    assert len(estimator._structures) <= 16


def test_Estimator_validation_finds_a_missing_plate() -> None:
    """A batch dim that no plate declares is Pyro's error, as in stock Pyro."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def undeclared(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(ValueError, match="invalid log_prob shape"):
        ELBO().loss(model, undeclared, X)


def test_trace_programs_of_a_single_run_has_no_dim_for_particles() -> None:
    program = NormalNormal.exact(X)
    run = trace_programs(program.model, program.guide, (X,), {})
    assert run.particle_dim is None
    assert run.model.nodes["x"]["log_prob"].shape == (3,)
    structure = inspect(program.model, program.guide, (X,), {})
    several = trace_programs(program.model, program.guide, (X,), {}, num_particles=4, structure=structure)
    assert several.particle_dim == -2
    assert several.model.nodes["x"]["log_prob"].shape == (4, 3)


# Programs that do not broadcast


def chain_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = torch.zeros_like(x)
        for t in range(3):
            z = pyro.sample(f"z{t}", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def chain_guide(x: Tensor) -> None:
    """Stacks what it has drawn so far beside the data, which have no dim for particles."""
    with pyro.plate("data", len(x)):
        z = torch.zeros_like(x)
        for t in range(3):
            history = torch.stack([x, z], -1)
            z = pyro.sample(f"z{t}", dist.Normal(history.mean(-1), 1.0))


def pick(x: Tensor) -> Tensor:
    """One weight for each of two classes."""
    return x.new_tensor([0.4, 1.6])


def indexing_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2, dtype=x.dtype)))
        assert k.shape == x.shape
        pyro.sample("x", dist.Normal(pick(x)[k], 1.0), obs=x)


def indexing_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(torch.ones(2, dtype=x.dtype)))


@pytest.mark.parametrize("estimator", [IWELBO(2), ELBO(2), ELBO(2, "dreg"), IWELBO(2, "score")])
def test_trace_programs_tells_a_guide_that_does_not_broadcast_what_to_do(estimator: Any) -> None:
    message = (
        "Site 'z1': expected programs that broadcast over 2 particles, in a dim left of all plates; got an error "
        "here or just before: stack expects each tensor to be equal size"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.* Use vectorize=False, which runs them once for each"):
        estimator.loss(chain_model, chain_guide, X)
    with pytest.raises(ValueError, match=r"^Site 'z1': expected programs that broadcast over 2 particles"):
        log_weights(chain_model, chain_guide, X, num_particles=2)
    looped = type(estimator)(2, estimator.gradient, vectorize=False)
    assert looped.loss(chain_model, chain_guide, X) > 0


def test_trace_programs_tells_a_program_that_does_not_broadcast_over_values_what_to_do() -> None:
    message = "Site 'x': expected programs that broadcast over all values of ['k'], in a dim left of all plates; got an"
    for estimator in (ELBO(1, "enumerate"), ELBO(2, {"k": "enumerate"}, vectorize=False)):
        with pytest.raises(ValueError, match=rf"^{re.escape(message)}.* Use 'score' at \['k'\]"):
            estimator.loss(indexing_model, indexing_guide, X)
    assert ELBO(1, "score").loss(indexing_model, indexing_guide, X) > 0


def test_trace_programs_leaves_its_own_error_to_a_program_that_fails_for_one_draw_too() -> None:
    def model(x: Tensor) -> None:
        raise RuntimeError("no data today")

    with pytest.raises(RuntimeError, match=r"^no data today"):
        IWELBO(2).loss(model, chain_guide, X)
