"""What a sampler learns from the finished trials of another study."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from gpm_tune.errors import UserError
from gpm_tune.study.accounts.records import StudyRecord, measure_of, read_study
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import Study


def learn_from(name: str, study: Study, storage: str) -> list[FrozenTrial]:
    """The completed trials of a study that lie within another's search space, as trials of the latter.

    A value that was not searched there is that study's base value.
    Raises UserError where the two measure different things.
    """
    record = read_study(storage, name)
    _refuse_other_measures(record, study)
    found = []
    for trial in record.trials:
        if trial.state != "complete" or trial.scores is None:
            continue
        tree = space.put(record.experiment, trial.values)
        try:
            params = space.parameters(tree, study.base, study.search)
        except ValueError:
            continue
        found.append(
            optuna.create_trial(
                params=params,
                distributions={path: study.search[path].for_optuna for path in params},
                values=trial.scores,
                user_attrs={"origin": f"{name}/{trial.number}"},
            )
        )
    return found


def _refuse_other_measures(record: StudyRecord, study: Study) -> None:
    here = measure_of(study.goals, study.base, study.experiment.features)
    differing = [key for key, value in here.items() if record.measure[key] != value]
    if differing:
        raise UserError(
            f"warm_start: study '{record.name}' has other values of {', '.join(differing)}; what it measured "
            "cannot be compared with this study's trials"
        )
