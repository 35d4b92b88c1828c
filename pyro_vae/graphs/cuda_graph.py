"""A whole training step, optimizer included, as one CUDA graph.

A GPU does a small step faster than Python can ask for it. A CUDA graph is asked for once: it repeats the kernels of one
step on the same memory, with new random numbers, so arguments that change are copied to where the first ones lay. What
Python does in a step is not repeated: the addresses and settings that it reads are compared before every step, and
others are another graph.

References:
    CUDA graphs, https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae import internals

Run = Callable[..., Sequence[Tensor]]

WARM_UPS = 3
"""Steps that are taken one operation after the other before one is captured. They load kernels, make workspaces, and
begin the averages of the optimizer, which a captured step would begin anew every time."""


def can_capture(optimizer: object, device: torch.device) -> bool:
    """Whether a step with this optimizer can be one CUDA graph.

    It must skip an update without asking the CPU, and call nothing of the user's, which would not be called again.
    """
    return (
        device.type == "cuda"
        and type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
        and all(group["fused"] for group in optimizer.param_groups)  # type: ignore[attr-defined]
        and not internals.has_step_hooks(optimizer)
    )


class CapturedStep:
    """Loss, gradients and update of a step, captured after some steps.

    Where the loss or a gradient is not finite, parameters and buffers stay as they are.

    Args:
        run: the compiled graph: inputs to the loss and the gradients of some parameters.
        inputs: its inputs.
        moves: which of them may be another tensor in the next step. The others are read where they lie.
        parameters: those that the gradients are of.
        buffers: tensors among the inputs that the graph may write into.
        optimizer: for which :func:`can_capture` holds.
        update: clips the gradients and lets the optimizer step; equal to another that does the same.
    """

    def __init__(
        self,
        run: Run,
        inputs: Sequence[Tensor],
        moves: Sequence[bool],
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        update: Callable[[], None],
    ) -> None:
        self._places = [t.clone() if moving else t for t, moving in zip(inputs, moves, strict=True)]
        self._addresses = [None if moving else t.data_ptr() for t, moving in zip(inputs, moves, strict=True)]
        self._optimizer, self._state, self._update = optimizer, optimizer.state, update
        device = inputs[0].device
        for group in optimizer.param_groups:
            group["capturable"] = True
        # Fused kernels read float32, whatever the parameters are.
        self._rates = [
            torch.as_tensor(g["lr"], dtype=torch.float32, device=device).clone() for g in optimizer.param_groups
        ]
        self._settings = _settings(optimizer)

        def body() -> Tensor:
            before = [buffer.clone() for buffer in buffers]
            loss, *gradients = run(*self._places)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            bounded = torch.nn.utils.get_total_norm(gradients, math.inf).isfinite()
            sound = loss.isfinite() & bounded
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(torch.where(sound, buffer, value))
            optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
            try:
                update()
            finally:
                del optimizer.found_inf  # type: ignore[attr-defined]
            return loss.masked_fill(~bounded, math.nan)

        self._body = body, device
        self._warm_ups: float = WARM_UPS
        self._captured: tuple[Tensor, Callable[[], None]] | None = None

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Takes a step and returns its loss, which the next step overwrites; NaN where a gradient is not finite."""
        for place, tensor, address in zip(self._places, inputs, self._addresses, strict=True):
            if address is None:
                place.copy_(tensor)
        self._adopt_rates()
        if self._captured is None and self._warm_ups == 0:
            self._capture()
        if self._captured is None:
            self._warm_ups -= 1
            return warm_up(*self._body)
        loss, replay = self._captured
        replay()
        return loss

    def _capture(self) -> None:
        try:
            self._captured = capture(*self._body)
        except RuntimeError as error:
            self._warm_ups = math.inf
            words = str(error).strip().partition("\n")[0].rstrip(".")
            warnings.warn(
                f"SVI: expected a compiled step that a CUDA graph can repeat; got an error: {words}. Training goes on "
                "without a CUDA graph.",
                stacklevel=7,
            )

    def suits(self, inputs: Sequence[Tensor], optimizer: torch.optim.Optimizer, update: Callable[[], None]) -> bool:
        """Whether what it reads where it lies, and what the update does, are the same still."""
        places = zip(self._places, inputs, self._addresses, strict=True)
        return (
            optimizer is self._optimizer
            and optimizer.state is self._state
            and update == self._update
            and _settings(optimizer) == self._settings
            and all(address is None or (t is place and t.data_ptr() == address) for place, t, address in places)
        )

    def _adopt_rates(self) -> None:
        """Learning rates are tensors that the graph reads; a schedule may have put a number in their place."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What an update reads of an optimizer's groups as numbers, which a graph has as constants."""
    return [{**group, "lr": None, "params": list(map(id, group["params"]))} for group in optimizer.param_groups]


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device for warming up and capturing: what libraries keep for a stream is made before."""
    return torch.cuda.Stream(device)


def warm_up(body: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Does what a function does on the GPU, on the stream that captures, between what is asked before and after."""
    side, present = _side_stream(device), torch.cuda.current_stream(device)
    side.wait_stream(present)
    with torch.no_grad(), torch.cuda.stream(side):
        result = body()
    present.wait_stream(side)
    return result


def capture(body: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """Captures what a function does on the GPU, without doing it.

    Returns:
        The tensor that the function returned, and a function that does it and writes there.
    """
    graph = torch.cuda.CUDAGraph()
    # Another thread, such as one that pins the next batches, may call CUDA meanwhile. The stream names the device too:
    # torch's own capturing stream is of the device that was the current one when a graph was captured first.
    capturing = torch.cuda.graph(graph, stream=_side_stream(device), capture_error_mode="thread_local")
    with torch.no_grad(), torch.cuda.device(device), _without_collection(), capturing:
        result = body()
    return result, graph.replay


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Context manager in which no garbage is collected: kernels and graphs among it may not be unloaded meanwhile."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
