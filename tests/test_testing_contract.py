"""Every member of the tables keeps to the contract of its kind."""

from types import ModuleType

import members
import pytest

from pyro_vae import conditionals, likelihoods, priors
from pyro_vae.testing import check_conditional, check_likelihood, check_prior


@pytest.mark.parametrize("name", members.LIKELIHOODS)
def test_check_likelihood_of_every_class(name: str) -> None:
    # The log_prob of dequantized data is random, and that of censored data has a probability beside a density:
    # tests/test_distributions_dequantized.py and test_distributions_censored.py compare them with what is right.
    check_likelihood(members.LIKELIHOODS[name](), density=not name.startswith(("Dequantized", "Censored")))


@pytest.mark.parametrize("name", members.PRIORS)
def test_check_prior_of_every_class(name: str) -> None:
    check_prior(members.PRIORS[name]())


@pytest.mark.parametrize("name", members.CONDITIONALS)
def test_check_conditional_of_every_class(name: str) -> None:
    check_conditional(members.CONDITIONALS[name]())


@pytest.mark.parametrize(
    ("module", "table", "base"),
    [
        (likelihoods, members.LIKELIHOODS, "Likelihood"),
        (priors, members.PRIORS, "Prior"),
        (conditionals, members.CONDITIONALS, "Conditional"),
    ],
)
def test_check_has_every_class_in_its_table(module: ModuleType, table: dict[str, type], base: str) -> None:
    assert {type(make()).__name__ for make in table.values()} == set(module.__all__) - {base}
