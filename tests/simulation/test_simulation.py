"""Random studies in a simulated world of crashes, outages and clocks that jump; see `studies` and `world`.

GPM_TUNE_SIMULATIONS=100000 runs so many. `python -m simulation SEED`, with `tests` on the path, replays one.
Half of them are in `test_more_simulations.py`: of one file all run in one process.
"""

from __future__ import annotations

import pytest

from simulation.seeds import FIRSTS, check, check_from

# Seeds that have found something. Where simulations change they tell other stories.
FOUND = {
    14: "a storage that is away while a lease is acquired fails the trial",
    70: "the end of a short training is deleted by a longer one, which wrote it",
    89: "of two trials of one training each takes over the lease of the other, or waits for ever",
    1021: "a driver ends by what a trial says as it pauses; a fork's first curve is of its donor's judge",
    2369: "a trial whose values were drawn in part is shown so for ever",
    3447: "a trial is shown with evaluations of another one, which shares its training",
    3674: "a trial is complete, of which nothing was told: it is asked to stop as another ends its training",
    90: "a training that another study has finished meanwhile is done, and nothing of it is told",
}


@pytest.mark.parametrize("first", FIRSTS[::2])
def test_studies_survive_whatever_happens(first: int) -> None:
    check_from(first)


@pytest.mark.parametrize("seed", FOUND, ids=FOUND.get)
def test_what_was_found_is_found_no_more(seed: int) -> None:
    check(seed)
