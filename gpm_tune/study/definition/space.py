"""The search space: paths into the experiment, where their values come from, and on which conditions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import optuna
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gpm_tune.config import nearest
from gpm_tune.documents import reason
from gpm_tune.study.definition.distributions import MAX_VALUES, AnyDistribution
from gpm_tune.training import Experiment

Space = Mapping[str, AnyDistribution]
Values = dict[str, Any]
MISSING = object()


def get(tree: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or MISSING."""
    node: Any = tree
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return MISSING
        node = node[key]
    return node


def found(tree: Mapping[str, Any], space: Iterable[str]) -> Values:
    """The values that a tree has at the paths of a space."""
    values = {path: get(tree, path) for path in space}
    return {path: value for path, value in values.items() if value is not MISSING}


def put(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with the values at dotted paths replaced; shorter paths are set first.

    A new `name` chooses another kind of thing, whose other keys start from their defaults.
    """
    result: dict[str, Any] = _copied(dict(tree))
    for path in sorted(values, key=lambda path: (path.count("."), not path.endswith(".name"))):
        *parents, last = path.split(".")
        node = result
        for key in parents:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        if last == "name" and node.get("name") != values[path]:
            node.clear()
        node[last] = _copied(values[path])
    return result


def _copied(plain: Any) -> Any:
    """A copy of plain data: much faster than `copy.deepcopy`, which has to expect anything."""
    if isinstance(plain, dict):
        return {key: _copied(value) for key, value in plain.items()}
    return [_copied(value) for value in plain] if isinstance(plain, list) else plain


def sample(trial: optuna.Trial, base: Mapping[str, Any], space: Space) -> Values:
    """Draw the value of every path whose conditions hold, from an Optuna trial."""
    values: Values = {}
    for path in in_order(space):
        distribution = space[path]
        if _is_searched(distribution, base, values):
            values[path] = distribution.suggest(trial, path)
    return values


def combinations(base: Mapping[str, Any], space: Space, points: int | None) -> list[Values]:
    """Every combination of the paths' values whose conditions hold, as parameters of Optuna trials.

    points: values of a range that has no step; None where every range must be finite.
    Raises ValueError for a continuous range, or for more than MAX_VALUES combinations.
    """
    combined: list[Values] = [{}]
    for path in in_order(space):
        distribution = space[path]
        try:
            listed = distribution.enumerate_values(points)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        is_searched = _remembered(distribution, base)
        extended = (
            {**values, path: value} if searched else values
            for values in combined
            for searched in [is_searched(values)]
            for value in (listed if searched else [None])
        )
        combined = list(islice(extended, MAX_VALUES + 1))
        if len(combined) > MAX_VALUES:
            raise ValueError(f"there are more than {MAX_VALUES:,} combinations: search fewer values")
    return [{path: space[path].encode(value) for path, value in values.items()} for values in combined]


def _remembered(distribution: AnyDistribution, base: Mapping[str, Any]) -> Callable[[Values], bool]:
    """`_is_searched` for many combinations, which seldom differ in what decides it."""
    known: dict[str, bool] = {}

    def is_searched(values: Values) -> bool:
        deciding = {p: v for p, v in values.items() if any(_decides(p, c) for c in distribution.when)}
        key = json.dumps(deciding)
        if key not in known:
            known[key] = _is_searched(distribution, base, deciding)
        return known[key]

    return is_searched


def _decides(path: str, condition: str) -> bool:
    """Whether the value at a path can change what a condition sees; a new name changes all beside it."""
    scope = path.removesuffix(".name")
    return f"{condition}.".startswith(f"{scope}.") or path.startswith(f"{condition}.")


def parameters(tree: Mapping[str, Any], base: Mapping[str, Any], space: Space) -> Values:
    """The searched values of another experiment, as parameters of an Optuna trial.

    Raises ValueError where one is missing, or lies outside the search space.
    """
    values: Values = {}
    for path in in_order(space):
        distribution = space[path]
        if _is_searched(distribution, base, values):
            value = get(tree, path)
            if value is MISSING or not distribution.contains(value):
                what = "is missing" if value is MISSING else f"{value} lies outside the search space"
                raise ValueError(f"{path} {what}")
            values[path] = value
    return {path: space[path].encode(value) for path, value in values.items()}


def in_order(space: Space) -> list[str]:
    """The paths so that every path follows those that its conditions name.

    Raises ValueError where conditions are circular.
    """
    ordered: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [p for p in waiting if not any(other in waiting for other in space[p].when)]
        if not ready:
            raise ValueError(f"circular conditions: {', '.join(waiting)}")
        ordered += ready
        waiting = [p for p in waiting if p not in ready]
    return ordered


def problems(base: Mapping[str, Any], space: Space) -> Iterator[tuple[str, str]]:
    """What keeps the search space from fitting the base experiment: (path, sentence) pairs."""
    try:
        in_order(space)
    except ValueError as error:
        yield next(iter(space)), str(error)
        return
    for path, distribution in space.items():
        if path.startswith("model.teacher"):
            yield path, "the teacher is shared by all trials, and cannot be searched with them"
            continue
        unmet = [p for p in distribution.when if p not in space and get(base, p) is MISSING]
        for condition in unmet:
            yield path, f"its condition names '{condition}', which the experiment has not"
        problem = None if unmet else _misfit(base, space, path)
        if problem:
            yield path, problem


def altering(base: Mapping[str, Any], space: Space, told: Callable[[Experiment], Any]) -> Iterator[str]:
    """The paths of which some value alters what is told of the base experiment."""

    def tell(changes: Values) -> Any:
        return told(Experiment.model_validate(put(base, changes)))

    known = tell({})
    for path, distribution in space.items():
        premises = _premises(space, path)
        if any(tell({**premises, path: value}) != known for value in distribution.boundary_values):
            yield path


def _misfit(base: Mapping[str, Any], space: Space, path: str) -> str | None:
    """Why the experiment cannot have a path's conditions, or some value of its distribution; or None."""
    premises = _premises(space, path)
    tree = put(base, premises)
    if error := _error(tree):
        conditions = ", ".join(f"{condition}: {value}" for condition, value in premises.items())
        return f"its condition {conditions} does not fit: {reason(error)}"
    parent, _, last = path.rpartition(".")
    siblings = get(tree, parent) if parent else base
    is_new = get(tree, path) is MISSING
    for value in space[path].boundary_values:
        error = _error(put(base, {**premises, path: value}))
        if error and is_new and error["type"] == "unknown_key":
            is_known = isinstance(siblings, Mapping)
            hint = f"{last}: {nearest(last, siblings)}" if is_known else reason(error)
            return f"the experiment has no '{path}': {hint}"
        if error:
            return f"the value {value} does not fit: {reason(error)}"
    return None


def _error(tree: Mapping[str, Any]) -> ErrorDetails | None:
    """The first thing for which a tree is no experiment."""
    try:
        Experiment.model_validate(tree)
    except ValidationError as error:
        return error.errors()[0]
    return None


def _premises(space: Space, path: str) -> Values:
    """Values of other paths under which a path is searched, conditions of conditions included."""
    premises: Values = {}
    for condition, allowed in space[path].when.items():
        if condition in space:
            premises |= _premises(space, condition)
        premises[condition] = allowed[0] if isinstance(allowed, list) else allowed
    return premises


def _is_searched(distribution: AnyDistribution, base: Mapping[str, Any], values: Values) -> bool:
    """Whether a distribution's conditions hold in the base with these values."""
    if not distribution.when:  # the common case is not worth a copy of the base
        return True
    tree = put(base, values)
    return all(
        get(tree, path) in (allowed if isinstance(allowed, list) else [allowed])
        for path, allowed in distribution.when.items()
    )
