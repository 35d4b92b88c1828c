"""A whole training step, optimizer included, as one CUDA graph.

A GPU does a small step faster than Python can ask for it. A CUDA graph is asked for once: it repeats the kernels of one
step on the same memory, with new random numbers, so arguments that change are copied to where the first ones lay.

References:
    CUDA graphs, https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Run = Callable[..., Sequence[Tensor]]


def can_capture(optimizer: object, device: torch.device) -> bool:
    """Whether a step with this optimizer can be one CUDA graph: it must skip an update without asking the CPU."""
    return (
        device.type == "cuda"
        and isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
        and all(group["fused"] for group in optimizer.param_groups)
    )


class CapturedStep:
    """Loss, gradients and update of a step, captured.

    Where the loss is not finite the parameters stay as they are.

    Args:
        run: the compiled graph: inputs to the loss and the gradients of some parameters.
        inputs: its inputs.
        former: those of the step before. What is the same tensor in both is read where it lies.
        parameters: those that the gradients are of.
        optimizer: for which :func:`can_capture` holds.
        update: clips the gradients and lets the optimizer step.
    """

    def __init__(
        self,
        run: Run,
        inputs: Sequence[Tensor],
        former: Sequence[Tensor],
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        update: Callable[[], None],
    ) -> None:
        self._moves = [tensor is not before for tensor, before in zip(inputs, former, strict=True)]
        self._places = [t.clone() if moves else t for t, moves in zip(inputs, self._moves, strict=True)]
        self._optimizer = optimizer
        self._rates = [torch.as_tensor(group["lr"]).to(inputs[0]).clone() for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["capturable"] = True
        self._adopt_rates()

        def body() -> Tensor:
            loss, *gradients = run(*self._places)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.found_inf = (~loss.isfinite()).float()  # type: ignore[attr-defined]
            try:
                update()
            finally:
                del optimizer.found_inf  # type: ignore[attr-defined]
            return loss

        self._loss, self._replay = capture(body)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Takes a step and returns its loss, which the next step overwrites."""
        for place, tensor, moves in zip(self._places, inputs, self._moves, strict=True):
            if moves:
                place.copy_(tensor)
        self._adopt_rates()
        self._replay()
        return self._loss

    def suits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether what it reads where it lies is the same still."""
        return all(
            moves or tensor is place for place, tensor, moves in zip(self._places, inputs, self._moves, strict=True)
        )

    def _adopt_rates(self) -> None:
        """Learning rates are tensors that the graph reads; a schedule may have put a number in their place."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate


def capture(body: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Captures what a function does on the GPU, without doing it.

    Returns:
        The tensor that the function returned, and a function that does it and writes there.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    # Another thread, such as one that pins the next batches, may call CUDA meanwhile.
    with torch.no_grad(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = body()
    return result, graph.replay
