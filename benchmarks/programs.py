"""The programs of ``step_time.py``: their data, their parts in pyro_vae, and the same networks and densities by hand.

``mlp``: 784 Bernoulli pixels, tanh networks, a standard Normal prior. ``vamp``: the same with a VampPrior of 500
pseudo-inputs. ``conv``: convolutions of stride 2 with 32 and 64 channels, to 20 latents and back. ``counts``: 2,000
genes of a cell, negative binomial with a library size and a dispersion for each gene, 2000-128-10, which is scVI's.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae import VAE, conditionals, data, likelihoods, nets, priors

PIXELS, IMAGE, GENES = 784, (1, 28, 28), 2_000
PSEUDO_INPUTS = 500
CHANNELS = [32, 64]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers = [[nn.Tanh(), nn.Linear(fan_in, fan_out)] for fan_in, fan_out in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*layers))[1:]


class Program(nn.Module):
    """``mlp`` by hand; the others change a part of it.

    Args:
        hidden: widths of the hidden layers, of the decoder in this order too.
        latent: dimensions of z.
        dataset: what is trained on.

    Attributes:
        network: hidden widths and latent dimensions, where the program has its own.
    """

    network: tuple[list[int], int] | None = None

    def __init__(self, hidden: list[int], latent: int, dataset: data.Dataset) -> None:
        super().__init__()
        size = dataset.event_shape.numel()
        self.latent = latent
        self.encoder = mlp(size, *hidden, 2 * latent)
        self.decoder = mlp(latent, *hidden, size)

    @staticmethod
    def dataset(mnist: bool) -> data.Dataset:
        """MNIST's pixels, or random ones."""
        if mnist:
            grays = data.load("mnist").train.images.flatten(1)
        else:
            grays = torch.randint(256, (60_000, PIXELS), dtype=torch.uint8)
        return data.Dataset("pixels", grays, levels=255, binarization="dynamic")

    @staticmethod
    def vae(hidden: list[int], latent: int, dataset: data.Dataset) -> VAE:
        """The program in pyro_vae."""
        return VAE(
            prior=priors.StandardNormal(latent),
            likelihood=likelihoods.Bernoulli(nets.MLP(latent, hidden), PIXELS),
            posterior=conditionals.DiagonalNormal(nets.MLP(PIXELS, hidden), latent),
        )

    def gather(self, index: Tensor, *held: Tensor) -> tuple[Tensor, ...]:
        """A batch, of all data: x, and what the likelihood takes beside z."""
        gray = held[0][index].float() / 255
        return ((torch.rand_like(gray) < gray).float(),)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return loc, log_scale.exp()

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.flatten(0, -2)).unflatten(0, z.shape[:-1])

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) but for the term in log 2 pi, which log q(z|x) has too."""
        return -0.5 * z.square().sum(-1)

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """log p(x|z)."""
        logits = self.decode(z)
        cross_entropy = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        return -cross_entropy.flatten(z.dim() - 1).sum(-1)

    def prior(self, x: Tensor) -> Any:
        """p(z) as a distribution of Pyro."""
        return dist.Normal(x.new_zeros(len(x), self.latent), x.new_ones(len(x), self.latent)).to_event(1)

    def likelihood(self, z: Tensor) -> Any:
        """p(x|z) as a distribution of Pyro."""
        logits = self.decode(z)
        return dist.Bernoulli(logits=logits).to_event(logits.dim() - z.dim() + 1)


class Vamp(Program):
    """A mixture of the posteriors of 500 pseudo-inputs as the prior."""

    def __init__(self, hidden: list[int], latent: int, dataset: data.Dataset) -> None:
        super().__init__(hidden, latent, dataset)
        self.pseudo_inputs = nn.Parameter(dataset.images[:PSEUDO_INPUTS].float() / 255)

    @staticmethod
    def vae(hidden: list[int], latent: int, dataset: data.Dataset) -> VAE:
        return VAE(
            prior=priors.VampPrior(dataset.images[:PSEUDO_INPUTS]),
            likelihood=likelihoods.Bernoulli(nets.MLP(latent, hidden), PIXELS),
            posterior=conditionals.DiagonalNormal(nets.MLP(PIXELS, hidden), latent),
        )

    def log_prior(self, z: Tensor) -> Tensor:
        loc, scale = self.encode(self.pseudo_inputs.clamp(0, 1))
        exponent = -0.5 * ((z.unsqueeze(-2) - loc) / scale).square().sum(-1)
        return (exponent - scale.log().sum(-1)).logsumexp(-1) - math.log(PSEUDO_INPUTS)

    def prior(self, x: Tensor) -> Any:
        loc, scale = self.encode(self.pseudo_inputs.clamp(0, 1))
        weights = dist.Categorical(logits=loc.new_zeros(PSEUDO_INPUTS))
        return dist.MixtureSameFamily(weights, dist.Normal(loc, scale).to_event(1)).expand([len(x)])


class Conv(Program):
    """Convolutions from an image of 28 x 28 pixels and back."""

    network = ([], 20)

    def __init__(self, hidden: list[int], latent: int, dataset: data.Dataset) -> None:
        super().__init__(hidden, latent, dataset)
        (few, many), size = CHANNELS, (CHANNELS[1], 7, 7)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, few, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(few, many, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(math.prod(size), 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, math.prod(size)),
            nn.Unflatten(-1, size),
            nn.ReLU(),
            nn.ConvTranspose2d(many, few, 3, 2, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(few, few, 3, 2, 1, 1),
            nn.ReLU(),
            nn.Conv2d(few, 1, 1),
        )

    @staticmethod
    def dataset(mnist: bool) -> data.Dataset:
        flat = Program.dataset(mnist)
        return data.Dataset("images", flat.images.unflatten(1, IMAGE), levels=255, binarization="dynamic")

    @staticmethod
    def vae(hidden: list[int], latent: int, dataset: data.Dataset) -> VAE:
        return VAE(
            prior=priors.StandardNormal(latent),
            likelihood=likelihoods.Bernoulli(nets.ConvDecoder(latent, IMAGE, CHANNELS[::-1]), IMAGE),
            posterior=conditionals.DiagonalNormal(nets.ConvEncoder(IMAGE, CHANNELS), latent),
        )


class Counts(Program):
    """Counts of genes, negative binomial, with the mean as a share of the cell's total."""

    network = ([128], 10)

    def __init__(self, hidden: list[int], latent: int, dataset: data.Dataset) -> None:
        super().__init__(hidden, latent, dataset)
        self.log_dispersion = nn.Parameter(torch.zeros(GENES))
        self.decoder.register_parameter("log_dispersion", self.log_dispersion)  # what Pyro's model registers

    @staticmethod
    def dataset(mnist: bool) -> data.Dataset:
        mean = 5_000 * torch.randn(4_000, GENES).softmax(-1)
        counts = torch.poisson(torch.distributions.Gamma(2.0, 2.0 / mean).sample())
        return data.Dataset("cells", counts, context=(counts.sum(-1),))

    @staticmethod
    def vae(hidden: list[int], latent: int, dataset: data.Dataset) -> VAE:
        return VAE(
            prior=priors.StandardNormal(latent),
            likelihood=likelihoods.NegativeBinomial(nets.MLP(latent, hidden), GENES, library_size=True),
            posterior=conditionals.DiagonalNormal(nets.MLP(GENES, hidden, transform="log1p"), latent),
        )

    def gather(self, index: Tensor, *held: Tensor) -> tuple[Tensor, ...]:
        counts, total = held
        return counts[index], total[index]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(x.log1p())

    def log_likelihood(self, z: Tensor, x: Tensor, total: Tensor) -> Tensor:  # type: ignore[override]
        """As scvi-tools has it, ``scvi.distributions._negative_binomial.log_nb_positive``, in single precision."""
        mu = total.unsqueeze(-1) * self.decode(z).softmax(-1)
        theta, eps = self.log_dispersion.exp(), 1e-8
        log_sum = (theta + mu + eps).log()
        terms = theta * ((theta + eps).log() - log_sum) + x * ((mu + eps).log() - log_sum)
        return (terms + (x + theta).lgamma() - theta.lgamma() - (x + 1).lgamma()).sum(-1)

    def likelihood(self, z: Tensor, total: Tensor) -> Any:  # type: ignore[override]
        log_mean = total.log().unsqueeze(-1) + self.decode(z).log_softmax(-1)
        counts = dist.NegativeBinomial(self.log_dispersion.exp(), logits=log_mean - self.log_dispersion)
        return counts.to_event(1)


PROGRAMS: dict[str, type[Program]] = {"mlp": Program, "vamp": Vamp, "conv": Conv, "counts": Counts}
