"""What a study would do: the resolved experiment, the search space, the first sampled trials, a forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpm_tune.documents import as_yaml
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import check_data_here
from gpm_tune.study.views.forecast import Forecast, forecast, forecast_lines
from gpm_tune.study.views.results import short_path, show_value

TRIALS = 5


@dataclass(frozen=True)
class Preview:
    """A study before it is run."""

    study: StudyConfig
    left: int  # trials
    first: dict[int, dict[str, Any]]  # the values of the first trials
    forecast: Forecast | str  # or why there is none

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        cost = self.forecast
        return {
            "study": self.study.model_dump(mode="json") | {"objectives": self._goals},
            "first_trials": [{"number": number, "values": values} for number, values in self.first.items()],
            "forecast": {"error": cost} if isinstance(cost, str) else cost.plain(),
        }

    def lines(self) -> list[object]:
        """For people."""
        plain = self.study.model_dump(mode="json", exclude={"experiment", "search"})
        if isinstance(self.forecast, str):
            costs: list[object] = [f"no forecast: {self.forecast}; `gpm-tune plan` measures on clusters, too"]
        else:
            costs = forecast_lines(self.forecast, self.study)
        blocks = [{"experiment": self.study.base}, plain | {"objectives": self._goals}]
        texts = [as_yaml(block).rstrip() for block in blocks]
        return [*texts, self._space(), self._trials(), *costs]

    @property
    def _goals(self) -> list[dict[str, Any]]:
        return [goal.model_dump() for goal in self.study.goals]

    def _space(self) -> Table:
        table = Table("searched", "values", "condition", title="search space", box=SIMPLE_HEAD)
        for path, distribution in self.study.search.items():
            plain = distribution.model_dump(
                mode="json", exclude={"when"}, exclude_defaults=True, by_alias=True
            )
            condition = ", ".join(f"{key} = {value}" for key, value in distribution.when.items())
            table.add_row(path, ", ".join(f"{k} {v}" for k, v in plain.items()), condition)
        return table

    def _trials(self) -> Table:
        paths = list(self.study.search)
        heads = [short_path(path, paths) for path in paths]
        title = f"the first {len(self.first)} of {self.left} trials"
        table = Table("trial", *heads, title=title, box=SIMPLE_HEAD)
        for number, values in self.first.items():
            table.add_row(str(number), *(show_value(values.get(path, "-")) for path in paths))
        return table


def preview(study: StudyConfig, home: Home, address: str) -> Preview:
    """Nothing is written but decoded pictures, and nothing run but a few steps for the forecast.

    Raises UserError where the study's folder of pictures is not there, or data that are here cannot be read.
    """
    check_data_here(study.experiment)
    manager = TrialManager(study, storage=None)
    left = manager.remaining
    drawn = manager.draw(TRIALS)
    cost: Forecast | str
    try:
        cost = forecast(study, home, address)
    except UserError as error:
        cost = str(error)
    return Preview(study, left, {trial.number: trial.values for trial in drawn}, cost)
