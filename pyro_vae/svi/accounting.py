"""What a step is to train, and what its gradients reach: nothing is left out without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro.infer
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_vae.distributed import is_sharded
from pyro_vae.internals import BatchNorm
from pyro_vae.svi.optimizers import listed
from pyro_vae.svi.parameters import Parameters
from pyro_vae.traces.dry_run import dry_run
from pyro_vae.traces.modules import modules_of
from pyro_vae.traces.tracing import PyroProgram

# Their weights are of all data of a batch together, and of no datum.
_OF_THE_BATCH = (
    pyro.infer.RenyiELBO,
    pyro.infer.ReweightedWakeSleep,
    pyro.infer.Trace_MMD,
    pyro.infer.TraceTailAdaptive_ELBO,
)

Others = dict[str, tuple[nn.Parameter, Tensor | None]]
"""Parameters of modules that are not registered, by name, and the gradients that they had."""


def set_aside(parameters: Parameters) -> Others:
    """Takes the gradients of what modules hold and is not registered yet, to see which a step gives one."""
    registered = {id(parameter) for parameter in parameters.named.values()}
    others = {
        name: (p, p.grad)
        for name, p in parameters.module_parameters().items()
        if id(p) not in registered and p.requires_grad
    }
    for parameter, _ in others.values():
        parameter.grad = None
    return others


def account(
    parameters: Parameters,
    others: Others,
    leaves: set[Tensor],
) -> None:
    """Raises for a step in which something takes part that it would not move.

    Args:
        parameters: of the programs, after the step's gradients.
        others: what was not registered before the step; gets back its gradients.
        leaves: tensors that the step differentiates by.
    """
    registered = {id(parameter) for parameter in parameters.named.values()}
    lost = [name for name, (p, _) in others.items() if p.grad is not None and id(p) not in registered]
    for parameter, gradient in others.values():
        if id(parameter) not in registered:
            parameter.grad = gradient
    if not registered:  # then Pyro's own estimators compute no gradient
        lost = list(others)
    known = registered | {id(parameter) for parameter, _ in others.values()}
    lost += [f"a tensor of shape {tuple(leaf.shape)}" for leaf in leaves if id(leaf) not in known]
    if lost:
        raise ValueError(
            f"SVI: expected every trainable tensor that takes part in the loss to be registered with Pyro; got "
            f"{len(lost)} that no step would move: {listed(lost)}. Make model and guide PyroModules, call "
            "pyro.module(name, module) in them, pyro.param(name, tensor) for a tensor, or freeze these with "
            "requires_grad_(False)."
        )
    present = {*parameters.module_parameters().values(), *parameters.named.values()}
    if present and not any(parameter.requires_grad for parameter in present):
        raise ValueError(
            f"SVI: expected something to train; got {len(present)} parameters, all of them frozen. Unfreeze some with "
            "requires_grad_(True), or use evaluate_loss."
        )
    if registered and all(parameter.grad is None for parameter in parameters.named.values()):
        raise ValueError(
            f"SVI: expected a loss with a gradient; got one that depends on none of the {len(registered)} "
            "parameters. Unfreeze them, or use evaluate_loss."
        )


def check_shards(parameters: Sequence[Tensor], ranks: int, compile: bool | str) -> bool:
    """Whether some parameters are sharded.

    Args:
        parameters: of the programs.
        ranks: number of processes that take the steps.
        compile: whether these are to be compiled.

    Raises:
        ValueError: they are so over other processes than those, or steps are to be compiled.
    """
    meshes: list[int] = [getattr(p, "device_mesh").size() for p in parameters if is_sharded(p)]  # noqa: B009
    if any(mesh != ranks for mesh in meshes):
        raise ValueError(
            f"SVI: expected sharded parameters on a mesh of the processes that take the steps, {ranks}; got them on "
            f"one of {max(meshes)}. Pass ranks=pyro_vae.distributed.ranks(), and shard over all of them."
        )
    if meshes and compile is True:
        raise ValueError(
            "SVI: expected whole parameters for compile=True; got some that fully_shard has split. Use compile=False."
        )
    return bool(meshes)


def check_sum(subject: str, by: str, loss: Any, programs: Sequence[Any], otherwise: str) -> None:
    """Raises for what is seen to have a gradient over a batch that is not the sum of those over its parts.

    Args:
        subject: who asks, for messages.
        by: what makes the parts, for messages.
        loss: of the step.
        programs: model, guide and others with networks.
        otherwise: the remedy of the last resort.

    Raises:
        ValueError: a loss that is no sum over the data, or batch normalization.
    """
    if not isinstance(loss, pyro.infer.ELBO) or isinstance(loss, _OF_THE_BATCH):
        raise ValueError(
            f"{subject}: expected a bound that is a sum over the data for {by}; got {type(loss).__name__}. Use a bound "
            f"of pyro_vae.elbo. Otherwise: {otherwise}"
        )
    if any(isinstance(module, BatchNorm) for module in modules_of(programs)):
        raise ValueError(
            f"{subject}: expected networks that see one datum at a time for {by}; got batch normalization. Use "
            f"nn.LayerNorm or nn.GroupNorm. Otherwise: {otherwise}"
        )


def site_scales(
    model: PyroProgram, guide: PyroProgram, args: tuple[Any, ...], kwargs: dict[str, Any], plate: str
) -> dict[str, float | None]:
    """The scale of each site's log-density; None for a site outside of the plate."""
    with dry_run(args):
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    return {
        name: float(torch.as_tensor(site["scale"]).max())
        if plate in {frame.name for frame in site["cond_indep_stack"]}
        else None
        for trace in (drawn, model_trace)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def check_inside(subject: str, by: str, scales: Mapping[str, float | None], plate: str, otherwise: str) -> None:
    """Raises for a site outside of the plate over the data, with what :func:`check_sum` has.

    Raises:
        ValueError: naming the site.
    """
    for name, scale in scales.items():
        if scale is None:
            raise ValueError(
                f"{subject}: expected every site in the plate {plate!r} for {by}; got {name!r} outside of it, which "
                f"would count once for every part. Otherwise: {otherwise}"
            )
