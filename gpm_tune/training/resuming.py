"""Continuing a training run from its newest checkpoint that is whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpm_tune.errors import OtherDataError, UserError
from gpm_tune.training.trainer import Trainer

_log = logging.getLogger("gpm_tune")


def resume(trainer: Trainer, folders: Iterable[Path]) -> str | None:
    """Continue from the first of the folders, newest first, that holds a whole checkpoint.

    With none that is whole the run starts from step 0. Returns None, or, where a checkpoint had to be
    passed over, a sentence that says which, why, and where the run goes on instead; it is logged too.
    Raises OtherDataError where the data have changed since.
    """
    damaged: list[str] = []
    for folder in folders:
        try:
            trainer.restore(folder)
        except OtherDataError:
            raise
        except UserError as error:
            damaged.append(str(error))
        else:
            return _say(damaged, f"continued from the one before, at step {trainer.step} in {folder}")
    return _say(damaged, "no earlier one is whole: started again from step 0")


def _say(damaged: Sequence[str], outcome: str) -> str | None:
    if not damaged:
        return None
    note = "; ".join([*damaged, outcome])
    _log.warning("%s", note)
    return note
