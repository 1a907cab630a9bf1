"""What a seed is checked for; and how many are."""

from __future__ import annotations

import os

from simulation.checks import differences, independent, outcomes, problems
from simulation.studies import Simulation

SIMULATIONS = int(os.environ.get("GPM_TUNE_SIMULATIONS", "200"))
AT_A_TIME = 50
FIRSTS = range(0, SIMULATIONS, AT_A_TIME)


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
            same = independent(simulation)
    finally:
        simulation.close()
    if not same:
        return
    calm = Simulation(seed, 0)
    try:
        with calm.installed():
            calm.run()
            differing = [text for text in differences(before, outcomes(calm)) if text.split()[0] in same]
            assert not differing, f"without disasters another outcome: {differing}"
    finally:
        calm.close()


def check_from(first: int) -> None:
    """Check some seeds. An error says of which one it is."""
    for seed in range(first, min(first + AT_A_TIME, SIMULATIONS)):
        try:
            check(seed)
        except Exception as error:
            error.add_note(f"seed {seed}: python -m simulation {seed}")
            raise
