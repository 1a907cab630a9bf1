"""Fixtures of the tests of studies."""

from pathlib import Path

import pytest


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """Where Optuna keeps studies."""
    return f"sqlite:///{tmp_path / 'optuna.db'}"
