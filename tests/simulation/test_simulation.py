"""Random studies in a simulated world of crashes, outages and clocks that jump; see `studies` and `world`.

A seed takes a quarter of a second, 500 of them two minutes of one core. GPM_TUNE_SIMULATIONS=100000 runs so
many. `python -m simulation SEED`, with `tests` on the path, replays one.
"""

from __future__ import annotations

import os

import pytest

from simulation.checks import depends_on_time, differences, outcomes, problems
from simulation.studies import Simulation

SIMULATIONS = int(os.environ.get("GPM_TUNE_SIMULATIONS", "500"))
AT_A_TIME = 50

# Seeds that have found something. Where simulations change they tell other stories.
FOUND = {
    14: "a storage that is away while a lease is acquired fails the trial",
    70: "the end of a short training is deleted by a longer one, which wrote it",
    89: "of two trials of one training each takes over the lease of the other, or waits for ever",
    90: "a training that another study has finished meanwhile is done, and nothing of it is told",
}


def check(seed: int) -> None:
    """Run the studies of a seed, and once more; and without disasters, to compare."""
    simulation = Simulation(seed)
    try:
        with simulation.installed():
            simulation.run()
            before = outcomes(simulation)
            simulation.run_again()
            found = list(problems(simulation))
            assert not found, "\n".join(found)
            changed = differences(outcomes(simulation), before)
            assert not changed, f"the same command again has changed {changed}"
            is_same = not depends_on_time(simulation)
    finally:
        simulation.close()
    if not is_same:
        return
    calm = Simulation(seed, 0)
    try:
        with calm.installed():
            calm.run()
            differing = differences(before, outcomes(calm))
            assert not differing, f"without disasters another outcome: {differing}"
    finally:
        calm.close()


@pytest.mark.parametrize("first", range(0, SIMULATIONS, AT_A_TIME))
def test_studies_survive_whatever_happens(first: int) -> None:
    for seed in range(first, min(first + AT_A_TIME, SIMULATIONS)):
        try:
            check(seed)
        except Exception as error:
            error.add_note(f"seed {seed}: python -m simulation {seed}")
            raise


@pytest.mark.parametrize("seed", FOUND, ids=FOUND.get)
def test_what_was_found_is_found_no_more(seed: int) -> None:
    check(seed)
