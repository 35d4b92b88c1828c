"""Figures of programs, of their training and of their evaluation, and a page of a run with all of them.

Each function returns a figure of matplotlib, to be saved with ``savefig``; none opens a window or changes a setting.
"""

from pyro_vae.plots.diagnostics import calibration, predictive, snr, units, verdicts, weights
from pyro_vae.plots.page import report
from pyro_vae.plots.pictures import images, reconstructed, reconstructions, samples
from pyro_vae.plots.spaces import interpolations, latents, manifold
from pyro_vae.plots.tabular import correlations, marginals
from pyro_vae.plots.training import curves, rate_distortion

__all__ = [
    "calibration",
    "correlations",
    "curves",
    "images",
    "interpolations",
    "latents",
    "manifold",
    "marginals",
    "predictive",
    "rate_distortion",
    "reconstructed",
    "reconstructions",
    "report",
    "samples",
    "snr",
    "units",
    "verdicts",
    "weights",
]
