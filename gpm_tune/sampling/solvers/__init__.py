"""Solvers: one file each, with a single step. Whatever stands in this folder can be chosen by its name.

A field is dx/dτ along a grid of τ: the time of a flow, or the noise level σ, along which it is
dx/dσ = -σ ∇log p_σ = (x - D(x; σ))/σ (8)(24).
"""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from operator import or_
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated

from gpm_tune.plugins import Extensible, members, name_of
from gpm_tune.sampling.integration import Solver, TimeSolver

# What this folder holds, and not what a plug-in, imported before, has derived.
_own = [
    solver
    for module in iter_modules(__path__, f"{__name__}.")
    for solver in vars(import_module(module.name)).values()
    if isinstance(solver, type) and issubclass(solver, Solver) and solver.__module__ == module.name
]

if TYPE_CHECKING:
    SolverConfig = Solver
    TimeSolverConfig = TimeSolver
else:
    SolverConfig = Annotated[reduce(or_, _own), Extensible("gpm_tune.solvers")]
    _over_time = reduce(or_, (solver for solver in _own if issubclass(solver, TimeSolver)))
    TimeSolverConfig = Annotated[_over_time, Extensible("gpm_tune.solvers", "check_over_time")]


def solver_names() -> list[str]:
    """What may be chosen, plug-ins included."""
    return [name_of(solver) for solver in members(SolverConfig)]
