"""Figures: what is drawn, not how it looks."""

from __future__ import annotations

import pytest
import torch

from pyro_vae import plots
from pyro_vae.training import History


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


def test_curves_draws_every_term_that_a_history_has() -> None:
    rows = [
        {"epoch": float(e), "train_elbo": -9.0 / e, "train_expected_log_likelihood": -8.0 / e, "train_kl": 1.0 / e}
        for e in (1, 2)
    ]
    figure = plots.curves(History(epochs=rows))
    assert [axes.get_title() for axes in figure.axes] == ["-ELBO", "-E_q[log p(x|z)]", "KL"]
    drawn = [torch.as_tensor(axes.lines[0].get_ydata()).tolist() for axes in figure.axes]
    assert drawn == [[9.0, 4.5], [8.0, 4.0], [1.0, 0.5]]
