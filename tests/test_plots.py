"""Figures: what is drawn, that it can be read, and that drawing it leaves no trace."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import legible
import members
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor, nn

from pyro_vae import VAE, conditionals, data, likelihoods, nets, plots, priors
from pyro_vae.plots.spaces import great_circle
from pyro_vae.training import History


def grid_of(figure: Figure, place: int = 0) -> Tensor:
    """The picture of an axes, with the white borders of its images."""
    return torch.as_tensor(np.asarray(figure.axes[place].images[0].get_array()))


def cells(grid: Tensor, height: int, width: int) -> Tensor:
    """The images of a grid, by row and column, without borders."""
    rows, columns = grid.shape[0] // (height + 2), grid.shape[1] // (width + 2)
    split = grid.reshape(rows, height + 2, columns, width + 2, *grid.shape[2:]).transpose(1, 2)
    return split[:, :, 1:-1, 1:-1]


def looking(shape: tuple[int, ...], prior: Any, *, scale: float = 1e-4) -> Any:
    """A program whose latent is x itself: the guide puts z at x, and the model x at z."""
    size = math.prod(shape)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(x).to_event(1))
            pyro.sample("x", dist.Normal(z.reshape(len(x), *shape), 1.0).to_event(len(shape)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.reshape(len(x), size), scale).to_event(1))

    return SimpleNamespace(model=model, guide=guide)


def vae_of(shape: tuple[int, ...] = (1, 4, 4), latent: int = 2, hidden: int = 8, dropout: bool = False) -> VAE:
    encoder: Any = nets.MLP(shape, [hidden])
    if dropout:
        encoder.layers.append(nn.Dropout(0.5))
    return VAE(
        priors.StandardNormal(latent),
        likelihoods.Bernoulli(nets.MLP(latent, [hidden]), shape),
        conditionals.DiagonalNormal(encoder, latent),
    )


BITS = (torch.arange(40 * 16) % 7 < 3).float().reshape(40, 1, 4, 4)


def test_images_are_laid_out_in_rows_with_a_white_border() -> None:
    x = torch.zeros(5, 1, 4, 3)
    x[4] = 0.5
    (axes,) = plots.images(x, columns=2).axes
    grid = torch.as_tensor(axes.images[0].get_array())
    assert grid.shape == (3 * 6, 2 * 5)
    assert torch.all(grid[13:17, 1:4] == 0.5)  # the fifth image: third row, first column
    assert torch.all(grid[0] == 1)
    assert torch.all(grid[12:, 5:] == 1)  # no sixth image


def test_images_of_colors_and_values_outside_the_unit_interval() -> None:
    (axes,) = plots.images(torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 3, 1, 1)).axes
    assert torch.as_tensor(axes.images[0].get_array())[1, 1].tolist() == [0.0, 0.5, 1.0]


def test_reconstructions_stand_below_their_originals() -> None:
    x = torch.zeros(3, 1, 2, 2)
    (axes,) = plots.reconstructions(x, x + 0.5, columns=2).axes
    grid = torch.as_tensor(axes.images[0].get_array())
    assert grid.shape == (4 * 4, 2 * 4)
    assert grid[[1, 5, 9, 13], 1].tolist() == [0.0, 0.5, 0.0, 0.5]
    assert grid[13, 5] == 1  # the last pair of rows has one image


def test_images_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"plots.images: expected images \(N, 1 or 3, height, width\); got \(4, 9\)"):
        plots.images(torch.zeros(4, 9))


def constant_vae(logit: float) -> VAE:
    """A VAE whose pixels are ones with a probability that no latent changes."""
    vae = vae_of()
    layer: Any = vae.likelihood.head.layer
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(logit)
    return vae


def test_reconstructed_shows_means_draws_and_nats_of_one_latent() -> None:
    """Against the closed form of a likelihood that no latent changes: -log p(x|z) = 16 log(1 + e^l) - l sum(x)."""
    figure = plots.reconstructed(constant_vae(1.5), BITS, num_images=10)
    assert len(figure.axes) == 2  # eight in a row
    nats = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
    assert nats == [f"{16 * math.log1p(math.exp(1.5)) - 1.5 * x.sum().item():.1f}" for x in BITS[:10]]
    shown = cells(grid_of(figure), 4, 4)
    assert shown.shape[:2] == (3, 8)
    assert torch.equal(shown[0], BITS[:8, 0])
    assert torch.allclose(shown[1], torch.tensor(1.5).sigmoid())
    assert shown[2].unique().tolist() == [0, 1]  # draws are bits
    assert shown[2].mean().item() == pytest.approx(0.818, abs=5 * (0.818 * 0.182 / 128) ** 0.5)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["x", "E[x|z]", "draw"]
    assert torch.all(cells(grid_of(figure, 1), 4, 4)[:, 2:] == 1)  # two images, and white
    assert legible.faults(figure) == []


def test_reconstructed_of_levels_says_what_is_white_and_of_categories_has_draws_alone() -> None:
    shape = (1, 2, 2)
    parts = priors.StandardNormal(2), conditionals.DiagonalNormal(nets.MLP(shape, [5]), 2)
    x = torch.tensor([[0.0, 1, 2, 3]]).reshape(1, *shape)
    vae = VAE(parts[0], likelihoods.Categorical(4, nets.MLP(2, [5]), shape), parts[1])
    figure = plots.reconstructed(vae, x)
    assert cells(grid_of(figure), 2, 2)[0, 0].flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    suptitle: Any = figure.get_suptitle()
    assert suptitle == "black is 0, white is 3 in the unit of the data"
    assert legible.faults(figure) == []


def test_pictures_leave_modes_and_generators_as_they_were_and_repeat_by_their_seed() -> None:
    torch.manual_seed(0)
    vae = vae_of(dropout=True).train()
    vae.likelihood.eval()
    modes = [module.training for module in vae.modules()]
    state = torch.get_rng_state()
    first = grid_of(plots.reconstructed(vae, BITS, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(grid_of(plots.reconstructed(vae, BITS, seed=3)), first)
    assert not torch.equal(grid_of(plots.reconstructed(vae, BITS, seed=4)), first)
    assert [module.training for module in vae.modules()] == modes
    assert True in modes
    assert False in modes


@pytest.mark.parametrize("function", [plots.reconstructed, plots.samples, plots.interpolations, plots.manifold])
def test_pictures_refuse_data_of_another_shape_by_name(function: Any) -> None:
    with pytest.raises(ValueError, match=r"expected data of shape \(N, 1, 4, 4\); got \(\d+, 1, 5, 5\)"):
        function(vae_of(), torch.zeros(3, 1, 5, 5))
    with pytest.raises(ValueError, match="expected binary values, 0 or 1; got values in"):
        function(vae_of(), torch.full((3, 1, 4, 4), 0.5))
    flat = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [5]), 4),
        conditionals.DiagonalNormal(nets.MLP(4, [5]), 2),
    )
    with pytest.raises(ValueError, match=r"expected images .* got \(\d+, 4\). Use plots.marginals"):
        function(flat, torch.zeros(30, 4))


def test_pictures_take_datasets_that_are_made_binary_at_each_batch() -> None:
    grays = data.Dataset("grays", torch.full((12, 1, 4, 4), 128, dtype=torch.uint8), levels=255, binarization="dynamic")
    shown = cells(grid_of(plots.reconstructed(vae_of(), grays)), 4, 4)
    assert shown[0].unique().tolist() == [0, 1]


def test_pictures_of_double_precision_and_arrays() -> None:
    array = BITS[:4].numpy().astype(np.float64)
    shown = cells(grid_of(plots.reconstructed(vae_of().double(), array)), 4, 4)
    assert torch.equal(shown[0], BITS[:4, 0])


def test_samples_of_prior_and_aggregate_posterior() -> None:
    """A program whose latents are near 3/4 under the guide and at 1/4 under the prior."""
    program = looking((1, 2, 2), lambda x: dist.Normal(torch.full((len(x), 4), 0.25), 1e-4))
    x = torch.full((30, 1, 2, 2), 0.75)
    figure = plots.samples(program, x, num_images=10)
    shown = [cells(grid_of(figure, place), 2, 2) for place in range(3)]
    assert [part.shape[:2] for part in shown] == [(2, 8)] * 3
    for part, value in zip(shown, (0.75, 0.75, 0.25), strict=True):
        assert part.flatten(0, 1)[:10].flatten().tolist() == pytest.approx([value] * 40, abs=1e-2)
        assert torch.all(part[1, 2:] == 1)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "data: 10 by lot",
        "E[x|z] at draws of the aggregate posterior",
        "E[x|z] at draws of the prior",
    ]
    assert "x ~ p(x|z)" in plots.samples(program, x, mean=False).axes[2].get_title(loc="left")
    assert legible.faults(figure) == []


@pytest.mark.parametrize("name", members.PROGRAMS)
def test_pictures_of_every_program(name: str) -> None:
    torch.manual_seed(0)
    program, args = members.PROGRAMS[name]()
    for figure in (plots.reconstructed(program, *args), plots.samples(program, *args)):
        assert legible.faults(figure) == []
    assert legible.faults(plots.latents(program, *args)) == []


# Latents


def test_great_circle_turns_and_keeps_the_lengths_between() -> None:
    first, second = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    angles = math.pi / 6
    found = great_circle(first, second, 1 / 3)
    assert found[0].tolist() == pytest.approx([8 / 3 * math.cos(angles), 8 / 3 * math.sin(angles)])
    assert found[1].tolist() == pytest.approx([1.0, 1.0])  # from a point to itself
    with pytest.raises(ValueError, match="expected latents that are neither 0 nor opposite"):
        great_circle(first, -first, 0.5)


def test_interpolations_of_a_high_dimensional_Normal_go_along_great_circles_about_its_mean() -> None:
    program = looking((1, 2, 4), lambda x: dist.Normal(torch.full((len(x), 8), 0.5), 2.0), scale=1e-6)
    x = torch.rand(2, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    figure = plots.interpolations(program, x, num_pairs=1, num_steps=3)
    (row,) = cells(grid_of(figure), 2, 4)
    assert len(row) == 5
    first, middle, last = (image.flatten() - 0.5 for image in row[1:4])
    assert torch.allclose(row[0], row[1], atol=1e-4)
    assert torch.allclose(row[3], row[4], atol=1e-4)
    assert middle.norm().item() == pytest.approx((first.norm() + last.norm()).item() / 2, abs=1e-4)
    assert torch.allclose(
        middle / middle.norm(), nn.functional.normalize(first / first.norm() + last / last.norm(), dim=0), atol=1e-3
    )
    assert "great circles: draws of 8 Normal latents have lengths about √8 = 2.8" in figure.axes[0].get_title()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["x", "0", "0.5", "1", "x′"]
    assert legible.faults(figure) == []


def test_interpolations_of_few_latents_go_along_lines() -> None:
    program = looking((1, 2, 2), lambda x: dist.Normal(torch.zeros(len(x), 4), 1.0), scale=1e-6)
    figure = plots.interpolations(program, torch.rand(2, 1, 2, 2), num_pairs=1, num_steps=5)
    (row,) = cells(grid_of(figure), 2, 2)
    assert torch.allclose(row[2], torch.lerp(row[0], row[6], 0.25), atol=1e-4)
    assert figure.axes[0].get_title() == "along lines"


@pytest.mark.parametrize(
    ("prior", "posterior", "words"),
    [
        pytest.param(
            priors.HypersphericalUniform(4),
            conditionals.VonMisesFisher,
            "along great circles of the prior's sphere",
            marks=pytest.mark.slow,
        ),
        (priors.Dirichlet(4), conditionals.Dirichlet, "along lines between proportions"),
        (priors.RelaxedBernoulli(4, temperature=0.5), conditionals.RelaxedBernoulli, "along lines"),
        (priors.MixtureOfNormals(8, num_components=2), conditionals.DiagonalNormal, "along lines"),
    ],
)
def test_interpolations_go_as_the_prior_asks(prior: Any, posterior: Any, words: str) -> None:
    torch.manual_seed(0)
    shape, (latent,) = (1, 4, 4), prior.event_shape
    options = {"temperature": 0.5} if posterior is conditionals.RelaxedBernoulli else {}
    vae = VAE(
        prior, likelihoods.Bernoulli(nets.MLP(latent, [8]), shape), posterior(nets.MLP(shape, [8]), latent, **options)
    )
    figure = plots.interpolations(vae, BITS, num_pairs=2)
    assert figure.axes[0].get_title() == words
    shown = cells(grid_of(figure), 4, 4)
    assert shown.shape[:2] == (2, 9)
    assert bool(((shown[:, 1:-1] > 0) & (shown[:, 1:-1] < 1)).all())  # probabilities, none of NaN
    assert legible.faults(figure) == []


def test_interpolations_of_discrete_latents_are_refused() -> None:
    vae = VAE(
        priors.Bernoulli(3),
        likelihoods.Bernoulli(nets.MLP(3, [8]), (1, 4, 4)),
        conditionals.Bernoulli(nets.MLP((1, 4, 4), [8]), 3),
    )
    with pytest.raises(ValueError, match=r"expected continuous latents; got those of site 'z'.* Use plots.samples"):
        plots.interpolations(vae, BITS)


def test_manifold_has_the_quantiles_of_the_prior() -> None:
    program = looking(
        (1, 1, 2), lambda x: dist.Normal(torch.tensor([0.0, 1.0]).expand(len(x), 2), torch.tensor([1.0, 0.5]))
    )
    x = torch.tensor([[-2.0, 2.0]]).reshape(1, 1, 1, 2)  # so that grays stand for -2 to 2
    figure = plots.manifold(program, x, num_steps=3)
    shown = cells(grid_of(figure), 1, 2)[:, :, 0] * 4 - 2  # (rows, columns, element of z)
    q = 0.9674216  # the quantile of 5/6
    assert shown[0, :, 0].tolist() == pytest.approx([-q, 0, q], abs=1e-5)
    assert shown[:, 2, 1].tolist() == pytest.approx([1 + q / 2, 1, 1 - q / 2], abs=1e-5)  # rising upwards
    labels = [
        [label.get_text() for label in axis]
        for axis in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels())
    ]
    assert labels == [["-0.97", "0", "0.97"], ["1.5", "1", "0.52"]]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("z[0]", "z[1]")
    assert legible.faults(figure) == []


def test_manifold_of_a_prior_without_quantiles_in_closed_form() -> None:
    """A mixture of two points, whose lower quantiles are the one and whose upper ones the other."""
    mixture = priors.MixtureOfNormals(2, loc=torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    with torch.no_grad():
        mixture.log_scale.fill_(-10)
    vae = VAE(
        mixture,
        likelihoods.Bernoulli(nets.MLP(2, [8]), (1, 4, 4)),
        conditionals.DiagonalNormal(nets.MLP((1, 4, 4), [8]), 2),
    )
    labels = plots.manifold(vae, BITS, num_steps=4).axes[0].get_xticklabels()
    assert [float(label.get_text()) for label in labels] == pytest.approx([-1, -1, 1, 1], abs=0.05)


def test_manifold_of_other_latents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one latent of 2 real elements; got \{'z': 3\} elements"):
        plots.manifold(vae_of(latent=3), BITS)


def test_latents_of_two_elements_are_shown_as_they_are_by_label() -> None:
    torch.manual_seed(0)
    vae, labels = vae_of(), torch.arange(40) % 3
    figure = plots.latents(vae, BITS, labels=labels)
    drawn = [torch.as_tensor(np.asarray(each.get_offsets())) for each in figure.axes[0].collections]
    means = vae.encode(BITS).mean.detach().double()
    for place, points in enumerate(drawn):
        expected = means[labels == place]
        assert len(points) == len(expected)
        assert torch.allclose(points.sort(0).values, expected.sort(0).values, atol=1e-6)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1", "2"]
    assert figure.axes[0].get_xlabel() == "E_q[z[0]|x]"
    assert legible.faults(figure) == []


def test_latents_of_more_elements_are_their_principal_components() -> None:
    torch.manual_seed(0)
    vae = vae_of(latent=5)
    words = np.array(["dog", "cat"])[np.arange(40) % 2]
    figure = plots.latents(vae, BITS, labels=words, max_data=1000)
    drawn = torch.cat([torch.as_tensor(np.asarray(each.get_offsets())) for each in figure.axes[0].collections])
    means = vae.encode(BITS).mean.detach().double().numpy()
    found = PCA(2, svd_solver="full").fit(means)
    assert torch.allclose(
        drawn.abs().sort(0).values, torch.as_tensor(found.transform(means)).abs().sort(0).values, atol=1e-5
    )
    assert f"({found.explained_variance_ratio_[0]:.0%} of the variance)" in figure.axes[0].get_xlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "dog"]


def test_latents_with_numbers_as_labels_show_what_has_none() -> None:
    labels = torch.linspace(0, 1, 40)
    labels[:4] = torch.nan
    figure = plots.latents(vae_of(), BITS, labels=labels)
    assert [np.shape(each.get_offsets())[0] for each in figure.axes[0].collections] == [36, 4]
    assert figure.axes[1].get_ylabel() == "label"
    assert legible.faults(figure) == []


def test_latents_are_refused_where_a_picture_would_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"expected labels of shape \(40,\), numbers or words; got int64 of shape \(3,\)"
    ):
        plots.latents(vae_of(), BITS, labels=[1, 2, 3])
    with pytest.raises(ValueError, match="expected at least 5 data; got 4"):
        plots.latents(vae_of(), BITS[:4])
    with pytest.raises(ValueError, match="expected latents that differ from datum to datum; got the same 'z' for all"):
        plots.latents(vae_of(), BITS[:1].expand(8, 1, 4, 4))
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"expected umap-learn .* pip install 'pyro-vae\[plots\]'"):
        plots.latents(vae_of(latent=3), BITS, method="umap")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_latents_by_neighbors_repeat_by_their_seed(method: Any) -> None:
    if method == "umap":
        pytest.importorskip("umap")
    vae = vae_of(latent=4)
    state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    figures = [plots.latents(vae, BITS, method=method) for _ in range(2)]
    points = [np.asarray(figure.axes[0].collections[0].get_offsets()) for figure in figures]
    assert points[0].shape == (40, 2)
    np.testing.assert_allclose(points[0], points[1])
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]  # noqa: NPY002
    assert legible.faults(figures[0]) == []


# Training


def rows(epochs: int, **columns: float) -> list[dict[str, float]]:
    return [
        {
            "epoch": float(e),
            **columns,
            "train_elbo": -9.0 / e,
            "train_expected_log_likelihood": -8.0 / e,
            "train_kl": 1.0 / e,
        }
        for e in range(1, epochs + 1)
    ]


def test_curves_draws_every_term_that_a_history_has() -> None:
    figure = plots.curves(History(epochs=rows(2)))
    assert [axes.get_title() for axes in figure.axes] == ["-ELBO", "-E_q[log p(x|z)]", "KL"]
    drawn = [torch.as_tensor(axes.lines[0].get_ydata()).tolist() for axes in figure.axes]
    assert drawn == [[9.0, 4.5], [8.0, 4.0], [1.0, 0.5]]
    assert {axes.get_ylabel() for axes in figure.axes} == {"nats per datum"}
    assert legible.faults(figure) == []


def test_curves_draws_an_annealed_objective_beside_the_true_elbo() -> None:
    epochs = rows(3)
    for row in epochs:
        row |= {"beta": row["epoch"] / 3, "loss": 7.0 - row["epoch"], "validation_elbo": -10.0}
    figure = plots.curves(History({"loss": "ELBO"}, epochs, best_epoch=2))
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines[:3]}  # type: ignore[arg-type]
    assert lines == {"train": [9.0, 4.5, 3.0], "validation": [10.0] * 3, "objective, train": [6.0, 5.0, 4.0]}
    assert figure.axes[3].get_title() == "beta"
    assert list(figure.axes[3].lines[0].get_ydata()) == pytest.approx([1 / 3, 2 / 3, 1])  # type: ignore[arg-type]
    assert list(figure.axes[0].lines[3].get_xdata()) == [2, 2]  # type: ignore[arg-type]
    assert legible.faults(figure) == []


@pytest.mark.parametrize(("loss", "drawn"), [("ELBO", 1), ("IWELBO", 2)])
def test_curves_draws_the_objective_where_it_is_another_bound(loss: str, drawn: int) -> None:
    figure = plots.curves(History({"loss": loss}, rows(2, beta=1.0, loss=5.0)))
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines) == drawn


def test_curves_of_no_epoch_are_refused() -> None:
    for function in (plots.curves, plots.rate_distortion):
        with pytest.raises(ValueError, match="expected a history of at least one epoch"):
            function(History())


def test_rate_distortion_of_a_history_is_its_path() -> None:
    figure = plots.rate_distortion(History(epochs=rows(3)))
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == pytest.approx([1, 1 / 2, 1 / 3])  # type: ignore[arg-type]
    assert list(line.get_ydata()) == pytest.approx([8, 4, 8 / 3])  # type: ignore[arg-type]
    sums = {float(text.get_text()): sum(text.xy) for text in figure.axes[0].texts}  # type: ignore[attr-defined]
    assert list(sums) == pytest.approx(list(sums.values()), rel=1e-3)  # the number at each line is its -ELBO
    assert legible.faults(figure) == []
