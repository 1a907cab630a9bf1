"""What a study would do: the resolved experiment, the search space and the first sampled trials."""

from __future__ import annotations

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gpm_tune.errors import UserError
from gpm_tune.study.accounts.ledger import Ledger
from gpm_tune.study.definition.specification import Study
from gpm_tune.study.storage.home import Home
from gpm_tune.study.views.forecast import forecast, forecast_lines
from gpm_tune.study.views.results import show_value

TRIALS = 5


def show(study: Study, home: Home, address: str, console: Console) -> None:
    """Print the preview; nothing is written, and nothing run but a few steps for the forecast."""
    ledger = Ledger(study, storage=None)
    plain = study.model_dump(mode="json", exclude={"experiment", "search"})
    plain["objectives"] = [goal.model_dump() for goal in study.goals]
    _print_yaml({"experiment": study.base}, console)
    _print_yaml(plain, console)
    space = Table("searched", "values", "condition", title="search space", box=SIMPLE_HEAD)
    for path, distribution in study.search.items():
        given = distribution.model_dump(mode="json", exclude={"when"}, exclude_defaults=True, by_alias=True)
        condition = ", ".join(f"{key} = {value}" for key, value in distribution.when.items())
        space.add_row(path, ", ".join(f"{k} {v}" for k, v in given.items()), condition)
    console.print(space)
    count = min(TRIALS, ledger.remaining)
    table = Table("trial", *study.search, title=f"the first {count} of {ledger.remaining} trials")
    for _ in range(count):
        assignment = ledger.next()
        if assignment:
            values = [show_value(assignment.values.get(path, "-")) for path in study.search]
            table.add_row(str(assignment.number), *values)
    console.print(table)
    try:
        lines = forecast_lines(forecast(study, home, address), study)
    except UserError as error:
        lines = [
            f"no forecast: {error}; `gpm-tune plan FILE --address HOST:PORT` measures on a cluster's worker"
        ]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    console.print("dry run: nothing was started")


def _print_yaml(data: object, console: Console) -> None:
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    console.print(text, end="", highlight=False, markup=False)
