"""How long a run is: its budget of steps, and when it ends before that."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pyro_vae import checks


@dataclass(frozen=True)
class Budget:
    """How long a run is.

    Attributes:
        batch_size: data per step.
        drop_last: leave out the last, smaller batch of an epoch.
        steps_per_epoch: of a whole one.
        num_steps: of the run.
    """

    batch_size: int
    drop_last: bool
    steps_per_epoch: int
    num_steps: int

    @classmethod
    def of(cls, n: int, batch_size: int, drop_last: bool, epochs: int | None, steps: int | None) -> Budget:
        """The budget of a run on n data, in epochs or in steps; of 20 epochs where neither is given."""
        checks.whole("fit", "batch_size", batch_size)
        checks.flag("fit", "drop_last", drop_last)
        if epochs is not None and steps is not None:
            raise ValueError(f"fit: expected either epochs or steps; got {epochs} and {steps}. Give one of them.")
        if n == 0:
            raise ValueError("fit: expected at least 1 datum to train on; got 0. Give data.")
        per_epoch = n // batch_size if drop_last else math.ceil(n / batch_size)
        if per_epoch == 0:
            raise ValueError(
                f"fit: expected at least batch_size={batch_size} data with drop_last=True; got {n}. Use a smaller one."
            )
        if steps is not None:
            return cls(batch_size, drop_last, per_epoch, checks.whole("fit", "steps", steps))
        return cls(
            batch_size,
            drop_last,
            per_epoch,
            checks.whole("fit", "epochs", 20 if epochs is None else epochs) * per_epoch,
        )

    @property
    def num_epochs(self) -> int:
        """Of the run, the last of which may be a part of one."""
        return math.ceil(self.num_steps / self.steps_per_epoch)


@dataclass
class EarlyStopping:
    """Ends a run some epochs after its best one, whose weights it keeps.

    Attributes:
        patience: how many epochs.
        epoch: the best one so far; 0 before there is one.
        elbo: its validation ELBO.
        state: a copy of its parameters and buffers.
    """

    patience: int
    epoch: int = 0
    elbo: float = -math.inf
    state: list[Tensor] = field(default_factory=list)

    def see(self, epoch: int, elbo: float, tensors: list[Tensor]) -> None:
        """Takes note of an epoch."""
        if elbo > self.elbo:
            self.epoch, self.elbo, self.state = epoch, elbo, [tensor.clone() for tensor in tensors]

    def ends(self, epoch: int) -> bool:
        """Whether the run is over after this epoch."""
        return epoch - self.epoch >= self.patience
