"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from examples import STUDY


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """The small study in a file."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path
