"""What a sampler learns from the finished trials of another study."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from gpm_tune.errors import UserError
from gpm_tune.study import space
from gpm_tune.study.records import StudyRecord, read_study
from gpm_tune.study.specification import Study


@dataclass(frozen=True)
class Lesson:
    """The trials of another study, as trials of this one's search space."""

    name: str
    trials: list[FrozenTrial]
    outside: int  # trials whose values this search space has not


def learn_from(name: str, study: Study, storage: str) -> Lesson:
    """The completed trials of a study that lie within another study's search space.

    A value that was not searched there is that study's base value.
    Raises UserError where the two measure different things.
    """
    record = read_study(storage, name)
    _refuse_other_measures(record, study)
    found, outside = [], 0
    for trial in record.trials:
        if trial.state != "complete" or trial.scores is None:
            continue
        tree = space.put(record.experiment, trial.values)
        try:
            params = space.parameters(tree, study.base, study.search)
        except ValueError:
            outside += 1
            continue
        found.append(
            optuna.create_trial(
                params=params,
                distributions={path: study.search[path].for_optuna for path in params},
                values=trial.scores,
                user_attrs={"origin": f"{name}/{trial.number}"},
            )
        )
    return Lesson(name, found, outside)


def _refuse_other_measures(record: StudyRecord, study: Study) -> None:
    there = {
        "objectives": [objective.model_dump() for objective in record.objectives],
        "data": record.experiment["data"],
        "features": record.features,
        "evaluation.samples": record.experiment["evaluation"]["samples"],
    }
    here = {
        "objectives": [objective.model_dump() for objective in study.goals],
        "data": study.base["data"],
        "features": study.experiment.features,
        "evaluation.samples": study.base["evaluation"]["samples"],
    }
    differing = [key for key, value in here.items() if there[key] != value]
    if differing:
        raise UserError(
            f"warm_start: study '{record.name}' has other values of {', '.join(differing)}; what it measured "
            "cannot be compared with this study's trials"
        )
