r"""The ELBO in bytes: data compressed without loss by a trained program, by bits-back coding.

An entropy coder writes a symbol of probability P in :math:`-\log_2 P` bits. A program has no P(x), but it has
p(z), p(x|z) and a guide q(z|x), and these are enough: z is *decoded* with q(z|x) from the bits that are there already,
then x is encoded with p(x|z) and z with p(z). The receiver decodes z and x, and encodes z with q(z|x), which gives the
bits back. A datum thus costs

.. math:: -\log_2 p(x|z) - \log_2 p(z) + \log_2 q(z|x), \qquad
    \text{on average over } z \sim q(z|x) \quad -\mathrm{ELBO}(x) / \log 2:

the reconstruction term is the length of x given z, and the KL is the price of z. The file is as long as the evaluation
of the same program says, and nobody need take the evaluation's word for it.

**Latents are put on a grid**, z = k 2^e, an e for each dim, with q's mass of each cell. The widths fit the guide's
scales (a cell is at most half of the 1% quantile of the scale), as a grid that fits the prior would be too coarse for a
sharp posterior and too fine for an idle dim; and a grid that is fixed beforehand is the one kind that also serves the
inner layers of a hierarchy, whose prior p(z1|z2) is not known yet when z1 is drawn. Its width drops out of the length,
since finer cells cost p and refund q alike.

**Layers.** With a bottom-up guide x is encoded as soon as there is z1, z1 as soon as there is z2: Bit-Swap, whose
bits to begin with are those of one layer. A top-down guide draws all layers first.

**What the length differs from -ELBO by.** The grid, which adds cell^2 / 12 to the variance of z: less than .001 nats a
dim for a guide whose scales are at their optimum; the coder's 24 bits, as every symbol has a mass of 2^-24: draws of z
fall anywhere in a window that often, and an element, of x or z, costs 24 bits at most where -ELBO of an overconfident
likelihood or inner prior counts more, which makes the file *shorter*; counts without a bound, whose masses are shared
out among 0 to the largest count of the data, which makes it shorter by what the likelihood wastes on larger ones;
header and bits to begin with, some 90 bytes, which are most of the file of a few data. Bits that q draws
from are "dirty" where they are another datum's z whose posteriors do not add up to the prior: 1.5% of a bad guide's
file. So they are scrambled by bits that both sides know, and draws are exact.

**Exactness.** Both sides must compute the same numbers to the last bit, so a copy of the program in double precision
runs on one thread of the CPU, in batches that both sides know, and its networks' outputs are rounded to 2^-16, so that
last bits seldom matter. The file holds a digest of the program and one of the data; what was decoded wrongly, on a
machine of other arithmetic, is an error. :func:`compress` decodes what it has written before it returns.

References:
    Townsend, Bird, Barber, "Practical lossless compression with latent variables using bits back coding", 2019,
    https://arxiv.org/abs/1901.04866
    Kingma, Abbeel, Ho, "Bit-Swap: Recursive bits-back coding for lossless compression with hierarchical latent
    variables", 2019, https://arxiv.org/abs/1905.06845
    Bamler, "Understanding entropy coding with asymmetric numeral systems (ANS): a statistician's perspective", 2022,
    https://arxiv.org/abs/2201.01741
"""

from pyro_vae.coding.coder import compress, decompress
from pyro_vae.coding.lengths import CodeLength, code_length

__all__ = ["CodeLength", "code_length", "compress", "decompress"]
