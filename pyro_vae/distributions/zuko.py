"""zuko's flows, imported without what importing zuko does to the process.

``import zuko`` switches the validation of arguments off for every torch and Pyro distribution. This module is the only
one to import it, and leaves validation as it was.
"""

from torch.distributions import Distribution

_validate_args = Distribution._validate_args

from zuko import flows, transforms  # noqa: E402

Distribution.set_default_validate_args(_validate_args)

__all__ = ["flows", "transforms"]
