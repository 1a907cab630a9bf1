"""What a person sees while a study runs: bars on a terminal, lines in a log file."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gpm_tune.console import has_bars
from gpm_tune.study.accounts.trial_manager import TrialSpec
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.training.objectives import Measured, metric_label, shown


class StudyProgress:
    """Follows the trials of a study on a console; use as a context manager."""

    def __init__(self, study: StudyConfig, remaining: int, console: Console) -> None:
        self._objective = study.objective
        self._label = metric_label(self._objective.metric, study.experiment.features)
        self._console = console
        self._totals: dict[int, int] = {}
        self._bars: dict[int, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.completed:>7.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not has_bars(console),
        )
        self._all = self._progress.add_task("trials", total=remaining, note="")

    def __enter__(self) -> StudyProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, spec: TrialSpec) -> None:
        """A trial was handed out."""
        number, total = spec.number, spec.experiment.training.steps
        self._totals[number] = total
        if number in self._bars:  # it had lost its process
            self._progress.remove_task(self._bars[number])
        self._bars[number] = self._progress.add_task(
            f"trial {number}", total=total, completed=max(spec.known_step, 0), note=""
        )

    def measured(self, number: int, step: int, measured: Measured) -> None:
        """A trial was evaluated."""
        note = f"{self._label} {shown(self._objective.value_of(measured))}"
        self._progress.update(self._bars[number], completed=step, note=note)
        self._line(f"trial {number}: step {step}/{self._totals[number]}, {note}")

    def led(self, value: float) -> None:
        """Another evaluation is the study's best."""
        self._progress.update(self._all, note=f"best {self._label} {shown(value)}")

    def noted(self, number: int, note: str) -> None:
        """Something happened to a trial that its owner should know."""
        text = f"trial {number}: {note}"
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def ended(self, number: int, state: str, reason: str | None) -> None:
        """A trial came to its end, or is left for later."""
        if number in self._bars:
            self._progress.remove_task(self._bars.pop(number))
        if state != "interrupted":
            self._progress.advance(self._all)
        self._line(f"trial {number}: {state}" + (f": {reason}" if reason else ""))

    def _line(self, text: str) -> None:
        if self._progress.disable:
            self._console.print(text, highlight=False, markup=False)
