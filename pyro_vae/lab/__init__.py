"""A laboratory for estimators: what they bound, how their gradients err, what they cost, and how they train.

:func:`compare` measures gradients at fixed weights; :func:`race` trains.
"""

from pyro_vae.lab.comparison import Comparison
from pyro_vae.lab.measurement import compare
from pyro_vae.lab.racing import Race, race
from pyro_vae.lab.rows import RacePoint, Row

__all__ = ["Comparison", "Race", "RacePoint", "Row", "compare", "race"]
