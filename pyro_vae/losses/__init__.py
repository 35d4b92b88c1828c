r"""Losses of the wild read as likelihoods: which p(x|z), which beta and which units a loss function assumes.

A loss of a minibatch is, once its averages are written out, a sum or a mean over the data of

.. math::  a \sum_d e(x_d, \mathrm{loc}_d(z)) + k\, \mathrm{KL}(q(z|x) \| p(z)),

where a mean over D elements has put 1 / D into a, and one over L latents 1 / L into k. If e is an error, such as
:math:`(x - \mathrm{loc})^2`, then :math:`p_T(x|z) = \prod_d e^{-e / T} / Z(T)` is a density for each temperature T > 0,
and

.. math::  a \sum_d e + k\, \mathrm{KL} = a T \Big[ -\log p_T(x|z) + \frac{k}{a T} \mathrm{KL} - D \log Z(T) \Big]:

a T times the negative ELBO of beta = k / (a T), less a constant. Every T has the same gradients in the networks. T =
1 / a reads the loss as it stands, T = k / a as an ELBO, beta = 1. If e is the negative logarithm of a probability
already, as cross-entropies are, T is 1, and one reading is all there is.
"""

from pyro_vae.losses.explanation import Explanation
from pyro_vae.losses.reading import explain

__all__ = ["Explanation", "explain"]
