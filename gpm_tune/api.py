"""The Python interface, for notebooks: studies as objects, trials as a frame, samples as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gpm_tune.config import SEEDS
from gpm_tune.console import new_console
from gpm_tune.documents import Document
from gpm_tune.errors import UnknownError, UserError
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.records import StudyRecord, best_trial, read_study
from gpm_tune.study.accounts.runs import model_of
from gpm_tune.study.definition.specification import load_study, open_file
from gpm_tune.study.storage.home import Home
from gpm_tune.study.views.results import states
from gpm_tune.training import Experiment
from gpm_tune.training.machine import choose_device
from gpm_tune.training.objectives import shown
from gpm_tune.training.saved import SavedModel

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


@dataclass(frozen=True)
class Trial:
    """A trial with a result."""

    study: str
    number: int
    value: float  # the best that the first objective reached
    values: dict[str, Any]  # of the search space's paths
    curve: dict[int, dict[str, float]]  # of the evaluation where it was reached: NFE -> metric -> value
    experiment: Experiment  # the base experiment with these values
    saved: SavedModel  # its checkpoint, and which of its weights

    def __repr__(self) -> str:
        return f"Trial({self.study}/{self.number}: {shown(self.value)}, {self.values})"

    def sample(
        self, n: int = 64, *, nfe: int | None = None, seed: int = 0, device: str | None = None
    ) -> Tensor:
        """Samples of the best weights: (n, *shape) on the CPU, images in [-1, 1].

        nfe: to be spent per sample; None for the model's full NFE. device: None for the GPU if there is one.
        Raises UserError where the model cannot be sampled at this NFE, there is no such seed, or the
        checkpoint is not here.
        """
        from gpm_tune.training.generation import load_sampler

        if not 0 <= seed < SEEDS:
            raise UserError(f"seed {seed}: valid: 0 to {SEEDS - 1}")
        sampler = load_sampler(self.saved, nfe=nfe, device=choose_device(device))
        return sampler.draw(n, seed)[1]


class Study:
    """A study: one search, which is run until its budget is used up, and can be continued at any time."""

    def __init__(
        self,
        file: str | Path | Document,
        overrides: Mapping[str, Any] | None = None,
        *,
        home: str | Path | None = None,
        tracking_uri: str | None = None,
        storage: str | None = None,
    ) -> None:
        """The study of a file; a bare name is also looked up among those that come with the program.

        overrides: dotted path into the file -> value, as `--set` of the command line. home, tracking_uri
        and storage: as the options of the command line. Nothing is started. Raises UserError where the
        file is not valid.
        """
        self._document = file if isinstance(file, Document) else open_file(Path(file))
        for path, value in (overrides or {}).items():
            self._document.assign(path, value, "override")
        self.home = Home(Path(home) if home is not None else None, tracking_uri, storage)
        self.definition = load_study(self._document)

    @classmethod
    def open(
        cls,
        name: str,
        overrides: Mapping[str, Any] | None = None,
        *,
        home: str | Path | None = None,
        tracking_uri: str | None = None,
        storage: str | None = None,
    ) -> Study:
        """A study that has been run before, as it was run. Raises UserError where there is none.

        overrides: as of a file, for what may change while a study is continued: budget, resources, ….
        """
        place = Home(Path(home) if home is not None else None, tracking_uri, storage)
        file = kept_file(place, name)
        return cls(file, overrides, home=home, tracking_uri=tracking_uri, storage=storage)

    @property
    def name(self) -> str:
        """What identifies the study in its home."""
        return self.definition.name

    @property
    def record(self) -> StudyRecord:
        """What is known of the study now. Raises UserError where it has not been run yet."""
        return read_study(self.home.optuna_uri, self.name)

    def run(self, *, address: str = "local", console: Console | None = None) -> bool:
        """Run the study, or continue it where it stands, until a part of its budget is used up.

        address: `local` starts Ray here, `auto` or HOST:PORT joins a cluster. The first Ctrl-C, or the
        notebook's stop button, lets the running trials checkpoint. Returns False if interrupted. Raises
        UserError where something is missing that trials need.
        """
        from gpm_tune.study.running.run import run_study

        return run_study(self.definition, self.home, address, console or new_console())

    def resume(
        self, trials: int | None = None, *, address: str = "local", console: Console | None = None
    ) -> bool:
        """Continue the study after an interrupt, a crash or a reboot; trials: in all, to add some.

        Returns and raises as `run`; raises UserError where the study has not been run yet, too.
        """
        read_study(self.home.optuna_uri, self.name)
        if trials is not None:
            self._document.assign("budget.trials", trials, "trials")
            self.definition = load_study(self._document)
        return self.run(address=address, console=console)

    def trials(self) -> pd.DataFrame:
        """A row per trial: its state, searched values, objectives, NFE, costs and training run."""
        from gpm_tune.analysis.study_data import read_data
        from gpm_tune.analysis.study_frames import trials

        return trials(read_data(self.home, self.name))

    def best(self) -> Trial:
        """The trial with the best value of the first objective.

        Raises UserError where no trial has a result, or its checkpoint is not on this machine.
        """
        record = self.record
        found = best_trial(record)
        saved = model_of(f"{self.name}/{found.number}", self.home)
        assert found.value is not None, "it is ranked by it"
        curve = found.measured.curve if found.measured else {}
        return Trial(self.name, found.number, found.value, found.values, curve, saved.experiment, saved)

    def __repr__(self) -> str:
        try:
            state = states(read_study(self.home.optuna_uri, self.name, Patience(is_over=lambda: True)))
        except UnknownError:
            state = "not run yet"
        except UserError:
            state = "cannot be read"
        return f"Study({self.name!r}: {state})"


def kept_file(home: Home, name: str) -> Document:
    """The file of a study that has been run before, as it was run.

    Raises UserError where there is no such study, or its file is missing or damaged.
    """
    read_study(home.optuna_uri, name)
    try:
        return open_file(home.study(name) / "study.yaml")
    except UserError as error:
        raise UserError(f"{error}\nhelp: continue it by its own file: gpm-tune run STUDY.yaml") from None
