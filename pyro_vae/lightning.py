"""A program and an estimator as a ``LightningModule``, for Lightning's ``Trainer`` and what hangs on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyro.infer
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae import checks
from pyro_vae.elbo import ELBO, Estimator
from pyro_vae.models import Program
from pyro_vae.svi import SVI, OptimizerFactory
from pyro_vae.svi.losses import leaves_value_out
from pyro_vae.svi.parameters import Declared
from pyro_vae.traces.modules import roots_of
from pyro_vae.traces.threads import running_programs
from pyro_vae.training.figures import seeded
from pyro_vae.training.loop import ADAM

try:
    from lightning import LightningModule
except ImportError as error:
    raise ImportError(
        f"pyro_vae.lightning: expected lightning to be installed; got {error}. Use pip install 'pyro-vae[lightning]'."
    ) from error


class SVIModule(LightningModule):
    """Trains a program by an estimator, as :class:`~pyro_vae.SVI` does: the same losses and gradients of a batch.

    A batch of the loader is the data x, or (x, \\*context), the arguments of model and guide; :meth:`arguments` may be
    overridden for others. Logged are, in nats per datum, ``train_loss``, what is minimized, and of validation data
    ``val_elbo``, ``val_expected_log_likelihood`` and ``val_kl``, at beta = 1 whatever the loss; also ``train_elbo``,
    where the loss is -ELBO. Validation draws random numbers of its own, the same in each epoch.

    Parameters are those of modules: of functions with ``pyro.param`` take :func:`~pyro_vae.fit`. A lazy guide, such as
    those of ``pyro.infer.autoguide``, is to be run once before: ``guide(x)``.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``, modules or functions of modules.
        loss: an estimator with a ``differentiable_loss``: any of :mod:`pyro_vae.elbo`, ``Trace_ELBO``,
            ``TraceEnum_ELBO`` or ``TraceMeanField_ELBO`` of Pyro; ``elbo.ELBO()`` when left out.
        optimizer: parameters -> ``torch.optim.Optimizer``.
        scheduler: optimizer -> learning-rate schedule, stepped after each epoch.

    Raises:
        TypeError: no program, no estimator, or one that is no single loss to differentiate, such as Pyro's
            ``ReweightedWakeSleep`` and ``TraceGraph_ELBO``; an optimizer that is built already, or Pyro's.
        ValueError: when training, parameters that the optimizer does not have.

    Example:
        >>> from lightning import Trainer
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     priors.StandardNormal(2),
        ...     likelihoods.Bernoulli(nets.MLP(2, [8]), 5),
        ...     conditionals.DiagonalNormal(nets.MLP(5, [8]), 2),
        ... )
        >>> loader = torch.utils.data.DataLoader(torch.ones(20, 5), batch_size=10)
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
        >>> trainer.fit(SVIModule(vae), loader)
        >>> sorted(trainer.callback_metrics)
        ['train_elbo', 'train_loss']
    """

    def __init__(
        self,
        program: Program,
        loss: pyro.infer.ELBO | None = None,
        *,
        optimizer: OptimizerFactory = ADAM,
        scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        loss = ELBO() if loss is None else loss
        _check(program, loss, optimizer)
        self.program = program  # registered where it is a module
        self.loss = loss
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        parts: list[Any] = [program.model, program.guide]
        learned = loss.gradient.modules() if isinstance(loss, Estimator) else []
        known = set(program.modules()) if isinstance(program, nn.Module) else set()
        self.others = nn.ModuleList([*(root for root in roots_of(parts) if root not in known), *learned])
        self._svi = SVI(program.model, program.guide, optimizer, loss, compile=False)

    def arguments(self, batch: Any) -> tuple[Any, ...]:
        """The arguments of model and guide, x the first of them, for a batch of the loader."""
        return tuple(batch) if isinstance(batch, list | tuple) else (batch,)

    def forward(self, *args: Any) -> Tensor:
        """The loss of a batch, summed over its data, in nats; its gradient is the estimator's."""
        with self._scope():
            with Declared() as declared:
                loss: Any = self.loss
                value: Tensor = loss.differentiable_loss(self.program.model, self.program.guide, *args)
            self._svi.parameters.adopt(declared.names)
        self._check_parameters()
        return value

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch, to be differentiated."""
        args = self.arguments(batch)
        if batch_idx == 0:
            self._calibrate(args)
        value = self(*args)
        n = len(args[0])
        told = {"train_loss": value.detach() / n}
        if _is_elbo(self.loss):
            told["train_elbo"] = -told["train_loss"]
        self.log_dict(told, on_step=False, on_epoch=True, batch_size=n)
        return value

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the ELBO of a batch and its two terms."""
        args = self.arguments(batch)
        n = len(args[0])
        with self._scope(), seeded(batch_idx, args[0].device):
            terms = ELBO(plate=getattr(self.loss, "plate", "data")).terms(self.program.model, self.program.guide, *args)
        told = {"elbo": terms.elbo, "expected_log_likelihood": terms.expected_log_likelihood, "kl": terms.kl}
        self.log_dict({f"val_{name}": value.mean() for name, value in told.items()}, batch_size=n)

    def configure_optimizers(self) -> Any:
        """The optimizer of all parameters that require a gradient, and its schedule."""
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        """Context manager in which the programs find their parameters."""
        self._svi.parameters.refresh()
        with running_programs(), self._svi.scope():
            yield

    def _calibrate(self, args: tuple[Any, ...]) -> None:
        """Sets in closed form what no gradient learns, of the first batch of an epoch."""
        program: Any = self.program
        if not getattr(program, "calibrated", False):
            return
        modes = {module: module.training for module in program.modules()}
        with seeded(0, args[0].device):
            program.eval().calibrate(*args)
        for module, mode in modes.items():
            module.training = mode

    def _check_parameters(self) -> None:
        """Raises for parameters that no step would move."""
        own = {id(parameter) for parameter in self.parameters()}
        held = {id(p) for group in self._groups() for p in group["params"]}
        others = [
            name
            for name, parameter in self._svi.named_parameters().items()
            if id(parameter) not in own or (held and parameter.requires_grad and id(parameter) not in held)
        ]
        if others:
            raise ValueError(
                f"SVIModule: expected parameters of modules that are there before training; got {others[0]!r}, which "
                "no step would move. Run a lazy guide once before, guide(x); of functions with pyro.param use fit."
            )

    def _groups(self) -> list[dict[str, Any]]:
        try:
            trainer = self.trainer
        except RuntimeError:  # of a module that none has
            return []
        return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def _is_elbo(loss: Any) -> bool:
    """Whether a loss is -ELBO and nothing else."""
    plain = {ELBO, pyro.infer.Trace_ELBO, pyro.infer.TraceEnum_ELBO, pyro.infer.TraceMeanField_ELBO}
    return type(loss) in plain and getattr(loss, "beta", 1.0) == 1 and not getattr(loss, "free_bits", 0.0)


def _check(program: Any, loss: Any, optimizer: Any) -> None:
    checks.instance("SVIModule", "program", program, Program, "Give a VAE, or an object with model and guide.")
    checks.instance("SVIModule", "loss", loss, pyro.infer.ELBO, "Give elbo.ELBO(), for example.")
    if not hasattr(loss, "differentiable_loss") or leaves_value_out(loss):
        raise TypeError(
            f"SVIModule: expected an estimator with one loss to differentiate; got {type(loss).__name__}. Use one of "
            "pyro_vae.elbo, or fit, which takes it."
        )
    if isinstance(optimizer, pyro.optim.PyroOptim):
        raise TypeError(
            f"SVIModule: expected a function that makes a torch.optim optimizer; got {type(optimizer).__name__}, "
            "of Pyro. Use functools.partial(torch.optim.Adam, lr=1e-3), for example."
        )
