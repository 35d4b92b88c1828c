"""The version of this package; imports nothing, so that every module may record it."""

__version__ = "0.2.0"
