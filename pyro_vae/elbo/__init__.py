"""Estimators of bounds on log p(x), as ``pyro.infer.ELBO`` subclasses for any Pyro model and guide.

A bound and a gradient are separate choices: ``IWELBO(num_particles=5, gradient="dreg")``.
"""

from pyro_vae.elbo.by_site import BySite, Enumerate
from pyro_vae.elbo.covariance import Covariance
from pyro_vae.elbo.elbo import ELBO
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.gradients import STL, DReG, Gradient, Pathwise
from pyro_vae.elbo.importance import CIWELBO, IWELBO, MIWELBO, PIWELBO
from pyro_vae.elbo.jackknife import JackknifeELBO
from pyro_vae.elbo.renyi import RenyiELBO, VRMax
from pyro_vae.elbo.score import OVIS, VIMCO, Score
from pyro_vae.elbo.thermodynamic import ThermodynamicELBO
from pyro_vae.elbo.wake_sleep import ReweightedWakeSleep
from pyro_vae.traces.densities import log_weights
from pyro_vae.traces.terms import Terms

__all__ = [
    "CIWELBO",
    "ELBO",
    "IWELBO",
    "MIWELBO",
    "OVIS",
    "PIWELBO",
    "STL",
    "VIMCO",
    "BySite",
    "Covariance",
    "DReG",
    "Enumerate",
    "Estimator",
    "Gradient",
    "JackknifeELBO",
    "Pathwise",
    "RenyiELBO",
    "ReweightedWakeSleep",
    "Score",
    "Terms",
    "ThermodynamicELBO",
    "VRMax",
    "log_weights",
]
