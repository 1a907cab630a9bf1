"""Fixtures of the tests of figures and reports."""


import pytest
from hand_made import told_home

from gpm_tune.study.home import Home


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The home of a study of images, `told`, with complete, pruned and failed trials; not to be changed."""
    return told_home(tmp_path_factory.mktemp("told"))
