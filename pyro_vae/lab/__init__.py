"""A laboratory for estimators and models: bounds, errors of gradients, cost, training, and verdicts between them.

:func:`compare` measures gradients at fixed weights; :func:`race` trains; :func:`rank` says which trained program is
better, by how much, or that it cannot be told.
"""

from pyro_vae.lab.comparison import Comparison
from pyro_vae.lab.measurement import compare
from pyro_vae.lab.racing import Race, race
from pyro_vae.lab.ranking import Ranking, rank
from pyro_vae.lab.rows import RacePoint, Row
from pyro_vae.lab.verdicts import Verdict

__all__ = ["Comparison", "Race", "RacePoint", "Ranking", "Row", "Verdict", "compare", "race", "rank"]
