"""The beginning of a run of several ranks, which are to be alike."""

from __future__ import annotations

import json
from typing import Any

from pyro_vae.distributed import Ranks
from pyro_vae.training.identity import identity
from pyro_vae.training.run import Run
from pyro_vae.training.saving import Saving
from pyro_vae.training.state import restore_run, state_of_run


def begin_together(run: Run, saving: Saving | None, ranks: Ranks) -> None:
    """Gives all ranks the state of the first, which it began with or has of the folder.

    Raises:
        ValueError: their runs differ.
    """
    own = identity(run)
    ranks.check_same("run", {name: json.dumps(value, sort_keys=True) for name, value in own["settings"].items()})

    def first() -> Any:
        if saving is not None:
            saving.begin(run, own)
        return state_of_run(run)

    state = ranks.from_first(first)
    if ranks.rank > 0:
        restore_run(run, state)
    run.seed = run.generator.initial_seed()  # that which the folder's run was begun with
    run.check_ranks()
