"""All that changes in a run, as it is kept in a checkpoint, and sent from rank to rank."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pyro_vae.checkpoint.fingerprints import others_of
from pyro_vae.checkpoint.programs import attributes_of, set_attributes
from pyro_vae.checkpoint.tree import alike
from pyro_vae.data.dataset import check_place
from pyro_vae.svi.state import restore, state_of
from pyro_vae.training.run import EpochSoFar, Run


def state_of_run(run: Run) -> dict[str, Any]:
    """What a later process needs to go on as this one would have."""
    stopping, so_far = run.stopping, run.so_far
    return {
        "svi": state_of(run.svi, run.modules()),
        "attributes": {name: attributes_of(module) for name, module in run.modules().items()},
        "others": {name: others_of(module) for name, module in run.modules().items()},
        "training": [module.training for part in run.modules().values() for module in part.modules()],
        "scheduler": None if run.scheduler is None else _without_functions(run.scheduler.state_dict()),
        "stopping": None if stopping is None else {k: getattr(stopping, k) for k in ("epoch", "elbo", "state")},
        "best": run.best,
        "parts": run.parts,
        "in_a_row": run.in_a_row,
        "so_far": None if so_far is None else vars(so_far),
        "history": {**asdict(run.history), "settings": None},
        "random": _random_state(run),
    }


def restore_run(run: Run, state: dict[str, Any]) -> None:
    """Gives a run the state of another, of the same program, data and settings.

    Raises:
        ValueError: the state is of a longer run, or is none of a run.
    """
    if state["svi"]["num_steps"] > run.budget.num_steps:
        raise ValueError(
            f"fit: expected a run of at least the {state['svi']['num_steps']} steps that were taken; got "
            f"{run.budget.num_steps}. Give more epochs or steps."
        )
    partly = state["svi"]["num_steps"] % run.budget.steps_per_epoch
    if state["so_far"] is None and partly and state["svi"]["num_steps"] < run.budget.num_steps:
        raise ValueError(
            f"fit: expected a run that ended with a whole epoch, to go on with; got one that ended {partly} steps into "
            f"an epoch of {run.budget.steps_per_epoch}. Use resume='weights'."
        )
    _check_kinds(run, state)
    restore(run.svi, run.modules(), state["svi"])
    for name, module in run.modules().items():
        set_attributes(module, state["attributes"][name])
        _check_others(name, others_of(module), state["others"][name])
    for module, training in zip(
        (module for part in run.modules().values() for module in part.modules()), state["training"], strict=True
    ):
        module.training = training
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    if run.stopping is not None:
        device = run.train.device
        state["stopping"]["state"] = [tensor.to(device) for tensor in state["stopping"]["state"]]
        vars(run.stopping).update(state["stopping"])
    run.best, run.parts, run.in_a_row = state["best"], state["parts"], state["in_a_row"]
    run.so_far = None if state["so_far"] is None else EpochSoFar(**state["so_far"])
    run.history.epochs = state["history"]["epochs"]
    if state["history"]["stopped"] == "early stopping":  # an interruption is over
        run.history.stopped = "early stopping"
    _set_random_state(run, state["random"])


def _check_others(name: str, present: dict[str, Any], kept: dict[str, Any]) -> None:
    """Raises for functions, arrays and objects that a module held at the checkpoint, and a file cannot give back."""
    present = json.loads(json.dumps(present))
    changed = [key for key in present.keys() | kept.keys() if present.get(key) != kept.get(key)]
    if changed:
        raise ValueError(
            f"fit: expected modules that hold what they held when the checkpoint was written; got another "
            f"{name}.{sorted(changed)[0]}, which changed while training. Keep what changes in numbers, words, tensors, "
            "or containers of these, or use resume='weights'."
        )


def _check_kinds(run: Run, state: dict[str, Any]) -> None:
    """Raises for what would fail later on, or go on as another run: values of other kinds than those of a run."""
    rows, so_far, best = state["history"]["epochs"], state["so_far"], state["stopping"]
    numbers = [state["best"], *(value for row in rows for value in row.values())]
    counts = [state["parts"] - 1, state["in_a_row"]]
    if so_far is not None:
        counts += [so_far[name] for name in ("steps", "seen", "skipped")]
        position = min(so_far["steps"] * run.budget.batch_size, len(run.train))
        place = so_far.setdefault("place", {"position": position})  # which checkpoints of earlier versions do not say
        if check_place("fit", place, len(run.train))["position"] != position:
            raise ValueError("a place in the data to which its steps do not lead")
        numbers += [so_far["seconds"], float(so_far["total"])]
        torch.Generator(run.generator.device).set_state(so_far["order"])
    if run.stopping is not None:
        counts.append(best["epoch"])
        numbers.append(best["elbo"])
        if best["epoch"] and [t.shape for t in best["state"]] != [t.shape for t in run.tensors()]:
            raise ValueError("best weights of other shapes")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts that are no whole numbers")
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("figures that are no numbers")
    if run.scheduler is not None:
        present = _without_functions(run.scheduler.state_dict())
        other = [name for name, value in state["scheduler"].items() if not alike(value, present.get(name))]
        if other:
            raise ValueError(f"a schedule whose {other[0]!r} is another")


def _random_state(run: Run) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - callbacks may draw from it
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "order": run.generator.get_state(),
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
    }
    if run.train.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(run.train.device)
    return state


def _set_random_state(run: Run, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    run.generator.set_state(state["order"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    if run.train.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], run.train.device)


def _without_functions(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without the functions of some, which are its arguments and not its state."""
    return {name: value for name, value in state.items() if not callable(value)}
