"""Programs with relaxed latents: no bound on log P(x) of bits above 0, at any temperature."""

from functools import partial

import pytest
import torch

from pyro_vae import VAE, conditionals, data, evaluation, fit, likelihoods, nets, priors

KINDS: dict[str, nets.Shape] = {"RelaxedOneHotCategorical": (3, 10), "RelaxedBernoulli": 20}
SHAPE = (1, 8, 8)


def relaxed_vae(kind: str, temperature: float) -> VAE:
    latent = KINDS[kind]
    return VAE(
        getattr(priors, kind)(latent, temperature=temperature),
        likelihoods.Bernoulli(nets.MLP(latent, [32]), SHAPE),
        getattr(conditionals, kind)(nets.MLP(SHAPE, [32]), latent, temperature=temperature),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_for_decoder_gives_a_network_the_relaxed_vector_itself(kind: str) -> None:
    vae = relaxed_vae(kind, 0.5)
    z = vae.encode(torch.zeros(3, *SHAPE)).sample()
    relaxed = z.sigmoid() if kind == "RelaxedBernoulli" else z.exp()
    torch.testing.assert_close(vae.decode(z).mean, vae.likelihood(relaxed).mean)


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.01, 1e-3, None])
@pytest.mark.parametrize("kind", KINDS)
def test_ELBO_of_relaxed_latents_is_not_above_zero(kind: str, temperature: float | None, compile: bool) -> None:
    # Densities of clamped draws gave validation ELBOs of up to +7687; those of the digits' best models are near -23.
    torch.manual_seed(0)
    train, validation, _ = data.load("digits", binarize="dynamic")
    vae = relaxed_vae(kind, 1.0 if temperature is None else temperature)

    def anneal(row: dict[str, float]) -> None:
        if temperature is None:
            for part in (vae.prior, vae.posterior):
                part.get_buffer("temperature").fill_(10 ** (-3 * row["epoch"] / 10))

    history = fit(
        vae,
        train,
        validation,
        epochs=10,
        optimizer=partial(torch.optim.Adam, lr=5e-3),
        compile=compile,
        progress=False,
        on_epoch=anneal,
    )
    x = next(validation.batches(100))[0]
    nll = -evaluation.log_marginal_likelihood(vae, x, num_particles=200, progress=False).value
    assert max(history["train_elbo"] + history["validation_elbo"]) < -20
    assert nll.mean() > 20
