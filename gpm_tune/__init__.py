"""gpm_tune: hyperparameter studies of generative particle models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gpm_tune.version import __version__

if TYPE_CHECKING:
    from gpm_tune.api import Study, Trial

# Read when MLflow is imported, by whichever module comes first.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

__all__ = ["Study", "Trial", "__version__"]


def __getattr__(name: str) -> Any:
    """The Python interface, imported at its first use: the training core needs neither ray nor optuna."""
    if name in ("Study", "Trial"):
        from importlib import import_module

        return getattr(import_module("gpm_tune.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
