"""Random studies in a simulated world of crashes, outages and clocks that jump; see `studies` and `world`.

GPM_TUNE_SIMULATIONS=100000 runs so many. `python -m simulation SEED`, with `tests` on the path, replays one.
"""

from __future__ import annotations

import os

import pytest
from simulation.checks import depends_on_time, differences, outcomes, problems
from simulation.studies import Simulation

SIMULATIONS = int(os.environ.get("GPM_TUNE_SIMULATIONS", "2000"))
AT_A_TIME = 100


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
