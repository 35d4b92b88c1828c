"""Figures of tables: bars and points against shares and correlations counted by other means."""

from __future__ import annotations

from typing import Any

import legible
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_vae import VAE, conditionals, data, likelihoods, nets, plots, priors
from pyro_vae.data import Dataset

N = 300


@pytest.fixture(scope="module")
def table() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    height = 170 + 10 * torch.randn(N, generator=generator)
    frame = pd.DataFrame(
        {
            "height": height,
            "income": (height / 50 + torch.randn(N, generator=generator)).exp(),
            "children": torch.poisson(torch.full((N,), 1.5), generator=generator).long().numpy(),
            "town": pd.Categorical.from_codes((torch.arange(N) % 3).numpy(), ["Ely", "Rye", "Ware"]),
            "smokes": (torch.arange(N) % 4 == 0).numpy(),
        }
    )
    frame.loc[:29, "height"] = None
    return data.as_dataset(frame, "people", kinds={"height": "real"})


@pytest.fixture(scope="module")
def vae(table: Dataset) -> VAE:
    torch.manual_seed(0)
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Tabular.for_data(table, nets.MLP(2, [8])),
        conditionals.DiagonalNormal(nets.MLP.for_data(table, [8]), 2),
    )


def shares(axes: Any, place: int) -> list[float]:
    return [bar.get_height() for bar in axes.containers[place]]


def test_marginals_are_the_shares_of_the_data_and_of_draws(vae: VAE, table: Dataset) -> None:
    figure = plots.marginals(vae, table)
    axes = {each.get_title(): each for each in figure.axes}
    assert list(axes) == ["height", "income", "children", "town", "smokes"]
    assert shares(axes["town"], 0) == pytest.approx([1 / 3] * 3)
    assert [label.get_text() for label in axes["town"].get_xticklabels()] == ["Ely", "Rye", "Ware"]
    assert shares(axes["smokes"], 0) == pytest.approx([0.75, 0.25])
    assert sum(shares(axes["town"], 1)) == pytest.approx(1)
    for name in ("height", "income"):
        for stairs in axes[name].patches:
            assert sum(stairs.get_data().values) == pytest.approx(1)  # type: ignore[attr-defined]
    edges = axes["height"].patches[0].get_data().edges  # type: ignore[attr-defined]
    x = table.tensor()[:, 0]
    assert edges[0] <= x[~x.isnan()].min()
    assert edges[-1] >= x[~x.isnan()].max()
    assert axes["income"].get_xscale() == "log"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data", "draws of the model"]
    assert legible.faults(figure) == []


def test_marginals_of_draws_are_those_of_the_prior_and_the_likelihood() -> None:
    """Of a likelihood that no latent changes: shares of draws are its probabilities."""
    likelihood = likelihoods.Bernoulli(nets.MLP(1, []), 2)
    layer: Any = likelihood.head.layer
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0.0, 2.0]))
    vae = VAE(priors.StandardNormal(1), likelihood, conditionals.DiagonalNormal(nets.MLP(2, []), 1))
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).repeat(500, 1)
    figure = plots.marginals(vae, x)
    assert [each.get_title() for each in figure.axes] == ["x[0]", "x[1]"]
    for axes, p in zip(figure.axes, (0.5, torch.tensor(2.0).sigmoid().item()), strict=True):
        error = (p * (1 - p) / 5000) ** 0.5  # of five draws for each datum
        assert shares(axes, 1)[-1] == pytest.approx(p, abs=5 * error)
    assert shares(figure.axes[0], 0) == [0.5, 0.5]


def test_marginals_of_many_columns_say_which_are_shown(vae: VAE, table: Dataset) -> None:
    figure = plots.marginals(vae, table, max_columns=2)
    assert len(figure.axes) == 2
    assert figure.legends[0].get_title().get_text() == "the first 2 of 5 columns"


def test_correlations_are_spearmans_of_the_rows_that_have_both(vae: VAE, table: Dataset) -> None:
    figure = plots.correlations(vae, table)
    x = table.tensor()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["height", "income", "children", "smokes"]  # towns have no order
    drawn = torch.as_tensor(figure.axes[0].images[0].get_array())
    both = ~x[:, 0].isnan()
    assert drawn[0, 1].item() == pytest.approx(stats.spearmanr(x[both, 0], x[both, 1]).statistic)
    assert drawn[1, 2].item() == pytest.approx(stats.spearmanr(x[:, 1], x[:, 2]).statistic)
    points = figure.axes[2].lines[1]
    model = torch.as_tensor(figure.axes[1].images[0].get_array())
    above = torch.ones(4, 4).triu(1).bool()
    assert torch.allclose(torch.as_tensor(points.get_xdata()), drawn[above])
    assert torch.allclose(torch.as_tensor(points.get_ydata()), model[above])
    assert legible.faults(figure) == []


def test_tables_read_a_frame_by_the_codes_of_the_program(vae: VAE, table: Dataset) -> None:
    frame = table.table.frame(table.tensor()).iloc[::-1]  # type: ignore[union-attr]
    figure = plots.marginals(vae, frame)
    assert shares(figure.axes[3], 0) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("function", [plots.marginals, plots.correlations])
def test_tables_refuse_what_means_nothing(function: Any, vae: VAE, table: Dataset) -> None:
    with pytest.raises(ValueError, match="expected at least 10 data; got 5"):
        function(vae, table.take(5))
    images = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [5]), (1, 2, 2)),
        conditionals.DiagonalNormal(nets.MLP((1, 2, 2), [5]), 2),
    )
    with pytest.raises(ValueError, match=r"expected a table \(N, D\); got data of shape \(20, 1, 2, 2\)"):
        function(images, torch.zeros(20, 1, 2, 2))


def test_marginals_of_a_column_without_values_are_refused(vae: VAE, table: Dataset) -> None:
    with pytest.raises(ValueError, match="expected values in column 'height'; got none among 20 rows"):
        plots.marginals(vae, table.take(20))


def test_correlations_of_one_column_are_refused() -> None:
    vae = VAE(
        priors.StandardNormal(1),
        likelihoods.Normal(nets.MLP(1, []), 2),
        conditionals.DiagonalNormal(nets.MLP(2, []), 1),
    )
    x: Tensor = torch.stack([torch.arange(20.0), torch.ones(20)], 1)
    with pytest.raises(ValueError, match="expected at least 2 columns with an order and several values; got 1"):
        plots.correlations(vae, x)
