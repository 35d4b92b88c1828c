"""Anomalies by -log p(x): malignant tumors, found by a VAE that has seen benign ones alone.

    python examples/anomalies_breast_cancer.py

Of scikit-learn's 357 benign cases a part trains the VAE, a part sets the threshold, and a part tells the false-alarm
rate; the 212 malignant cases are seen by none of these. The threshold is an order statistic of the second part, so that
a further benign case is above it with at most the stated probability, whatever the model is worth. Scores of malignant
cases come with a warning: the guide, which knows benign ones alone, proposes badly for them, and they are too high.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_breast_cancer

from pyro_vae import VAE, conditionals, elbo, evaluation, fit, likelihoods, nets, priors


def vae_of(x: torch.Tensor) -> VAE:
    """A VAE of rows of positive measurements, of which it is given the logarithms."""
    columns, latent, standardize = x.shape[1], 3, nets.Standardize.of(x)
    normal = likelihoods.Normal(nets.MLP(latent, [32]), columns, scale="per_element", min_scale=0.3)
    return VAE(
        priors.StandardNormal(latent),
        likelihoods.Standardized(normal, standardize),
        conditionals.FullRankNormal(nets.MLP(columns, [64], transform=standardize), latent),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--false-alarm-rate", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=300, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    cancer = load_breast_cancer()
    x = torch.tensor(cancer.data, dtype=torch.float32).add(1e-3).log()  # some concavities are 0
    benign, malignant = x[torch.tensor(cancer.target == 1)], x[torch.tensor(cancer.target == 0)]
    torch.manual_seed(arguments.seed)
    train, validation, held_out, test = benign[torch.randperm(len(benign))].split([130, 28, 99, 100])

    vae = vae_of(train)
    how = {"epochs": arguments.epochs, "patience": 30, "batch_size": 32, "seed": arguments.seed, "progress": False}
    fit(vae, train, validation=validation, loss=elbo.IWELBO(num_particles=20), **how)
    normal, further, anomalous = (
        evaluation.score(vae, data, num_particles=1000, progress=False) for data in (held_out, test, malignant)
    )
    threshold = normal.threshold(arguments.false_alarm_rate)

    print(f"Threshold:       {threshold}")
    print(f"False alarms:    {threshold.rate(further)}")
    print(f"Detected:        {threshold.rate(anomalous)}")
    print(f"Area under ROC:  {evaluation.auc(further, anomalous)}")
    for kind, scores in (("benign", further), ("malignant", anomalous)):
        print(f"Too high, as k-hat tells: {len(scores.unreliable)} of {len(scores.value)} {kind} scores.")

    case = int(anomalous.value.argsort()[len(malignant) // 2])
    excess = anomalous.excess(normal)[case]
    latent = anomalous.latent_share[case] - normal.latent_share.mean()
    print(f"\nMalignant case {case}: {anomalous.value[case]:.1f} nats, benign ones have {normal.value.mean():.1f}.")
    for i in excess.argsort(descending=True)[:5]:
        print(f"  {cancer.feature_names[i]:25}{excess[i]:+7.1f} nats")
    print(f"  {'the other elements':25}{excess.sort(descending=True).values[5:].sum():+7.1f}")
    print(f"  {'the latents':25}{latent:+7.1f}")


if __name__ == "__main__":
    main()
