"""Bodies: networks that turn inputs into features, and build the head that fits them.

A body knows nothing of distributions. A likelihood or a conditional (see :mod:`pyro_vae.family`) names the shapes of
the parameters it needs, and ``body.head(shapes)`` answers with a layer that makes them from the body's features: a
linear layer for a vector, a 1x1 convolution where features and parameters share their height and width. That is why a
family can be replaced without touching the network.
"""

from pyro_vae.nets.body import Body
from pyro_vae.nets.convolutional import ConvDecoder, ConvEncoder
from pyro_vae.nets.heads import ConvHead, Head, LinearHead
from pyro_vae.nets.mlp import MLP
from pyro_vae.nets.residual import ResidualDecoder, ResidualEncoder, ResidualMaps
from pyro_vae.nets.shapes import Shape, as_size, broadcasts
from pyro_vae.nets.transforms import InputTransform, Standardize, StandardizeLog

__all__ = [
    "MLP",
    "Body",
    "ConvDecoder",
    "ConvEncoder",
    "ConvHead",
    "Head",
    "InputTransform",
    "LinearHead",
    "ResidualDecoder",
    "ResidualEncoder",
    "ResidualMaps",
    "Shape",
    "Standardize",
    "StandardizeLog",
    "as_size",
    "broadcasts",
]
