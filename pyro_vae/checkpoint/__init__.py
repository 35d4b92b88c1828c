"""What is kept on disk: files of weights, programs as folders, runs of training.

:func:`save` and :func:`load` here write and read one file with the weights of a module. ``pyro_vae.save`` and
``pyro_vae.load`` keep a whole program in a folder; ``fit(..., folder=...)`` a run that can go on.
"""

from pyro_vae.checkpoint.files import load, save
from pyro_vae.recorded import Recorded

__all__ = ["Recorded", "load", "save"]
