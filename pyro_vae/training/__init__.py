"""Training a program on a data set: epochs, schedules, early stopping, and a record of what happened."""

from pyro_vae.training.history import History, Row
from pyro_vae.training.loop import fit

__all__ = ["History", "Row", "fit"]
