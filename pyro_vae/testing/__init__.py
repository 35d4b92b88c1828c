"""The contract of likelihoods, priors and conditionals, as checks to call in a test of your own class.

    def test_my_likelihood() -> None:
        check_likelihood(MyLikelihood(nets.MLP(3, [5]), (1, 2, 2)))

Each check raises an ``AssertionError`` that says what was expected. All of them hold over any number of leading dims,
in single and double precision, after a round trip through ``state_dict``; and :func:`check_density` compares a density
with 1 and with its samples, by quadrature or by summing over all outcomes. Give small members: events of a few
elements, or a joint density of at most three dims. Nothing here draws from torch's global generators.
"""

from pyro_vae.testing.contract import check_conditional, check_distribution, check_likelihood, check_prior
from pyro_vae.testing.densities import check_density, check_own_draws

__all__ = [
    "check_conditional",
    "check_density",
    "check_distribution",
    "check_likelihood",
    "check_own_draws",
    "check_prior",
]
