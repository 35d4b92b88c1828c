"""Figures of diagnostics: their bars and points are the numbers of the results that they show."""

from __future__ import annotations

from typing import Any

import legible
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import VAE, conditionals, likelihoods, nets, plots, priors
from pyro_vae.evaluation import (
    Calibration,
    Estimate,
    LogMarginalLikelihood,
    PredictiveChecks,
    RateDistortion,
    RateDistortionCurve,
)

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


def heights(figure: Figure, place: int = 0) -> list[float]:
    return [bar.get_height() for bar in figure.axes[place].patches]  # type: ignore[attr-defined]


def linear_vae(weights: Tensor) -> VAE:
    """A VAE with q(z|x) = Normal(weights x, 1/2) for each of its units."""
    size = len(weights)
    posterior = conditionals.DiagonalNormal(nets.MLP(4, []), size)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.zero_()
        posterior.head.layer.weight[:size] = weights
    vae = VAE(priors.StandardNormal(size), likelihoods.Normal(nets.MLP(size, []), 4), posterior)
    scale = vae.encode(X).base_dist.scale
    assert bool((scale == scale[0, 0]).all())
    return vae


def test_units_are_the_closed_form_with_the_active_ones_marked() -> None:
    vae = linear_vae(torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0.5, 0, 0]]))
    figure = plots.units(vae, X)
    scale = vae.encode(X).base_dist.scale[0, 0].item()
    means = vae.encode(X).mean.detach()
    constant = 0.5 * (scale**2 - 1) - torch.tensor(scale).log().item()
    expected = (0.5 * means.square().mean(0) + constant).sort(descending=True).values
    active, inactive = figure.axes[0].containers
    assert [bar.get_height() for bar in (*active, *inactive)] == pytest.approx(expected.tolist(), rel=1e-4)
    assert [inactive.get_label(), active.get_label()] == [
        "inactive, ≤ 0.01: 1",
        "active, Var_x(E_q[z|x]) > 0.01: 2",
    ]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][-1] == "z[0]"
    assert figure.axes[0].get_ylabel() == "KL, nats per datum"
    assert legible.faults(figure) == []


def test_units_without_a_kl_of_their_own_show_the_variance_of_their_means() -> None:
    torch.manual_seed(0)
    vae = VAE(
        priors.HypersphericalUniform(3),
        likelihoods.Normal(nets.MLP(3, [5]), 4),
        conditionals.VonMisesFisher(nets.MLP(4, [5]), 3),
    )
    figure = plots.units(vae, X)
    expected = vae.encode(X).mean.detach().var(0, correction=0).sort(descending=True).values
    assert heights(figure) == pytest.approx(expected.tolist(), rel=1e-4)
    assert figure.axes[0].get_ylabel().startswith("Var_x(E_q[z|x])")
    assert legible.faults(figure) == []


def test_units_of_discrete_latents_have_their_kl() -> None:
    torch.manual_seed(0)
    vae = VAE(
        priors.Bernoulli(3),
        likelihoods.Normal(nets.MLP(3, [5]), 4),
        conditionals.Bernoulli(nets.MLP(4, [5]), 3),
    )
    p = vae.encode(X).mean.detach()
    kl = (p * (2 * p).log() + (1 - p) * (2 - 2 * p).log()).mean(0)
    assert sorted(heights(plots.units(vae, X, threshold=1e-6))) == pytest.approx(sorted(kl.tolist()), rel=1e-4)


def of_weights(pareto_k: Tensor) -> LogMarginalLikelihood:
    ones = torch.ones_like(pareto_k)
    return LogMarginalLikelihood(-ones, ones, 10 * ones, pareto_k, 100)


def test_weights_have_every_datum_in_a_bar_and_what_is_unreliable_hatched() -> None:
    k = torch.tensor([-0.3, 0.1, 0.69, 0.71, 0.9, 2.0, float("inf"), float("-inf")])
    figure = plots.weights(of_weights(k))
    bars: list[Any] = list(figure.axes[0].patches)
    assert sum(bar.get_height() for bar in bars if bar.get_hatch()) == 3
    assert sum(bar.get_height() for bar in bars if not bar.get_hatch()) == 3
    assert min(bar.get_x() for bar in bars if bar.get_hatch()) == pytest.approx(0.7)
    assert figure.axes[0].get_title() == "50% of 8 above 0.7\n1 of equal weights\n1 infinite"
    assert sum(heights(figure, 1)) == 8
    (tallest,) = (bar for bar in figure.axes[1].patches if bar.get_height())  # type: ignore[attr-defined]
    assert tallest.get_x() <= 0.1 <= tallest.get_x() + tallest.get_width() * 1.001  # type: ignore[attr-defined]
    assert legible.faults(figure) == []


def test_weights_of_too_few_draws_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected a k-hat of some datum; got none, of 100 draws each. Use num_particles"
    ):
        plots.weights(of_weights(torch.full((3,), torch.nan)))


def test_calibration_has_the_shares_of_each_unit_and_of_all() -> None:
    ranks = torch.stack([torch.arange(200) % 100, torch.full((200,), 99)], 1)
    share = Estimate(0.5, 0.01, "of latents", 200, 99)
    figure = plots.calibration(Calibration({"z": ranks}, {"z": torch.tensor([1.0, 1e-30])}, share, share, 99))
    assert heights(figure) == pytest.approx([0.025] * 19 + [0.525])
    dots = figure.axes[0].lines[1]
    assert list(dots.get_ydata()) == pytest.approx([0.05] * 20 + [0.0] * 19 + [1.0])  # type: ignore[arg-type]
    edges = [np.ravel(line.get_ydata())[0] for line in figure.axes[0].lines[2:]]
    assert edges == pytest.approx([0.05 - 0.0397, 0.05 + 0.0397], abs=1e-4)  # 2.576 sqrt(.05 .95 / 200)
    assert "below 1e-16" in figure.axes[0].get_title()
    assert legible.faults(figure) == []


def test_predictive_has_the_histogram_of_the_checks() -> None:
    share = Estimate(0.5, 0.01, "of elements", 200, 99)
    found = PredictiveChecks(share, share, share, None, torch.arange(20) / 190, {})
    figure = plots.predictive(found)
    assert heights(figure) == pytest.approx(found.histogram.tolist())
    assert legible.faults(figure) == []


def point(rate: float, distortion: float) -> RateDistortion:
    values = [Estimate(value, 0.5, "nats", 10, 1) for value in (rate, distortion, -rate - distortion)]
    return RateDistortion(values[0], values[1], values[2], {}, True)


def test_rate_distortion_over_beta_has_a_point_and_a_name_for_each() -> None:
    figure = plots.rate_distortion(RateDistortionCurve({0.5: point(4.0, 10.0), 2.0: point(1.0, 15.0)}))
    (container,) = figure.axes[0].containers
    line: Any = container[0]
    assert [list(line.get_xdata()), list(line.get_ydata())] == [[4.0, 1.0], [10.0, 15.0]]
    assert [text.get_text() for text in figure.axes[0].texts[:2]] == ["β=0.5", "β=2"]
    ends = container[2][0].get_segments()
    assert [end[:, 0].tolist() for end in ends] == [[3.0, 5.0], [0.0, 2.0]]  # two standard errors
    assert legible.faults(figure) == []
