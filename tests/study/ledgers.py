"""Driving a ledger by hand."""

from __future__ import annotations

from gpm_tune.study.accounts.ledger import Ledger
from gpm_tune.study.accounts.records import StudyRecord, read_study


def take(ledger: Ledger) -> int:
    """The number of the next trial."""
    assignment = ledger.next()
    assert assignment is not None
    return assignment.number


def record(storage: str) -> StudyRecord:
    """What is known of the small study."""
    return read_study(storage, "small")
