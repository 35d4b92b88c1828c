"""A VAE among scikit-learn's estimators: a classifier of digits on the latents of a VAE, and on those of PCA.

    python examples/sklearn_pipeline.py

A pipeline maps pixels, whole numbers from 0 to 16, to a few latents, and classifies these by logistic regression. A
grid search chooses how long the VAE is trained, and what pixels are to it, reals or 16 trials each, by the accuracy of
the whole pipeline, as it would the parameters of any step. PCA gets as many components. The interval is that of the
difference, by the test digits that one of the two gets right alone.
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from pyro_vae import likelihoods
from pyro_vae.sklearn import VAETransformer


def on_latents(transformer: object) -> Pipeline:
    """A classifier of rows by what a transformer makes of them."""
    classifier = LogisticRegression(max_iter=1000)
    return Pipeline([("latents", transformer), ("scale", StandardScaler()), ("classify", classifier)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--epochs", type=int, nargs="+", default=[20, 60], help="to choose from")
    parser.add_argument("--jobs", type=int, help="processes of the search")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    pixels, digits = load_digits(return_X_y=True)
    train, test, train_digits, test_digits = train_test_split(
        pixels, digits, test_size=500, random_state=arguments.seed, stratify=digits
    )
    counts = partial(likelihoods.Binomial, total_count=16, spacing=1.0)
    print("Accuracy on 500 test digits, of a logistic regression on so many latents:")
    print(f"{'latents':>8}{'PCA':>8}{'VAE':>8}   {'difference':<22}{'chosen by the search'}")
    for latent_dim in arguments.latents:
        vae = VAETransformer(latent_dim, hidden=(128,), learning_rate=3e-3, random_state=arguments.seed)
        grid = {"latents__epochs": arguments.epochs, "latents__likelihood": ["Normal", counts]}
        search = GridSearchCV(on_latents(vae), grid, cv=2, n_jobs=arguments.jobs).fit(train, train_digits)
        pca = on_latents(PCA(latent_dim, random_state=arguments.seed)).fit(train, train_digits)
        right = [model.predict(test) == test_digits for model in (pca, search)]
        difference = right[1].astype(float) - right[0]
        error = 1.96 * difference.std() / math.sqrt(len(test))
        best = search.best_estimator_["latents"]
        chosen = f"{'Normal' if best.likelihood == 'Normal' else 'Binomial'}, {best.epochs} epochs"
        print(
            f"{latent_dim:8}{np.mean(right[0]):8.3f}{np.mean(right[1]):8.3f}   "
            f"{f'{difference.mean():+.3f} ± {error:.3f}':<22}{chosen}",
            flush=True,
        )
    halves = np.where(np.arange(64) % 8 < 4, test, 0)
    scores = [best.score(x) for x in (test, halves)]
    print(f"\nlog p(x) by the last VAE: {scores[0]:.1f} nats for test digits, {scores[1]:.1f} for their left halves.")


if __name__ == "__main__":
    main()
