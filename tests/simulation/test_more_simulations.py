"""The other half of the simulations; see `test_simulation`."""

from __future__ import annotations

import pytest

from simulation.seeds import FIRSTS, check_from


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRSTS[1::2])
def test_studies_survive_whatever_happens(first: int) -> None:
    check_from(first)
