"""One-hot vectors whose draws can be compiled."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.types import _size

from pyro_vae import internals


class OneHotCategorical(dist.OneHotCategorical):
    """Pyro's, drawn without ``torch.nn.functional.one_hot``, which reads its input and so cannot be recorded.

    Args:
        probs: probabilities, (\\*batch_shape, d); or
        logits: their logarithms up to a constant.

    Example:
        >>> OneHotCategorical(logits=torch.tensor([0.0, 50.0])).sample()
        tensor([0., 1.])
    """

    def sample(self, sample_shape: _size = ()) -> Tensor:
        category = internals.category_of(self).sample(torch.Size(sample_shape))
        categories = torch.arange(self.event_shape[0], device=category.device)
        return (category.unsqueeze(-1) == categories).to(self.probs.dtype)
