"""The budget tracker: what a study has spent, and which part of its budget is used up first."""

from __future__ import annotations

import time

import optuna

from gpm_tune.study.definition.specification import Budget

KEEP_EVERY = 10.0  # seconds between writes to the storage
SECONDS_PER_HOUR = 3600


class BudgetTracker:
    """Hours that a study has run, and that its trials have occupied GPUs; kept in Optuna's storage.

    Dollars are those of all nodes that were up meanwhile; None where no prices are known.
    """

    def __init__(self, study: optuna.Study, budget: Budget, gpu: float) -> None:
        """gpu: GPUs that a trial occupies."""
        self._study = study
        self._budget = budget
        self._gpu = gpu
        spent = study.user_attrs.get("spent", {})
        self.hours: float = spent.get("hours", 0.0)
        self.gpu_hours: float = spent.get("gpu_hours", 0.0)
        self.dollars: float | None = spent.get("dollars")
        self._last: float | None = None
        self._kept = 0.0

    def tick(self, live: int, price: float | None = None) -> None:
        """Count the time since the last tick, in which so many trials were live. The first tick starts it.

        price: of the nodes that were up, in US dollars an hour.
        """
        now = time.monotonic()
        if self._last is not None:
            passed = (now - self._last) / SECONDS_PER_HOUR
            self.hours += passed
            self.gpu_hours += passed * live * self._gpu
            if price is not None:
                self.dollars = (self.dollars or 0.0) + passed * price
        self._last = now
        if now - self._kept >= KEEP_EVERY:
            self.keep()

    def keep(self) -> None:
        """Write what was spent to the storage."""
        self._kept = time.monotonic()
        spent = {"hours": self.hours, "gpu_hours": self.gpu_hours, "dollars": self.dollars}
        self._study.set_user_attr("spent", spent)

    def used_up(self) -> str | None:
        """Which of the hours is used up, in words; None while there are some left."""
        budget = self._budget
        if budget.hours is not None and self.hours >= budget.hours:
            return f"{budget.hours:g} hours have passed (budget.hours)"
        if budget.gpu_hours is not None and self.gpu_hours >= budget.gpu_hours:
            return f"{budget.gpu_hours:g} GPU-hours are used up (budget.gpu_hours)"
        return None
