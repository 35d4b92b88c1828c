r"""Variational autoencoders as scikit-learn knows its estimators: a transformer, and a density that tells outliers.

:class:`VAETransformer` encodes rows as means of q(z|x), as PCA does by its components; :class:`VAEDensity` calls rows
of low density outliers, as IsolationForest does by its depths. Both fit a :class:`~pyro_vae.VAE` of two perceptrons by
maximizing the ELBO, and keep it as ``vae_``, in double precision, for all else that this package does with one.

A score is the log marginal likelihood of a row, in nats and in the units of the data, estimated by importance sampling
with K draws of the guide (``num_particles``):

.. math:: \log p(x) \approx \log \frac1K \sum_k \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x).

It is low by as much as K draws leave, which is little for rows like those of the training data and more for others;
:func:`~pyro_vae.evaluation.log_marginal_likelihood` of ``vae_`` tells the standard error. The noise is the same for
every row and call, so that the score of a row is a number of its own, whatever rows it comes with.

Reals are standardized inside; a NaN is a missing value where the training data have some. Imported when it is used:
``pyro_vae.sklearn``.

Shapes: N data, D features, L latent dimensions.

References:
    Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, https://arxiv.org/abs/1312.6114; Burda, Grosse,
    Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519
"""

from pyro_vae.sklearn.estimators import VAEDensity, VAETransformer

__all__ = ["VAEDensity", "VAETransformer"]
