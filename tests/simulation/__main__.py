"""Replay a simulation, by its seed, and print what happened: `python -m simulation SEED [DISASTERS]`."""

import sys

from simulation.studies import Simulation

seed, *most = map(int, sys.argv[1:])
found = Simulation(seed, *most)
try:
    with found.installed():
        found.run()
finally:
    print(*found.world.trace, sep="\n")
for study, _ in found.studies:
    print(study.model_dump_json(exclude={"experiment"}, exclude_defaults=True))
